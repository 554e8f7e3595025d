//! Gets a job's artifacts out. Everything about them is hostile: paths, sizes, their number, their order.
//!
//! The agent was told what it may send; one entry outside of that ends the collection. What came before is kept.

use std::{collections::HashSet, future::Future, io, time::Duration};

use agent::{
    codec::Frame,
    message::{Entry, FileError, Get, GetDone, GetLimit, Skipped, ToAgent, ToHost},
};
use bytesize::ByteSize;
use pool::Channel;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use crate::{
    cancel::{Cancelled, Urgency},
    result::{Artifact, SkippedArtifact},
    stage::explain,
    traffic::{GET_STREAM, Lost, RUN_STREAM, printable},
};

/// The longest path that a Linux system call takes.
const LONGEST_PATH: usize = 4096;
/// How many skipped ones a result lists.
const LISTED_SKIPS: usize = 100;

/// How much is collected at most, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Files in all.
    pub files: u32,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Directory entries to look at, matching or not.
    pub visited: u32,
    /// The whole collection, our own writing included.
    pub time: Duration,
}

impl Default for Caps {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self {
            files: 10_000,
            bytes: 2 * GIB,
            file_bytes: GIB,
            visited: 100_000,
            time: Duration::from_secs(60),
        }
    }
}

/// A file that begins to arrive. Its path lies inside what was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Which of the assignment's `artifacts` it answers, counted from 0.
    pub asked: usize,
    /// Its path in the sandbox: absolute, without `.`, `..` and empty parts. Not always UTF-8.
    pub path: &'a [u8],
    /// Permission bits to give it: 0755 or 0644.
    pub mode: u32,
}

/// Where artifacts go. A failure concerns the one file; the others still come.
pub trait ArtifactSink: Send {
    /// A file begins. One at a time.
    fn begin(&mut self, arrival: Arrival<'_>) -> impl Future<Output = io::Result<()>> + Send;
    /// Some of its bytes.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
    /// It is whole.
    fn keep(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// It is not: forget what came of it.
    fn discard(&mut self) -> impl Future<Output = ()> + Send;
}

/// Looks at artifacts (their digests reach the result) and keeps none.
#[derive(Debug, Clone, Copy)]
pub struct Discard;

impl ArtifactSink for Discard {
    async fn begin(&mut self, _: Arrival<'_>) -> io::Result<()> {
        Ok(())
    }
    async fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    async fn keep(&mut self) -> io::Result<()> {
        Ok(())
    }
    async fn discard(&mut self) {}
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) artifacts: Vec<Artifact>,
    pub(crate) skipped: Vec<SkippedArtifact>,
    /// Skipped ones beyond those listed.
    pub(crate) unlisted: u64,
    /// Why the collection ended early.
    pub(crate) cut_short: Option<String>,
}

/// Asks for all `patterns`, one after the other, so that each file is known to answer one of them.
pub(crate) async fn collect(
    channel: &mut Channel,
    patterns: &[String],
    caps: Caps,
    sink: &mut impl ArtifactSink,
    mut cancelled: Cancelled,
) -> Collected {
    let mut collection = Collection {
        sink,
        caps,
        files_left: caps.files,
        bytes_left: caps.bytes,
        remarks_left: u64::from(caps.visited) + patterns.len() as u64,
        current: None,
        seen: HashSet::new(),
        named: HashSet::new(),
        collected: Collected::default(),
    };
    let cut_short = tokio::select! {
        biased;
        // Asked politely, a job still gets its artifacts.
        _ = cancelled.beyond(Urgency::Politely) => Some("it was cancelled".to_owned()),
        () = sleep(caps.time) => Some(format!("it took longer than {:?}", caps.time)),
        ended = collection.get_all(channel, patterns) => ended.err().map(|lost| lost.to_string()),
    };
    collection.collected.cut_short = cut_short;
    if collection.current.take().is_some() {
        collection.sink.discard().await;
    }
    collection.collected
}

struct Collection<'a, S> {
    sink: &'a mut S,
    caps: Caps,
    files_left: u32,
    bytes_left: u64,
    /// How many `Skipped` frames are still believable.
    remarks_left: u64,
    current: Option<Current>,
    /// The paths that answered the pattern that is being asked for.
    seen: HashSet<Vec<u8>>,
    /// The paths that the result names already.
    named: HashSet<String>,
    collected: Collected,
}

/// The file that arrives.
struct Current {
    path: Vec<u8>,
    size: u64,
    hasher: Sha256,
    /// Why it will not be kept, whatever else comes of it.
    spoiled: Option<String>,
}

impl<S: ArtifactSink> Collection<'_, S> {
    async fn get_all(&mut self, channel: &mut Channel, patterns: &[String]) -> Result<(), Lost> {
        for (asked, pattern) in patterns.iter().enumerate() {
            self.get(channel, asked, pattern).await?;
        }
        Ok(())
    }

    async fn get(&mut self, channel: &mut Channel, asked: usize, pattern: &str) -> Result<(), Lost> {
        if self.files_left == 0 || self.bytes_left == 0 {
            let reason = "the limit on what is collected was reached before it";
            self.skip(pattern.as_bytes(), reason.to_owned());
            return Ok(());
        }
        self.seen.clear();
        let get = Get {
            patterns: vec![pattern.to_owned()],
            max_files: self.files_left,
            max_bytes: self.bytes_left,
            max_visited: self.caps.visited,
        };
        channel.send(GET_STREAM, ToAgent::Get(get))?;
        loop {
            let Frame { stream, message } = channel.next().await?;
            match (stream, message) {
                (GET_STREAM, ToHost::Entry(entry)) => self.begin(entry, asked, pattern).await?,
                (GET_STREAM, ToHost::Data(bytes)) => {
                    self.write(&bytes).await?;
                    channel.release(GET_STREAM, bytes.len())?;
                }
                (GET_STREAM, ToHost::EntryDone(done)) => self.finish(done).await?,
                (GET_STREAM, ToHost::Skipped(skipped)) => self.remark(&skipped)?,
                (GET_STREAM, ToHost::GetDone(done)) => return self.done(done, pattern),
                // The rest of an output that was given up.
                (stream, ToHost::Data(_) | ToHost::End) if stream > RUN_STREAM => {}
                (_, ToHost::Fault(fault)) => return Err(fault.into()),
                _ => {
                    return Err(Lost::Breach(
                        "it said something that nothing asked for while artifacts were collected",
                    ));
                }
            }
        }
    }

    async fn begin(&mut self, entry: Entry, asked: usize, pattern: &str) -> Result<(), Lost> {
        if self.current.is_some() {
            return Err(Lost::Breach("an artifact began inside another"));
        }
        if !is_inside(&entry.path, pattern) {
            return Err(Lost::Breach("it gave an artifact that was not asked for"));
        }
        if !self.seen.insert(entry.path.clone()) {
            return Err(Lost::Breach("it gave an artifact twice"));
        }
        self.files_left = self.files_left.checked_sub(1).ok_or(Lost::Breach("it gave too many artifacts"))?;
        let mode = if entry.mode & 0o100 == 0 { 0o644 } else { 0o755 };
        let begun = self.sink.begin(Arrival { asked, path: &entry.path, mode }).await;
        self.current = Some(Current {
            path: entry.path,
            size: 0,
            hasher: Sha256::new(),
            spoiled: begun.err().map(|error| format!("it cannot be kept: {error}")),
        });
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let current = self.current.as_mut().ok_or(Lost::Breach("it gave bytes of no artifact"))?;
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes.len() as u64)
            .ok_or(Lost::Breach("it gave more bytes of artifacts than it may"))?;
        current.size += bytes.len() as u64;
        if current.spoiled.is_some() {
            return Ok(());
        }
        if current.size > self.caps.file_bytes {
            current.spoiled = Some(format!("it is larger than {}", ByteSize(self.caps.file_bytes)));
        } else {
            current.hasher.update(bytes);
            current.spoiled =
                self.sink.write(bytes).await.err().map(|error| format!("it cannot be kept: {error}"));
        }
        Ok(())
    }

    async fn finish(&mut self, done: Result<(), FileError>) -> Result<(), Lost> {
        let current = self.current.take().ok_or(Lost::Breach("it ended no artifact"))?;
        let spoiled = match (current.spoiled, done) {
            (Some(reason), _) => Some(reason),
            (None, Err(error)) => Some(explain(error)),
            (None, Ok(())) => self.sink.keep().await.err().map(|error| format!("it cannot be kept: {error}")),
        };
        if let Some(reason) = spoiled {
            self.sink.discard().await;
            self.skip(&current.path, reason);
            return Ok(());
        }
        let path = printable(&current.path);
        // Two patterns may ask for one file: the sink gets it twice, the result names it once.
        if self.named.insert(path.clone()) {
            let sha256 = format!("{:x}", current.hasher.finalize());
            self.collected.artifacts.push(Artifact { path, size: current.size, sha256 });
        }
        Ok(())
    }

    fn remark(&mut self, skipped: &Skipped) -> Result<(), Lost> {
        self.remarks_left =
            self.remarks_left.checked_sub(1).ok_or(Lost::Breach("it skipped more than it may look at"))?;
        self.skip(&skipped.path, explain(skipped.error));
        Ok(())
    }

    fn done(&mut self, done: GetDone, pattern: &str) -> Result<(), Lost> {
        if self.current.is_some() {
            return Err(Lost::Breach("it was done in the middle of an artifact"));
        }
        let limit = match done.stopped_by {
            None => return Ok(()),
            Some(GetLimit::Files) => format!("more than {} files", self.caps.files),
            Some(GetLimit::Bytes) => format!("more than {}", ByteSize(self.caps.bytes)),
            Some(GetLimit::Visited) => {
                format!("more than {} directory entries to look at", self.caps.visited)
            }
        };
        self.skip(pattern.as_bytes(), format!("not all of it came: there are {limit}"));
        Ok(())
    }

    fn skip(&mut self, path: &[u8], reason: String) {
        if self.collected.skipped.len() < LISTED_SKIPS {
            let path = printable(&path[..path.len().min(LONGEST_PATH)]);
            self.collected.skipped.push(SkippedArtifact { path, reason });
        } else {
            self.collected.unlisted += 1;
        }
    }
}

/// Whether `path` is absolute, plain, and below the part of `pattern` that holds no glob.
fn is_inside(path: &[u8], pattern: &str) -> bool {
    let Some(names) = path.strip_prefix(b"/") else { return false };
    let plain = names.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."));
    let root = literal_root(pattern).as_bytes();
    let below = path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"));
    plain && below && path.len() <= LONGEST_PATH && !path.contains(&0)
}

/// The directories at the beginning of a pattern that are meant literally, without a slash at the end.
#[must_use]
pub fn literal_root(pattern: &str) -> &str {
    let Some(glob) = pattern.find(['*', '?', '[']) else { return pattern.trim_end_matches('/') };
    let root = pattern[..glob].rfind('/').map_or("", |slash| &pattern[..slash]);
    root.trim_end_matches('/')
}

#[cfg(test)]
mod tests;

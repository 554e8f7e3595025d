//! What a job leaves to be collected, and is not what it seems. The control is the same directory on the host, read as if its
//! owner were trusted.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::FileExt, fs::OpenOptionsExt, fs::symlink, net::UnixListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use worker::{Arrival, ArtifactSink, Caps, Company, Outcome};

use crate::{
    catalogue::Probe,
    inside::{Inside, LONG, told},
    looks::{Look, Looks},
};

const ASKED: [&str; 5] = ["A01", "A02", "A05", "A06", "A07"];
const DIRECTORY: &str = "/job/out";
/// All that is looked for comes in small files.
const KEPT: usize = 1 << 20;
/// A file that says that it is larger than any disk, and takes no room.
const SPARSE: u64 = 1 << 40;
/// Far longer than a file takes to open that does open.
const BLOCKED: Duration = Duration::from_millis(200);

/// What arrived.
#[derive(Debug, Default)]
struct Arrived {
    paths: Vec<Vec<u8>>,
    bytes: Vec<u8>,
    odd_modes: usize,
    total: u64,
}

impl ArtifactSink for Arrived {
    async fn begin(&mut self, arrival: Arrival<'_>) -> io::Result<()> {
        self.paths.push(arrival.path.to_vec());
        self.odd_modes += usize::from(!matches!(arrival.mode, 0o644 | 0o755));
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.total += bytes.len() as u64;
        let room = KEPT - self.bytes.len().min(KEPT);
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }

    async fn keep(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn discard(&mut self) {}
}

impl Arrived {
    fn has(&self, name: &str) -> bool {
        self.paths.iter().any(|path| path.ends_with(format!("/{name}").as_bytes()))
    }

    fn holds(&self, word: &str) -> bool {
        self.bytes.windows(word.len()).any(|window| window == word.as_bytes())
    }
}

/// What was seen of the collector, and what the controls saw.
pub(super) async fn ask(inside: &Inside<'_>, probes: &[&'static Probe]) -> (Looks, Looks) {
    let (mut looks, mut controls) = (Looks::default(), Looks::default());
    let ids: Vec<_> = probes.iter().map(|probe| probe.id).filter(|id| ASKED.contains(id)).collect();
    if ids.is_empty() {
        return (looks, controls);
    }
    let seen = match collect(inside).await {
        Ok(seen) => seen,
        Err(why) => ASKED.map(|_| Look::unknown(why.clone())),
    };
    let without = match careless(&inside.clues.folder, &inside.clues.token) {
        Ok(without) => without,
        Err(error) => ASKED.map(|_| Look::unknown(error.to_string())),
    };
    for (id, (look, control)) in ASKED.into_iter().zip(seen.into_iter().zip(without)) {
        if ids.contains(&id) {
            looks.add(id, look);
            controls.add(id, control);
        }
    }
    (looks, controls)
}

async fn collect(inside: &Inside<'_>) -> Result<[Look; 5], String> {
    let mut job = inside.job(["role=files".to_owned(), format!("directory={DIRECTORY}")], LONG)?;
    job.artifacts = vec![DIRECTORY.to_owned()];
    let mut arrived = Arrived::default();
    let result = inside.work_into(&job, Company::default(), &mut arrived).await;
    if result.outcome != Outcome::Succeeded || !arrived.has("plain") {
        return Err(format!("its files were not laid out and collected: {}", told(&result)));
    }
    let canary = arrived.holds(&inside.clues.token);
    let took = Duration::from_micros(result.phases.collect_us);
    let shown =
        result.artifacts.iter().map(|file| &file.path).chain(result.skipped.iter().map(|file| &file.path));
    let raw = shown.filter(|path| path.chars().any(char::is_control)).count();
    let nodes = ["fifo", "socket"].iter().filter(|name| arrived.has(name)).count();
    Ok([
        Look::told(
            !canary && !arrived.has("link"),
            format!("{} files came, none through a link", arrived.paths.len()),
        ),
        Look::told(!canary, "a directory that changes places with a link showed nothing of the host"),
        Look::told(
            !arrived.has("sparse") && arrived.total < Caps::default().bytes,
            format!("{} bytes came, without the file of a TiB", arrived.total),
        ),
        Look::told(
            nodes == 0 && arrived.odd_modes == 0 && took < Caps::default().time,
            format!("collected in {} ms, nothing but regular files of plain modes", took.as_millis()),
        ),
        Look::told(
            raw == 0,
            format!(
                "{raw} of {} shown paths have control characters",
                result.artifacts.len() + result.skipped.len()
            ),
        ),
    ])
}

/// The same files, collected by somebody who trusts them.
fn careless(folder: &Path, token: &str) -> io::Result<[Look; 5]> {
    let directory = folder.join("collected");
    fs::create_dir_all(&directory)?;
    let seen = read_all(&directory, folder, token);
    fs::remove_dir_all(&directory)?;
    seen
}

fn read_all(directory: &Path, folder: &Path, token: &str) -> io::Result<[Look; 5]> {
    symlink(folder.join("canary"), directory.join("link"))?;
    symlink(folder, directory.join("linked"))?;
    let leaks = |path: &str| fs::read_to_string(directory.join(path)).is_ok_and(|text| text.contains(token));
    fs::File::create(directory.join("sparse"))?.set_len(SPARSE)?;
    let beyond = fs::File::open(directory.join("sparse"))?.read_at(&mut [0], Caps::default().bytes)?;
    fs::write(directory.join(OsStr::from_bytes(b"\x1b[2Jforged")), "")?;
    let names = fs::read_dir(directory)?.flatten().map(|entry| entry.file_name());
    let raw = names.filter(|name| name.as_bytes().contains(&0x1b)).count();
    drop(UnixListener::bind(directory.join("socket"))?);
    let blocked = blocks(&directory.join("fifo"))?;
    Ok([
        Look::told(!leaks("link"), "a plain read goes through the link to the host's file"),
        Look::told(!leaks("linked/canary"), "a plain read goes through the linked directory"),
        Look::told(beyond == 0, "a plain copy goes beyond every cap"),
        Look::told(!blocked, "a plain open of a fifo blocks"),
        Look::told(raw == 0, "a plain list shows escapes as they are"),
    ])
}

/// Whether opening a fifo waits for somebody to write.
fn blocks(fifo: &Path) -> io::Result<bool> {
    mkfifo(fifo, Mode::S_IRWXU)?;
    let path = fifo.to_owned();
    let opening = thread::spawn(move || fs::File::open(path).map(|mut file| file.read(&mut [0])));
    let clock = Instant::now();
    while clock.elapsed() < BLOCKED && !opening.is_finished() {
        thread::sleep(Duration::from_millis(10));
    }
    let blocked = !opening.is_finished();
    // Sets it free: with a writer there it opens, and reads the end when that is gone.
    drop(fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo));
    let _ = opening.join();
    Ok(blocked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Seen;

    #[test]
    fn whoever_trusts_what_a_job_leaves_is_open_to_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("canary"), "the token").unwrap();
        let seen = careless(folder.path(), "the token").unwrap();
        assert!(seen.iter().all(|look| look.seen == Seen::Open), "{seen:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "all of it is gone again");
    }
}

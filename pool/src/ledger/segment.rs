//! Reads one process's segment: its whole records, and what stands behind them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::record::{Chain, Entry, Event};
use crate::id::InstanceId;

/// A segment as it is on disk.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) instance: InstanceId,
    pub(super) path: PathBuf,
    pub(super) entries: Vec<Entry>,
    /// Bytes of the whole records.
    pub(super) length: u64,
    pub(super) chain: Chain,
    pub(super) rest: Rest,
}

/// What stands behind the last whole record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// The end of a write that a crash cut off: this many bytes, and no whole line after them.
    Torn(u64),
    /// Something that no crash leaves.
    Damage {
        line: usize,
        what: String,
    },
}

impl Segment {
    pub(super) fn read(path: &Path, instance: InstanceId) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let mut segment = Self {
            instance,
            path: path.to_owned(),
            entries: Vec::new(),
            length: 0,
            chain: Chain::default(),
            rest: Rest::Nothing,
        };
        let mut rest = &bytes[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            match segment.take(&rest[..end]) {
                Ok(()) => {
                    segment.length += end as u64 + 1;
                    rest = &rest[end + 1..];
                }
                Err(what) => {
                    segment.rest = segment.judge(rest, what);
                    return Ok(segment);
                }
            }
        }
        if !rest.is_empty() {
            segment.rest = segment.judge(rest, "it does not end".to_owned());
        }
        Ok(segment)
    }

    fn take(&mut self, line: &[u8]) -> Result<(), String> {
        let line = std::str::from_utf8(line).map_err(|_| "not text".to_owned())?;
        let (entry, chain) = self.chain.read(line)?;
        self.entries.push(entry);
        self.chain = chain;
        Ok(())
    }

    /// A crash tears the end of the last write. So a whole line behind the bad one, or a bad line in a
    /// segment that was closed in order, is damage.
    fn judge(&self, rest: &[u8], what: String) -> Rest {
        let lines = rest.split(|byte| *byte == b'\n').skip(1).any(|line| line.first() == Some(&b'{'));
        if lines || self.closed() {
            Rest::Damage { line: self.entries.len() + 1, what }
        } else {
            Rest::Torn(rest.len() as u64)
        }
    }

    pub(super) fn closed(&self) -> bool {
        matches!(self.entries.last(), Some(Entry { event: Event::Closed, .. }))
    }
}

pub(super) fn segment_path(directory: &Path, instance: InstanceId, serial: u32) -> PathBuf {
    directory.join(format!("{instance}-{serial:06}.log"))
}

/// Every segment of a node, each process's in their order; files of other names are not ours.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<(InstanceId, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        if let Some(instance) =
            name.and_then(|name| name.split_once('-')).and_then(|(name, _)| name.parse().ok())
        {
            found.push((instance, path));
        }
    }
    found.sort();
    Ok(found)
}

//! Advisory locks between mayfly processes: `flock`, so that the kernel frees what a killed process held.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;

/// Takes the lock at once or says that another holds it.
pub(crate) fn try_exclusive(file: &File) -> std::io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The processes that hold a lock on this file, as `name (pid 123)`. Best effort: for messages only.
pub(crate) fn holders(file: &File) -> Vec<String> {
    let (Ok(meta), Ok(table)) = (file.metadata(), fs::read_to_string("/proc/locks")) else {
        return Vec::new();
    };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let mut holders: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // `1: FLOCK ADVISORY READ 812 fe:00:4242 0 EOF`; a waiting one has an arrow before its kind.
        .filter(|fields| fields.get(5) == Some(&place.as_str()))
        .map(|fields| describe(fields[4]))
        .collect();
    holders.dedup();
    holders
}

fn describe(pid: &str) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} (pid {pid})", if name.is_empty() { "a process" } else { name.trim() })
}

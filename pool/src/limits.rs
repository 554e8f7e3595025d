//! What one sandbox may use, and the least that can start at all.

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MIB: u64 = 1024 * 1024;

/// The agent needs room of its own beside the job, in bytes. It is added to the job's memory.
pub(crate) const AGENT_MEMORY: u64 = 16 * MIB;

/// The same for a sandbox with a kernel of its own, which holds caches and tables beside what the job has.
pub(crate) const KERNEL_MEMORY: u64 = 64 * MIB;

/// The agent and its armed child before the job is there; the job's own limit counts only the job.
pub(crate) const AGENT_PIDS: u64 = 8;

/// What a sandbox may use. Numbers are exact, not classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time per second, in thousandths of one CPU.
    pub cpu_millis: u32,
    /// Memory of the job's processes and of the files it writes, in bytes. There is no swap.
    pub memory: u64,
    /// Processes and threads of the job.
    pub pids: u32,
    /// Everything writable together (`/tmp`, `/job`, `/dev/shm`, a writable root), in bytes. Held in memory.
    pub disk: u64,
    /// Files and directories on that disk.
    pub inodes: u64,
    /// Open files of one process.
    pub open_files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_millis: 1000,
            memory: 512 * MIB,
            pids: 128,
            disk: 256 * MIB,
            inodes: 65_536,
            open_files: 1024,
        }
    }
}

/// A limit with which no sandbox could start, or that could not hold.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    /// Below what a process needs to start.
    #[error("{what} of {given} is below the least that can start, {least}")]
    TooLow {
        /// Which limit.
        what: &'static str,
        /// What was asked.
        given: String,
        /// The least.
        least: String,
    },
    /// Files live in memory, so the disk must leave room for the processes.
    #[error(
        "disk of {disk} bytes leaves no room in a memory of {memory} bytes: files are held in memory; ask for less disk or more memory"
    )]
    DiskAboveMemory {
        /// The disk asked for.
        disk: u64,
        /// The memory asked for.
        memory: u64,
    },
}

impl Limits {
    /// The least memory with which a job can start, in bytes.
    pub const LEAST_MEMORY: u64 = 8 * MIB;
    /// The least disk, in bytes.
    pub const LEAST_DISK: u64 = 64 * 1024;

    /// The disk that a job gets which asks for memory only: half of it.
    #[must_use]
    pub fn disk_for(memory: u64) -> u64 {
        memory / 2
    }

    /// Whether a sandbox with these limits has room for all that is asked.
    pub(crate) fn holds(&self, asked: &Self) -> bool {
        self.cpu_millis >= asked.cpu_millis
            && self.memory >= asked.memory
            && self.pids >= asked.pids
            && self.disk >= asked.disk
            && self.inodes >= asked.inodes
            && self.open_files == asked.open_files
    }

    /// Checks that a sandbox can start within these limits and that they can all hold at once.
    pub fn check(&self) -> Result<(), LimitError> {
        let least = |what, given: u64, least: u64, unit: &str| {
            if given < least {
                Err(LimitError::TooLow {
                    what,
                    given: format!("{given}{unit}"),
                    least: format!("{least}{unit}"),
                })
            } else {
                Ok(())
            }
        };
        least("memory", self.memory, Self::LEAST_MEMORY, " bytes")?;
        least("cpus", u64::from(self.cpu_millis), 10, "/1000")?;
        least("pids", u64::from(self.pids), 1, "")?;
        least("disk", self.disk, Self::LEAST_DISK, " bytes")?;
        least("inodes", self.inodes, 16, "")?;
        least("open files", self.open_files, 8, "")?;
        // A full disk must be ENOSPC and never out of memory, so an eighth stays for the processes.
        if self.disk > self.memory - self.memory / 8 {
            return Err(LimitError::DiskAboveMemory { disk: self.disk, memory: self.memory });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_can_start() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn a_disk_that_fills_the_memory_is_refused() {
        let limits = Limits { disk: 512 * MIB, ..Limits::default() };
        assert!(matches!(limits.check(), Err(LimitError::DiskAboveMemory { .. })));
    }

    #[test]
    fn memory_below_the_least_is_named_with_the_least() {
        let limits = Limits { memory: 1024, disk: 512, ..Limits::default() };
        assert_eq!(
            limits.check().unwrap_err().to_string(),
            "memory of 1024 bytes is below the least that can start, 8388608 bytes"
        );
    }
}

//! What the pool tells the spawner, and what comes back.
//!
//! One datagram each way. Descriptors ride beside it in the order: the agent's stream, the agent's cgroup
//! entry, the job's cgroup entry; back comes the sandbox's pidfd.

use serde::{Deserialize, Serialize};

/// One sandbox to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The image's root directory on the host.
    pub(super) rootfs: String,
    /// Host uid and gid of the sandbox's uid and gid 0.
    pub(super) id_base: u32,
    /// Size of the one throw-away disk, in bytes.
    pub(super) disk: u64,
    /// Inodes on it.
    pub(super) inodes: u64,
    /// Whether the root is writable: an overlay whose upper layer is on that disk.
    pub(super) writable_root: bool,
    /// Owner of `/job`, inside.
    pub(super) job_uid: u32,
    pub(super) job_gid: u32,
    pub(super) hostname: String,
    /// The empty directory on which the new root is put before it becomes the root.
    pub(super) root_point: String,
    /// Another one, on which the throw-away disk lies until its directories are in their places.
    pub(super) disk_point: String,
    pub(super) entries: Entries,
}

/// How many of the descriptors are which.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Entries {
    /// cgroup v1: this many `tasks` files for the agent, as many for the job.
    Tasks(u8),
    /// cgroup v2: one directory for the agent, one for the job.
    Directories,
}

/// The spawner's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The sandbox's first process runs. What fails in it from now on comes through its own stream.
    Spawned,
    /// Nothing was left behind.
    Failed { step: String, errno: i32 },
}

/// A step of the making that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: &'static str,
    pub(super) errno: i32,
}

/// Names the step that an error belongs to.
pub(super) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failed>;
}

impl<T, E: Into<std::io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Failed> {
        self.map_err(|error| Failed { step, errno: error.into().raw_os_error().unwrap_or(0) })
    }
}

/// The largest plan, in bytes: paths are at most a page each.
pub(super) const MAX_PLAN: usize = 16 * 1024;

/// The largest answer, in bytes: a step is a phrase.
pub(super) const MAX_ANSWER: usize = 512;

/// The most descriptors beside a plan.
pub(super) const MAX_FDS: usize = 24;

//! What the pool tells the spawner, and what comes back.
//!
//! One datagram each way, with descriptors beside it: each [`Task`] says which.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// What the spawner is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Clone a chroot sandbox. Descriptors: the agent's stream, the agent's cgroup entry, the job's cgroup entry; back
    /// comes the sandbox's pidfd.
    Chroot(Plan),
    /// Start systemd-nspawn. Descriptors: stdin, stdout, stderr, its cgroup entry; back come its pidfd and the socket
    /// on which it says that its container runs.
    Nspawn(Launch),
    /// Start a virtual machine. Descriptors: those that QEMU keeps, its cgroup entry; back comes its pidfd.
    Machine(crate::vm::Launch),
    /// Give another program's container the root of a chroot sandbox. No descriptors.
    Enclose {
        plan: Plan,
        kind: Kind,
        /// Its first process. Whoever asks holds its pidfd, and looks afterwards whether it still lives.
        leader: i32,
    },
}

/// Whose users those of a container are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Its own: it has a user namespace.
    OwnUsers,
    /// The host's: it has none, and only the ids that mayfly gave it.
    HostsUsers,
}

/// How to start systemd-nspawn.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) program: String,
    /// Behind the program's name.
    pub(crate) args: Vec<String>,
    /// The image's root directory on the host.
    pub(crate) rootfs: String,
    /// cgroup v1: the one directory that it finds below `/sys/fs/cgroup`, in the place of systemd's own tree.
    pub(crate) legacy_tree: Option<String>,
    pub(crate) entry: Entries,
}

/// One sandbox to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The image's root directory on the host.
    pub(crate) rootfs: String,
    /// Host uid and gid of the sandbox's uid and gid 0.
    pub(crate) id_base: u32,
    /// Size of the one throw-away disk, in bytes.
    pub(crate) disk: u64,
    /// Inodes on it.
    pub(crate) inodes: u64,
    /// Whether the root is writable: an overlay whose upper layer is on that disk.
    pub(crate) writable_root: bool,
    /// Owner of `/job`, inside.
    pub(crate) job_uid: u32,
    pub(crate) job_gid: u32,
    pub(crate) hostname: String,
    /// The empty directory on which the new root is put before it becomes the root.
    pub(crate) root_point: String,
    /// Another one, on which the throw-away disk lies until its directories are in their places.
    pub(crate) disk_point: String,
    pub(crate) entries: Entries,
}

/// How many of the descriptors are which.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Entries {
    /// cgroup v1: this many `tasks` files for the agent, as many for the job.
    Tasks(u8),
    /// cgroup v2: one directory for the agent, one for the job.
    Directories,
}

/// The spawner's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// A process that was to be cloned runs. What fails in it from now on comes through its own stream.
    Done,
    /// Nothing was left behind.
    Failed { step: String, errno: i32 },
}

impl From<Failed> for Answer {
    fn from(Failed { step, errno }: Failed) -> Self {
        Self::Failed { step: step.to_owned(), errno }
    }
}

/// The descriptors of a task that was done, or the answer that tells why it was not.
pub(crate) type Outcome = Result<Vec<OwnedFd>, Answer>;

/// A step of the making that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    pub(crate) errno: i32,
}

/// Names the step that an error belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failed>;
}

impl<T, E: Into<std::io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Failed> {
        self.map_err(|error| Failed { step, errno: error.into().raw_os_error().unwrap_or(0) })
    }
}

/// The largest plan, in bytes: paths are at most a page each.
pub(crate) const MAX_PLAN: usize = 16 * 1024;

/// The largest answer, in bytes: a step is a phrase.
pub(crate) const MAX_ANSWER: usize = 512;

/// The most descriptors beside a plan.
pub(crate) const MAX_FDS: usize = 24;

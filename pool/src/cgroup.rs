//! One sandbox's cgroups: agent and job apart, the limits on the job.
//!
//! The kernel takes processes only through files and flags that differ between v1 and v2, and so does what a
//! sandbox is given to enter its cgroups: see [`Entry`]. Own code and no crate: a sandbox must *attach
//! itself* while it is made (a write of a pid from outside waits some 14 ms for the kernel when cgroups have
//! been idle; a single thread that writes `0` into `tasks` does not wait at all), and the crates only attach
//! from outside.

mod delegated;
mod place;
mod v1;
mod v2;

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use thiserror::Error;

use self::place::{mounts, place_of};
pub(crate) use self::{
    delegated::{BOOTED, Delegated, Form},
    place::{every_tree, is_frozen},
};
use crate::{body::Usage, limits::Limits};

/// The leaf with the job's processes.
const JOB: &str = "job";

/// The host's cgroup hierarchies, as found at start.
#[derive(Debug, Clone)]
pub(crate) enum Hierarchy {
    V1(v1::Hierarchy),
    V2(v2::Hierarchy),
}

/// How a process enters a cgroup without anybody writing its pid.
#[derive(Debug)]
pub(crate) enum Entry {
    /// v1: open `tasks` files; the process writes `0` into each while it has one thread.
    Tasks(Vec<OwnedFd>),
    /// v2: the directory, for `clone3` with `CLONE_INTO_CGROUP`.
    Directory(OwnedFd),
}

/// The cgroups of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    hierarchy: Hierarchy,
    /// `mayfly-<instance>/<sandbox>` behind the hierarchy's base, the same below each controller.
    name: PathBuf,
    /// Whether agent and job are one to the host: they have a kernel of their own.
    whole: bool,
}

/// A cgroup cannot be had, and at which file.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No usable controllers.
    #[error(
        "no cgroup controller \"{0}\" on this host: mount cgroup v2, or v1 with memory, pids, cpu, cpuacct and devices"
    )]
    Missing(&'static str),
    /// The mount table could not be read.
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// A cgroup could not be made.
    #[error("cannot make cgroup {path}")]
    Make {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A limit or an entry could not be set.
    #[error("cannot write \"{value}\" to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What should have been written.
        value: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A process is not in one cgroup of its own.
    #[error("process {pid} is not in one cgroup of its own, the same for each controller: {table}")]
    Elsewhere {
        /// Which process.
        pid: i32,
        /// Where it is.
        table: String,
    },
    /// systemd gives no part of its tree.
    #[error(
        "systemd gives no scope in which sandboxes may have cgroups: {said} (or start mayfly in a unit with Delegate=yes)"
    )]
    Scope {
        /// Its own words.
        said: String,
    },
    /// A file of the cgroup could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl Hierarchy {
    /// Looks at the mount table: pure v2, or v1 controllers (alone, or with a v2 tree that holds none).
    pub(crate) fn find() -> Result<Self, CgroupError> {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let mounts = mounts(&table);
        let v2 =
            mounts.iter().find(|(kind, _, _)| *kind == "cgroup2").map(|(_, point, _)| PathBuf::from(point));
        if let Some(hierarchy) = v2.and_then(v2::Hierarchy::with_controllers) {
            return Ok(Self::V2(hierarchy));
        }
        v1::Hierarchy::find(&mounts).map(Self::V1)
    }

    /// Takes the part of the trees that is this process's to write, and makes all cgroups there from now on. `scope` is
    /// what the unit is called if it takes one.
    pub(crate) fn delegate(&mut self, scope: &str) -> Result<Delegated, CgroupError> {
        match self {
            Self::V1(_) => Ok(Delegated::top()),
            Self::V2(hierarchy) => {
                let delegated = Delegated::take(hierarchy.root(), scope)?;
                hierarchy.begin_at(delegated.base());
                Ok(delegated)
            }
        }
    }

    /// The cgroup that sandboxes' cgroups are below, from the top of each tree.
    pub(crate) fn base(&self) -> &Path {
        match self {
            Self::V1(_) => Path::new(""),
            Self::V2(hierarchy) => hierarchy.base(),
        }
    }

    /// Makes what all sandboxes of an instance share.
    pub(crate) fn prepare(&self, instance: &Path) -> Result<(), CgroupError> {
        match self {
            Self::V1(hierarchy) => hierarchy.prepare(instance),
            Self::V2(_) => Ok(()),
        }
    }

    /// By which names `/proc/PID/cgroup` knows the trees that limits are in.
    fn controllers(&self) -> &'static [&'static str] {
        match self {
            Self::V1(_) => &v1::LIMITING,
            // The one tree has no controllers in its line.
            Self::V2(_) => &[""],
        }
    }

    /// The top of every tree in which sandboxes have cgroups.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        match self {
            Self::V1(hierarchy) => hierarchy.roots(),
            Self::V2(hierarchy) => vec![hierarchy.root().to_owned()],
        }
    }
}

impl Cgroup {
    /// Makes the cgroups with all limits in place. What was made before a failure is removed.
    ///
    /// `agent_uid` is the host's uid of the sandbox's root, who must be able to enter the job's leaf on v2.
    pub(crate) fn make(
        hierarchy: &Hierarchy,
        name: &Path,
        limits: &Limits,
        agent_uid: u32,
    ) -> Result<Self, CgroupError> {
        let cgroup = Self { hierarchy: hierarchy.clone(), name: hierarchy.base().join(name), whole: false };
        let made = match hierarchy {
            Hierarchy::V1(v1) => v1.make(&cgroup.name, limits),
            Hierarchy::V2(v2) => v2.make(&cgroup.name, limits, agent_uid),
        };
        match made {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // Best effort: the error that stopped the making says more than a second one.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// Takes over the cgroup that another program made for `leader`, which is alone there, and makes the job's leaf in it.
    /// `unique` is a part of its path that no other cgroup has.
    pub(crate) fn within(
        hierarchy: &Hierarchy,
        leader: i32,
        unique: &str,
        limits: &Limits,
    ) -> Result<Self, CgroupError> {
        let cgroup = Self::of(hierarchy, leader, unique, false)?;
        match hierarchy {
            Hierarchy::V1(v1) => v1.within(&cgroup.name, limits)?,
            Hierarchy::V2(v2) => v2.within(&cgroup.name, limits, leader)?,
        }
        Ok(cgroup)
    }

    /// The same where a kernel of its own lies between, so that agent and job cannot be told apart. An empty leaf keeps
    /// the cgroup, and what it has counted, when its processes have ended.
    pub(crate) fn around(
        hierarchy: &Hierarchy,
        leader: i32,
        unique: &str,
        limits: &Limits,
    ) -> Result<Self, CgroupError> {
        let cgroup = Self::of(hierarchy, leader, unique, true)?;
        for root in cgroup.own_roots() {
            make_dir(&root.join(&cgroup.name).join(JOB))?;
        }
        cgroup.limit(limits)?;
        Ok(cgroup)
    }

    fn of(hierarchy: &Hierarchy, leader: i32, unique: &str, whole: bool) -> Result<Self, CgroupError> {
        let path = PathBuf::from(format!("/proc/{leader}/cgroup"));
        let table = fs::read_to_string(&path).map_err(|error| CgroupError::Open { path, error })?;
        let name = place_of(&table, hierarchy.controllers(), unique)
            .ok_or_else(|| CgroupError::Elsewhere { pid: leader, table: table.trim().replace('\n', ", ") })?;
        Ok(Self { hierarchy: hierarchy.clone(), name, whole })
    }

    /// Sets the limits anew.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        match (&self.hierarchy, self.whole) {
            (Hierarchy::V1(v1), false) => v1.limit(&self.name, limits),
            (Hierarchy::V2(v2), false) => v2.limit(&self.name, limits),
            (Hierarchy::V1(v1), true) => v1.limit_whole(&self.name, limits),
            (Hierarchy::V2(v2), true) => v2.limit_whole(&self.name, limits),
        }
    }

    /// Sets the share of the CPUs anew.
    pub(crate) fn slow_down(&self, limits: &Limits) -> Result<(), CgroupError> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.limit_cpu(&self.name, limits),
            Hierarchy::V2(v2) => v2.limit_cpu(&self.name, limits),
        }
    }

    /// How the agent enters its cgroup.
    pub(crate) fn agent_entry(&self) -> Result<Entry, CgroupError> {
        self.entry(&self.agent())
    }

    /// How the job's process enters its cgroup.
    pub(crate) fn job_entry(&self) -> Result<Entry, CgroupError> {
        self.entry(&self.job())
    }

    /// The same for a process that has devices of its own, such as `/dev/kvm`. Only v1 asks for those by cgroup.
    pub(crate) fn job_entry_but_devices(&self) -> Result<Entry, CgroupError> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.tasks_but_devices(&self.job()).map(Entry::Tasks),
            Hierarchy::V2(_) => self.job_entry(),
        }
    }

    fn entry(&self, cgroup: &Path) -> Result<Entry, CgroupError> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.tasks(cgroup).map(Entry::Tasks),
            Hierarchy::V2(v2) => v2.directory(cgroup).map(Entry::Directory),
        }
    }

    /// On v1 the agent lives in the sandbox's own cgroup, above the job's: each cgroup less is a tenth of a
    /// millisecond less for every job. v2 allows no process in an inner one.
    fn agent(&self) -> PathBuf {
        match &self.hierarchy {
            Hierarchy::V1(_) => self.name.clone(),
            Hierarchy::V2(_) => self.name.join("agent"),
        }
    }

    fn job(&self) -> PathBuf {
        self.name.join(JOB)
    }

    /// Whether agent and job are one to the host.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What the job used so far. A counter that cannot be read counts as nothing: usage is never a reason to fail.
    pub(crate) fn usage(&self) -> Usage {
        let counted = if self.whole { self.name.clone() } else { self.job() };
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.usage(&counted),
            Hierarchy::V2(v2) => v2.usage(&counted),
        }
    }

    /// The host's pids of the job's processes.
    pub(crate) fn job_pids(&self) -> Vec<i32> {
        self.pids(&self.job())
    }

    /// The host's pids in the agent's cgroup: the agent's, and no other's.
    pub(crate) fn agent_pids(&self) -> Vec<i32> {
        self.pids(&self.agent())
    }

    /// The host's pids in one of the cgroups that a program of the agent's made for itself.
    pub(crate) fn pids_below_agent(&self, cgroup: &str) -> Vec<i32> {
        self.pids(&self.agent().join(cgroup))
    }

    fn pids(&self, cgroup: &Path) -> Vec<i32> {
        read_pids(&self.counted(cgroup).join("cgroup.procs"))
    }

    /// A cgroup's directory in the tree that counts processes.
    fn counted(&self, cgroup: &Path) -> PathBuf {
        let root = match &self.hierarchy {
            Hierarchy::V1(v1) => v1.pids_root(),
            Hierarchy::V2(v2) => v2.root(),
        };
        root.join(cgroup)
    }

    /// v1: the agent's cgroup in the tree that counts processes, for a program that wants a tree of its own to put
    /// cgroups in. On v2 it is in its leaf of the only tree already.
    pub(crate) fn legacy_tree(&self) -> Option<PathBuf> {
        matches!(self.hierarchy, Hierarchy::V1(_)).then(|| self.counted(&self.agent()))
    }

    /// Brings a process of the agent's into the job's leaf, where it cannot enter by itself. Takes some 14 ms when
    /// cgroups have been idle: do it before the sandbox is clean.
    pub(crate) fn adopt(&self, pid: i32) -> Result<(), CgroupError> {
        let (job, pid) = (self.job(), pid.to_string());
        self.own_roots().into_iter().try_for_each(|root| write(&root.join(&job).join("cgroup.procs"), &pid))
    }

    /// The trees in which the sandbox has cgroups of its own.
    fn own_roots(&self) -> Vec<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.split_roots(),
            Hierarchy::V2(v2) => vec![v2.root().to_owned()],
        }
    }

    /// The host's pids in the agent's cgroup but for one.
    pub(crate) fn beside(&self, agent: i32) -> Vec<i32> {
        self.agent_pids().into_iter().filter(|pid| *pid != agent).collect()
    }

    /// Lets whoever made the cgroup remove it: runsc tries for five seconds. What it has counted goes with it.
    pub(crate) fn let_go(&self) {
        for root in self.own_roots().into_iter().filter(|_| self.whole) {
            // What is still there goes with the rest.
            let _ = fs::remove_dir(root.join(self.job()));
        }
    }

    /// Removes the cgroups. All processes must be gone.
    pub(crate) fn remove(&self) -> Result<(), (PathBuf, io::Error)> {
        let mut cgroups = vec![self.job(), self.agent(), self.name.clone()];
        cgroups.dedup();
        for root in self.own_roots() {
            for path in cgroups.iter().map(|cgroup| root.join(cgroup)) {
                match remove_leaf(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((path, error)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Removes a cgroup, with the cgroups that a program made below it if there are any.
fn remove_leaf(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
                fs::remove_dir(entry.path())?;
            }
            fs::remove_dir(path)
        }
        removed => removed,
    }
}

/// The pids in a `cgroup.procs` file; none if it is not there.
pub(crate) fn read_pids(path: &Path) -> Vec<i32> {
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

fn make_dir(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(path).map_err(|error| CgroupError::Make { path: path.to_owned(), error })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|error| CgroupError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        error,
    })
}

fn open(path: &Path, options: &fs::OpenOptions) -> Result<OwnedFd, CgroupError> {
    options.open(path).map(File::into).map_err(|error| CgroupError::Open { path: path.to_owned(), error })
}

fn read_number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The value beside `key` in a flat keyed file such as `memory.events`.
fn read_key(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

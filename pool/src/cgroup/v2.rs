//! cgroup v2: one tree for all controllers.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, chown},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::{CgroupError, make_dir, open, read_key, read_number, write};
use crate::{
    body::Usage,
    limits::{AGENT_MEMORY, AGENT_PIDS, KERNEL_MEMORY, Limits},
};

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
const CPU_PERIOD_US: u64 = 100_000;

/// Where the tree is mounted, and which part of it is mayfly's.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchy {
    root: PathBuf,
    /// Relative to the root; empty where all of it is.
    base: PathBuf,
}

impl Hierarchy {
    /// The tree, if it holds the controllers that limits need.
    pub(super) fn with_controllers(root: PathBuf) -> Option<Self> {
        let there = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
        let there: Vec<&str> = there.split_whitespace().collect();
        CONTROLLERS
            .iter()
            .all(|controller| there.contains(controller))
            .then(|| Self { root, base: PathBuf::new() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn begin_at(&mut self, base: &Path) {
        base.clone_into(&mut self.base);
    }

    pub(super) fn make(&self, name: &Path, limits: &Limits, agent_uid: u32) -> Result<(), CgroupError> {
        let sandbox = self.root.join(name);
        self.make_below_base(name)?;
        self.delegate_down_to(name)?;
        let (agent, job) = (sandbox.join("agent"), sandbox.join("job"));
        make_dir(&agent)?;
        make_dir(&job)?;

        self.limit(name, limits)?;
        write(&agent.join("pids.max"), &AGENT_PIDS.to_string())?;
        for (file, value) in [("memory.oom.group", "1"), ("cgroup.max.descendants", "0")] {
            write(&job.join(file), value)?;
        }
        // The file is missing on a kernel without swap, where nothing can be swapped.
        for swap in [sandbox.join("memory.swap.max"), job.join("memory.swap.max")] {
            if swap.exists() {
                write(&swap, "0")?;
            }
        }
        // CLONE_INTO_CGROUP asks for write access to the target and to the common ancestor of both leaves.
        for procs in [sandbox.join("cgroup.procs"), job.join("cgroup.procs")] {
            chown(&procs, Some(agent_uid), None).map_err(|error| CgroupError::Open { path: procs, error })?;
        }
        Ok(())
    }

    /// The same in a cgroup that is there, with `leader` in it: no process may stay in one that hands controllers down.
    pub(super) fn within(&self, name: &Path, limits: &Limits, leader: i32) -> Result<(), CgroupError> {
        let agent = self.root.join(name).join("agent");
        make_dir(&agent)?;
        write(&agent.join("cgroup.procs"), &leader.to_string())?;
        // It is the host who brings the job's process to its leaf: nobody else need be able to.
        self.make(name, limits, 0)
    }

    pub(super) fn limit(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let sandbox = self.root.join(name);
        let job = sandbox.join("job");
        write(&sandbox.join("memory.max"), &(limits.memory + AGENT_MEMORY).to_string())?;
        write(&job.join("memory.max"), &limits.memory.to_string())?;
        write(&job.join("pids.max"), &limits.pids.to_string())?;
        self.limit_cpu(name, limits)
    }

    pub(super) fn limit_cpu(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let job = self.root.join(name).join("job");
        write(&job.join("cpu.max"), &cpu_max(limits))
    }

    /// Never the base itself: one that systemd has taken away is not made again behind its back.
    fn make_below_base(&self, name: &Path) -> Result<(), CgroupError> {
        let Ok(below) = name.strip_prefix(&self.base) else { return Ok(()) };
        let mut directory = self.root.join(&self.base);
        for part in below {
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Make { path: directory, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands the controllers down to the sandbox's directory, from the base or, in a cgroup of somebody else's, from there:
    /// what is above is its owner's to write.
    fn delegate_down_to(&self, name: &Path) -> Result<(), CgroupError> {
        let wanted = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
        let mut ours: Vec<_> =
            name.ancestors().filter(|part| *part == name || part.starts_with(&self.base)).collect();
        ours.reverse();
        ours.into_iter()
            .try_for_each(|part| write(&self.root.join(part).join("cgroup.subtree_control"), &wanted))
    }

    pub(super) fn directory(&self, leaf: &Path) -> Result<OwnedFd, CgroupError> {
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        open(&self.root.join(leaf), &options)
    }

    /// Limits a sandbox with a kernel of its own, which is one to the host's.
    pub(super) fn limit_whole(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let sandbox = self.root.join(name);
        write(&sandbox.join("memory.max"), &(limits.memory + KERNEL_MEMORY).to_string())?;
        write(&sandbox.join("cpu.max"), &cpu_max(limits))
    }

    pub(super) fn usage(&self, cgroup: &Path) -> Usage {
        let job = self.root.join(cgroup);
        Usage {
            cpu: Duration::from_micros(read_key(&job.join("cpu.stat"), "usage_usec")),
            // memory.peak came with Linux 5.19; before it the peak is not known to the host.
            peak_memory: read_number(&job.join("memory.peak")),
            oom_kills: read_key(&job.join("memory.events"), "oom_kill"),
        }
    }
}

fn cpu_max(limits: &Limits) -> String {
    format!("{} {CPU_PERIOD_US}", u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of plain files: what would be written, and where.
    fn planted(directories: &[&str]) -> (tempfile::TempDir, Hierarchy) {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let mut hierarchy = Hierarchy { root: root.path().to_owned(), base: PathBuf::new() };
        hierarchy.begin_at(Path::new("a.slice/our.scope"));
        (root, hierarchy)
    }

    fn hands_down(root: &Path, cgroup: &str) -> bool {
        root.join(cgroup).join("cgroup.subtree_control").exists()
    }

    #[test]
    fn controllers_are_handed_down_from_the_base_and_never_above_it() {
        let (root, hierarchy) = planted(&["a.slice/our.scope/mayfly-1/sandbox"]);
        hierarchy.delegate_down_to(Path::new("a.slice/our.scope/mayfly-1/sandbox")).unwrap();
        for ours in ["a.slice/our.scope", "a.slice/our.scope/mayfly-1", "a.slice/our.scope/mayfly-1/sandbox"]
        {
            assert!(hands_down(root.path(), ours), "{ours}");
        }
        assert!(!hands_down(root.path(), "a.slice") && !hands_down(root.path(), ""));
    }

    #[test]
    fn of_a_container_that_another_program_made_only_its_own_cgroup_is_written() {
        let (root, hierarchy) = planted(&["b.slice/docker-1.scope"]);
        hierarchy.delegate_down_to(Path::new("b.slice/docker-1.scope")).unwrap();
        assert!(hands_down(root.path(), "b.slice/docker-1.scope"));
        assert!(!hands_down(root.path(), "b.slice") && !hands_down(root.path(), ""));
    }

    #[test]
    fn a_base_that_systemd_took_away_is_not_made_again() {
        let (root, hierarchy) = planted(&["a.slice"]);
        let made = hierarchy.make(Path::new("a.slice/our.scope/mayfly-1/s"), &Limits::default(), 0);
        assert!(matches!(made, Err(CgroupError::Make { .. })), "{made:?}");
        assert!(!root.path().join("a.slice/our.scope").exists());
    }
}

//! cgroup v1: one tree for each controller.
//!
//! Processes need no freezer here: a sandbox's first process is the init of its pid namespace, and the
//! kernel ends the whole namespace with it.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{CgroupError, make_dir, open, read_key, read_number, write};
use crate::{
    body::Usage,
    limits::{AGENT_MEMORY, AGENT_PIDS, KERNEL_MEMORY, Limits},
};

/// The controllers of the trees in which each sandbox has cgroups.
pub(super) const LIMITING: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];

const CPU_PERIOD_US: u64 = 100_000;

/// Where the controllers are mounted.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchy {
    memory: PathBuf,
    pids: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
    devices: PathBuf,
}

/// What Docker lets every container open: null, zero, full, random, urandom, tty, ptmx and pts. And, as there too, the
/// making of nodes, which opens none and is refused in a user namespace: systemd-nspawn puts its `/dev` together
/// from here.
const DEVICES: [&str; 9] = [
    "c 1:3 rw",
    "c 1:5 rw",
    "c 1:7 rw",
    "c 1:8 rw",
    "c 1:9 rw",
    "c 5:0 rw",
    "c 5:2 rw",
    "c 136:* rw",
    "c *:* m",
];

impl Hierarchy {
    pub(super) fn find(mounts: &[(&str, &str, &str)]) -> Result<Self, CgroupError> {
        let place = |controller: &'static str| {
            mounts
                .iter()
                .find(|(kind, _, options)| {
                    *kind == "cgroup" && options.split(',').any(|word| word == controller)
                })
                .map(|(_, point, _)| PathBuf::from(point))
                .ok_or(CgroupError::Missing(controller))
        };
        Ok(Self {
            memory: place("memory")?,
            pids: place("pids")?,
            cpu: place("cpu")?,
            cpuacct: place("cpuacct")?,
            devices: place("devices")?,
        })
    }

    pub(super) fn pids_root(&self) -> &Path {
        &self.pids
    }

    /// Each tree once.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        let mut roots = self.split_roots();
        roots.push(self.devices.clone());
        roots
    }

    /// The trees in which each sandbox has cgroups of its own; cpu and cpuacct often share one.
    pub(super) fn split_roots(&self) -> Vec<PathBuf> {
        let mut roots = vec![&self.memory, &self.pids, &self.cpu, &self.cpuacct];
        roots.sort();
        roots.dedup();
        roots.into_iter().cloned().collect()
    }

    /// What devices may be opened is the same for all of an instance's sandboxes.
    pub(super) fn prepare(&self, instance: &Path) -> Result<(), CgroupError> {
        let devices = self.devices.join(instance);
        make_dir(&devices)?;
        write(&devices.join("devices.deny"), "a")?;
        DEVICES.into_iter().try_for_each(|rule| write(&devices.join("devices.allow"), rule))
    }

    pub(super) fn make(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        for root in self.split_roots() {
            make_dir(&root.join(name).join("job"))?;
        }
        self.limit(name, limits)
    }

    /// The same in cgroups that are there, with their process in them.
    pub(super) fn within(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        self.make(name, limits)
    }

    /// The limit of memory must not lie above the one of memory with swap at any time, so a limit can only become
    /// tighter.
    pub(super) fn limit(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let memory = self.memory.join(name);
        limit_memory(&memory.join("job"), limits.memory)?;
        limit_memory(&memory, limits.memory + AGENT_MEMORY)?;

        let pids = self.pids.join(name);
        write(&pids.join("pids.max"), &(AGENT_PIDS + u64::from(limits.pids)).to_string())?;
        write(&pids.join("job/pids.max"), &limits.pids.to_string())?;
        self.limit_cpu(name, limits)
    }

    pub(super) fn limit_cpu(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let cpu = self.cpu.join(name).join("job");
        write(&cpu.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
        write(&cpu.join("cpu.cfs_quota_us"), &cpu_quota(limits).to_string())
    }

    /// By what a process enters a sandbox's cgroup, and the devices' one of its instance.
    pub(super) fn tasks(&self, cgroup: &Path) -> Result<Vec<OwnedFd>, CgroupError> {
        let instance = cgroup.iter().next().unwrap_or_default();
        self.entries(cgroup, Some(self.devices.join(instance)))
    }

    /// The same for a process with devices that no sandbox has, and a `/dev` that has nothing else.
    pub(super) fn tasks_but_devices(&self, cgroup: &Path) -> Result<Vec<OwnedFd>, CgroupError> {
        self.entries(cgroup, None)
    }

    fn entries(&self, cgroup: &Path, devices: Option<PathBuf>) -> Result<Vec<OwnedFd>, CgroupError> {
        let mut options = fs::OpenOptions::new();
        options.write(true);
        let places = self.split_roots().into_iter().map(|root| root.join(cgroup));
        places.chain(devices).map(|place| open(&place.join("tasks"), &options)).collect()
    }

    /// Limits a sandbox with a kernel of its own, which is one to the host's.
    pub(super) fn limit_whole(&self, name: &Path, limits: &Limits) -> Result<(), CgroupError> {
        limit_memory(&self.memory.join(name), limits.memory + KERNEL_MEMORY)?;
        let cpu = self.cpu.join(name);
        write(&cpu.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
        write(&cpu.join("cpu.cfs_quota_us"), &cpu_quota(limits).to_string())
    }

    pub(super) fn usage(&self, cgroup: &Path) -> Usage {
        let memory = self.memory.join(cgroup);
        Usage {
            cpu: Duration::from_nanos(read_number(&self.cpuacct.join(cgroup).join("cpuacct.usage"))),
            peak_memory: read_number(&memory.join("memory.max_usage_in_bytes")),
            oom_kills: read_key(&memory.join("memory.oom_control"), "oom_kill"),
        }
    }
}

fn cpu_quota(limits: &Limits) -> u64 {
    u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000
}

/// Limits memory and, where the kernel counts it, memory with swap to the same number: no swap.
fn limit_memory(directory: &Path, bytes: u64) -> Result<(), CgroupError> {
    write(&directory.join("memory.limit_in_bytes"), &bytes.to_string())?;
    let with_swap = directory.join("memory.memsw.limit_in_bytes");
    if with_swap.exists() {
        return write(&with_swap, &bytes.to_string());
    }
    // Without swap accounting the kernel can still be told never to swap this group.
    write(&directory.join("memory.swappiness"), "0")
}

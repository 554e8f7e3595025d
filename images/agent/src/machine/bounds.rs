//! The job's cgroup inside the machine. Its tree is mounted where no job can go.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use agent::message::{Bounds, Memory};
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::root;
use crate::failure::{At, Failure};

const TREE: &str = "/cgroup";

/// Where the job is counted. The agent stays at the top of the tree, which has no limits.
#[derive(Debug)]
pub(super) struct JobCgroup {
    directory: OwnedFd,
    /// Opened while the agent may: it reads them when it has no right left.
    events: OwnedFd,
    peak: Option<OwnedFd>,
    processes: OwnedFd,
    /// Those in force: what is so already is not written again, for where code is translated as it runs each step costs.
    bounds: Cell<Option<Bounds>>,
}

impl JobCgroup {
    pub(super) fn make() -> Result<Self, Failure> {
        root::directory(TREE)?;
        let nothing = None::<&str>;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(nothing, TREE, Some("cgroup2"), flags, nothing).at("mount the cgroup tree")?;
        let tree =
            open(TREE, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).at("open the cgroup tree")?;
        write(&tree, "cgroup.subtree_control", "+memory +pids")?;
        mkdirat(&tree, "job", Mode::from_bits_retain(0o755)).at("make the job's cgroup")?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(&tree, "job", flags, Mode::empty()).at("open the job's cgroup")?;
        write(&directory, "memory.oom.group", "1")?;
        write(&directory, "cgroup.max.descendants", "0")?;
        let read = |name: &str| openat(&directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let events = read("memory.events").at("open memory.events")?;
        // Since Linux 5.19; before it the peak is not known.
        let peak = read("memory.peak").ok();
        let processes = read("cgroup.procs").at("open cgroup.procs")?;
        Ok(Self { directory, events, peak, processes, bounds: Cell::new(None) })
    }

    pub(super) fn directory(&self) -> Result<OwnedFd, Failure> {
        self.directory.try_clone().map_err(|error| Failure::of_io("copy the job's cgroup", &error))
    }

    pub(super) fn bound(&self, bounds: &Bounds) -> Result<(), Failure> {
        // Unknown again where a step fails.
        let before = self.bounds.take();
        let changes = |of: fn(&Bounds) -> u64| before.as_ref().map(of) != Some(of(bounds));
        if changes(|it| it.memory) {
            write(&self.directory, "memory.max", &bounds.memory.to_string())?;
        }
        if changes(|it| it.pids.into()) {
            write(&self.directory, "pids.max", &bounds.pids.to_string())?;
        }
        if changes(|it| it.disk) || changes(|it| it.inodes) {
            root::resize(bounds)?;
        }
        self.bounds.set(Some(*bounds));
        Ok(())
    }

    /// Ends every process in the cgroup but one.
    pub(super) fn end_all_but(&self, spared: Option<Pid>) -> Result<(), Failure> {
        loop {
            let processes = read(&self.processes);
            let pids = processes.lines().filter_map(|line| line.parse().ok().map(Pid::from_raw));
            let mut others = pids.filter(|pid| Some(*pid) != spared).peekable();
            if others.peek().is_none() {
                return Ok(());
            }
            for pid in others {
                let _ = kill(pid, Signal::SIGKILL);
            }
            // What has lost its parent is the first process's to reap.
            let ended = waitpid(None, None).at("wait for what a rehearsal left")?;
            if ended.pid() == spared {
                return Err(Failure::Unproved("the armed process ended before its job came".into()));
            }
        }
    }

    pub(super) fn memory(&self) -> Memory {
        let events = read(&self.events);
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let number = |text: &str| text.trim().parse().unwrap_or(0);
        Memory {
            oom_kills: kills.map_or(0, number),
            peak: self.peak.as_ref().map_or(0, |peak| number(&read(peak))),
        }
    }
}

/// A counter that cannot be read counts as nothing.
fn read(file: &OwnedFd) -> String {
    let mut text = String::new();
    if let Ok(file) = file.try_clone() {
        let mut file = File::from(file);
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    }
    text
}

fn write(directory: impl AsFd, name: &str, value: &str) -> Result<(), Failure> {
    let step = || format!("write {value} to {name}");
    let file = openat(directory, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).at(&step())?;
    File::from(file).write_all(value.as_bytes()).map_err(|error| Failure::of_io(&step(), &error))
}

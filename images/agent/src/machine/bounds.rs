//! The job's cgroup inside the machine. Its tree is mounted where no job can go.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

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
///
/// Its files are opened while the agent may: it writes and reads them when it has no right left to.
#[derive(Debug)]
pub(super) struct JobCgroup {
    directory: OwnedFd,
    limits: Limits,
    events: File,
    peak: Option<File>,
    processes: File,
    /// Those in force: what is so already is not written again, for where code is translated as it runs each step costs.
    bounds: Cell<Option<Bounds>>,
}

#[derive(Debug)]
struct Limits {
    memory: File,
    pids: File,
}

impl JobCgroup {
    pub(super) fn make() -> Result<Self, Failure> {
        root::directory(TREE)?;
        let nothing = None::<&str>;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(nothing, TREE, Some("cgroup2"), flags, nothing).at("mount the cgroup tree")?;
        let tree =
            open(TREE, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).at("open the cgroup tree")?;
        write(&opened(&tree, "cgroup.subtree_control", OFlag::O_WRONLY)?, "+memory +pids")?;
        mkdirat(&tree, "job", Mode::from_bits_retain(0o755)).at("make the job's cgroup")?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(&tree, "job", flags, Mode::empty()).at("open the job's cgroup")?;
        let to_write = |name: &str| opened(&directory, name, OFlag::O_WRONLY);
        let to_read = |name: &str| opened(&directory, name, OFlag::O_RDONLY);
        write(&to_write("memory.oom.group")?, "1")?;
        write(&to_write("cgroup.max.descendants")?, "0")?;
        let limits = Limits { memory: to_write("memory.max")?, pids: to_write("pids.max")? };
        let (events, processes) = (to_read("memory.events")?, to_read("cgroup.procs")?);
        // Since Linux 5.19; before it the peak is not known.
        let peak = to_read("memory.peak").ok();
        Ok(Self { directory, limits, events, peak, processes, bounds: Cell::new(None) })
    }

    pub(super) fn directory(&self) -> Result<OwnedFd, Failure> {
        self.directory.try_clone().map_err(|error| Failure::of_io("copy the job's cgroup", &error))
    }

    pub(super) fn bound(&self, bounds: &Bounds) -> Result<(), Failure> {
        // Unknown again where a step fails.
        let before = self.bounds.take();
        let changes = |of: fn(&Bounds) -> u64| before.as_ref().map(of) != Some(of(bounds));
        if changes(|it| it.memory) {
            write(&self.limits.memory, &bounds.memory.to_string())?;
        }
        if changes(|it| it.pids.into()) {
            write(&self.limits.pids, &bounds.pids.to_string())?;
        }
        if changes(|it| it.disk) || changes(|it| it.inodes) {
            root::resize(bounds)?;
        }
        self.bounds.set(Some(*bounds));
        Ok(())
    }

    /// Ends every process in the cgroup but those that wait for their orders.
    pub(super) fn end_all_but(&self, spared: &[Pid]) -> Result<(), Failure> {
        loop {
            let processes = read(&self.processes);
            // What a page had no room for is read the next time.
            let whole = processes.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let pids = whole.lines().filter_map(|line| line.parse().ok().map(Pid::from_raw));
            let mut others = pids.filter(|pid| !spared.contains(pid)).peekable();
            if others.peek().is_none() {
                return Ok(());
            }
            for pid in others {
                let _ = kill(pid, Signal::SIGKILL);
            }
            // What has lost its parent is the first process's to reap.
            let ended = waitpid(None, None).at("wait for what a rehearsal left")?;
            if ended.pid().is_some_and(|pid| spared.contains(&pid)) {
                return Err(Failure::Unproved("an armed process ended before its orders came".into()));
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

/// What a file of the cgroup says now, as far as a page goes. One that cannot be read says nothing.
fn read(file: &File) -> String {
    let mut text = [0; 4096];
    let len = file.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..len]).into_owned()
}

fn opened(directory: impl AsFd, name: &str, access: OFlag) -> Result<File, Failure> {
    let file = openat(directory, name, access | OFlag::O_CLOEXEC, Mode::empty());
    file.map(File::from).at(&format!("open {name}"))
}

fn write(mut file: &File, value: &str) -> Result<(), Failure> {
    file.write_all(value.as_bytes())
        .map_err(|error| Failure::of_io(&format!("write {value} to a cgroup's file"), &error))
}

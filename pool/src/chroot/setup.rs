//! What a new sandbox's first process does, in order, until it is the agent.
//!
//! It runs in a fresh clone of the spawner, in new namespaces, and gives up at the first step that fails:
//! the step's name goes out as a `Fault` frame through the stream where the agent's answer is awaited.

use std::{
    convert::Infallible,
    fs,
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use agent::{
    codec::Frame,
    message::{AGENT_PATH, Fault, ToHost},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::{Gid, Uid, setresgid, setresuid},
};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::{
    devices, kernel, mounts,
    plan::{Failed, Plan, Step},
    spawner::{receive_with_fds, send_with_fds},
};

/// What the process is born with beside the plan.
pub(crate) struct Descriptors {
    pub(crate) stream: OwnedFd,
    /// cgroup v1: the agent's `tasks` files.
    pub(crate) tasks: Vec<OwnedFd>,
    /// For the agent, so that the job's process can enter its own leaf.
    pub(crate) job_entry: Vec<OwnedFd>,
    /// Where [`Trees`] come from.
    pub(crate) trees: OwnedFd,
}

/// The mounts that only the host's root can make, detached.
pub(crate) struct Trees {
    pub(crate) root: OwnedFd,
    pub(crate) dev: OwnedFd,
    /// The throw-away disk, if the root's upper layer already lies on it.
    pub(crate) scratch: Option<OwnedFd>,
}

/// Becomes the agent or says why not, and ends.
pub(crate) fn become_agent(plan: &Plan, descriptors: Descriptors) -> ! {
    let Ok(mut complaints) = descriptors.stream.try_clone().map(fs::File::from) else { leave() };
    let Err(Failed { step, errno }) = run(plan, descriptors);
    let fault = Frame { stream: 0, message: ToHost::Fault(Fault { step: step.to_owned(), errno }) };
    if let Ok(bytes) = fault.encode() {
        // If the host is gone there is nobody to tell, and this process ends all the same.
        let _ = complaints.write_all(&bytes);
    }
    leave()
}

#[expect(clippy::exit, reason = "a clone of the spawner must not return into the spawner's loop")]
pub(crate) fn leave() -> ! {
    std::process::exit(1)
}

fn run(plan: &Plan, descriptors: Descriptors) -> Result<Infallible, Failed> {
    // 1. Into the agent's cgroups. The cgroup namespaces come later, in the agent: each is rooted at its leaf.
    //    Writing "0" moves the writer alone and waits for nobody; a pid written from outside waits ~14 ms.
    for tasks in descriptors.tasks {
        fs::File::from(tasks).write_all(b"0").step("enter the agent's cgroups")?;
    }

    // 2. What only the host's user 0 may touch: /proc/self, which a change of ids takes away, and the run
    //    directory, which is closed to everybody else.
    start_clocks_anew()?;
    let root_point = mounts::place(&plan.root_point).step("open the place for the root")?;
    let disk_point = mounts::place(&plan.disk_point).step("open the place for the throw-away disk")?;

    // 3. The spawner has written the id maps by the time the trees arrive.
    let trees = Trees::receive(descriptors.trees.as_fd(), plan.writable_root)?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).step("become the sandbox's group 0")?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).step("become the sandbox's user 0")?;

    // 4. The file is bound read-only with the rest of /proc/sys later.
    forbid_nested()?;

    // 5. The new root and what lies on it.
    change_root(plan, trees, &root_point, &disk_point)?;

    // 6. Names and the loopback interface.
    nix::unistd::sethostname(&plan.hostname).step("set the host name")?;
    kernel::loopback_up().step("bring up the loopback interface")?;

    // 7. The agent, with its stream as stdin and stdout and nothing else of the spawner's but the job's entry.
    exec_agent(&descriptors.stream, &descriptors.job_entry).map(|never| match never {})
}

/// No user namespace below this process's own.
pub(crate) fn forbid_nested() -> Result<(), Failed> {
    fs::write("/proc/sys/user/max_user_namespaces", "0").step("forbid nested user namespaces")
}

/// Puts a sandbox's root together in this process's mount namespace, and makes it the only root there.
///
/// Every process there whose root is the old one has the new one from then on, see `pivot_root(2)`.
pub(crate) fn change_root(
    plan: &Plan,
    trees: Trees,
    root_point: &OwnedFd,
    disk_point: &OwnedFd,
) -> Result<(), Failed> {
    let Trees { root, dev, scratch } = trees;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step("make mounts private")?;
    let scratch = match scratch {
        Some(scratch) => scratch,
        None => mounts::scratch(plan, 0)?,
    };
    mounts::attach(&root, root_point, "").step("attach the root")?;
    mounts::attach(&scratch, disk_point, "").step("attach the throw-away disk")?;
    put_root_together(&root, &dev, &scratch)?;
    rustix::process::fchdir(&root).step("enter the new root")?;
    rustix::process::pivot_root(".", ".").step("pivot to the new root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("let go of the old root")?;
    rustix::process::chdir("/").step("enter the root directory")
}

/// A time namespace for the children, in which the host's uptime cannot be read off the clocks.
pub(crate) fn start_clocks_anew() -> Result<(), Failed> {
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)).step("unshare the time namespace")?;
    let seconds = |clock| rustix::time::clock_gettime(clock).tv_sec;
    let offsets = format!(
        "monotonic -{} 0\nboottime -{} 0\n",
        seconds(rustix::time::ClockId::Monotonic),
        seconds(rustix::time::ClockId::Boottime)
    );
    fs::write("/proc/self/timens_offsets", offsets).step("start the sandbox's clocks at zero")
}

fn put_root_together(root: &OwnedFd, dev: &OwnedFd, scratch: &OwnedFd) -> Result<(), Failed> {
    mounts::attach(dev, root, "dev").step("attach /dev")?;
    mounts::attach(&mounts::devpts()?, root, &format!("dev/{}", devices::PTS)).step("attach /dev/pts")?;
    mounts::attach_scratch(scratch, root)?;
    mounts::attach(&mounts::proc()?, root, "proc").step("attach /proc")?;
    mounts::mask_proc(root)
}

fn exec_agent(stream: &OwnedFd, job_entry: &[OwnedFd]) -> Result<Infallible, Failed> {
    let flag = if job_entry.len() == 1 && is_directory(job_entry[0].as_fd()) {
        "--job-cgroup"
    } else {
        "--job-tasks"
    };
    let mut agent = Command::new(AGENT_PATH);
    for entry in job_entry {
        rustix::io::fcntl_setfd(entry, rustix::io::FdFlags::empty()).step("keep the job's cgroup entry")?;
        agent.arg(flag).arg(entry.as_raw_fd().to_string());
    }
    let stdin = stream.try_clone().step("copy the stream")?;
    let stdout = stream.try_clone().step("copy the stream")?;
    kernel::heed_children().step("heed children again")?;
    // Set last: a change of ids clears it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).step("die with the spawner")?;
    let error = agent.env_clear().stdin(stdin).stdout(stdout).stderr(std::process::Stdio::null()).exec();
    Err(error).step("start the agent")
}

fn is_directory(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

impl Trees {
    pub(crate) fn send(&self, child: BorrowedFd<'_>) -> Result<(), Failed> {
        let fds: Vec<_> = [Some(&self.root), Some(&self.dev), self.scratch.as_ref()]
            .into_iter()
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect();
        send_with_fds(child, b"trees", &fds).step("hand the mounts to the sandbox")
    }

    fn receive(from: BorrowedFd<'_>, with_scratch: bool) -> Result<Self, Failed> {
        let (_, fds) = receive_with_fds(from, &mut [0; 8]).step("receive the mounts")?;
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next(), fds.next()) {
            (Some(root), Some(dev), scratch) if scratch.is_some() == with_scratch => {
                Ok(Self { root, dev, scratch })
            }
            _ => Err(Failed { step: "receive the mounts", errno: libc::EBADMSG }),
        }
    }
}

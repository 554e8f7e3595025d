//! Makes the armed process: everything that a job's process must be, but for its program.
//!
//! Two processes meet in this file. The agent forks and waits for a report; the child confines itself step by step,
//! reports, and then waits in [`crate::exec`] for its orders. What the sandbox costs is paid here, before a job comes.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use agent::message::{Armed, Fault, Hello, Identity, NotStarted};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, fchown, getegid, geteuid, getpid, getppid, pipe2, read, setsid, write};
use serde::{Deserialize, Serialize};

use crate::exec;
use crate::failure::{At, Failure};
use crate::{landlock, privilege, seccomp, sys};

/// Where the armed process finds its orders, and where it reports. Both close when it becomes the job.
pub(crate) const ORDERS: RawFd = 3;
pub(crate) const REPORT: RawFd = 4;

/// What the armed process says to the agent. Small enough that a pipe takes and gives it in one piece.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Armed(Armed),
    Fault(Fault),
    NotStarted { why: NotStarted, errno: i32 },
}

impl Report {
    pub(crate) fn send(&self) {
        if let Ok(bytes) = postcard::to_stdvec(self) {
            let _ = write(sys::fixed(REPORT), &bytes);
        }
    }

    /// The report that waits in the pipe. `None` when the process ended, or became the job, without one.
    pub(crate) fn receive(pipe: &OwnedFd) -> Option<Self> {
        let mut buffer = [0; 1024];
        loop {
            match read(pipe, &mut buffer) {
                Err(Errno::EINTR) => {}
                Ok(len @ 1..) => return postcard::from_bytes(&buffer[..len]).ok(),
                Ok(_) | Err(_) => return None,
            }
        }
    }
}

/// The cgroups that the job's process joins, as descriptors inherited from the host.
#[derive(Debug, Default)]
pub(crate) struct JobCgroups {
    /// v1: `tasks` files.
    pub(crate) tasks: Vec<OwnedFd>,
    /// v2: the directory.
    pub(crate) directory: Option<OwnedFd>,
}

/// The armed process, seen from the agent.
#[derive(Debug)]
pub(crate) struct ArmedProcess {
    pub(crate) pid: Pid,
    pub(crate) orders: OwnedFd,
    pub(crate) report: OwnedFd,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl ArmedProcess {
    /// Waits until the process is armed, or says why it is not.
    pub(crate) fn wait_armed(&self) -> Result<Armed, Failure> {
        match Report::receive(&self.report) {
            Some(Report::Armed(armed)) => Ok(armed),
            Some(Report::Fault(fault)) => Err(Failure::Reported(fault)),
            Some(Report::NotStarted { .. }) | None => {
                Err(Failure::Unproved("the job's process ended while it was armed".into()))
            }
        }
    }
}

/// The child's ends of the pipes, in the order of their numbers there: 0, 1, 2, [`ORDERS`], [`REPORT`].
type ChildEnds = [OwnedFd; 5];

/// Forks the job's process, which goes on to arm itself.
pub(crate) fn fork(hello: &Hello, cgroups: &JobCgroups) -> Result<ArmedProcess, Failure> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).at("make the job's pipes");
    let (stdin_read, stdin) = pipe()?;
    let (stdout, stdout_write) = pipe()?;
    let (stderr, stderr_write) = pipe()?;
    let (orders_read, orders) = pipe()?;
    let (report, report_write) = pipe()?;
    for ours in [&stdin, &stdout, &stderr] {
        // The agent's ends only: a job that finds its own non-blocking loses output.
        fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).at("make the agent's pipe ends non-blocking")?;
    }
    let theirs: ChildEnds = [stdin_read, stdout_write, stderr_write, orders_read, report_write];
    if let Some(Identity { uid, gid, .. }) = hello.identity {
        for stdio in &theirs[..3] {
            // Or `echo > /dev/stdout` is refused: it opens the pipe again, as the job's user.
            fchown(stdio, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).at("give the job its pipes")?;
        }
    }
    let agent = getpid();
    let child = sys::fork_into(cgroups.directory.as_ref().map(AsFd::as_fd)).at("fork the job's process")?;
    let Some(pid) = child else { child_main(hello, cgroups, &theirs, agent) };
    // After the fork: from within a namespace rooted at its own leaf the agent could not reach the job's.
    cgroups.hide_the_rest()?;
    Ok(ArmedProcess { pid, orders, report, stdin, stdout, stderr })
}

/// The child's whole life before the job. Never returns, so nothing that the agent owns is dropped here.
fn child_main(hello: &Hello, cgroups: &JobCgroups, ends: &ChildEnds, agent: Pid) -> ! {
    // 1. The cgroups, so that all that follows is charged to the job.
    let joined = join(&cgroups.tasks).and_then(|()| cgroups.hide_the_rest());
    // 2. The descriptors. Before this there is nowhere to report to; without it, the silence is the report.
    if lay_out(ends).is_err() {
        sys::exit_now(1);
    }
    match joined.and_then(|()| arm_self(hello, agent)) {
        Ok(armed) => Report::Armed(armed).send(),
        Err(failure) => {
            Report::Fault(failure.fault()).send();
            sys::exit_now(1);
        }
    }
    exec::obey()
}

impl JobCgroups {
    /// Makes the present cgroups the only ones that this process can see the names of.
    fn hide_the_rest(&self) -> Result<(), Failure> {
        // Without cgroups of its own the tier has seen to that, and the right to do it may be gone.
        if self.tasks.is_empty() && self.directory.is_none() {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWCGROUP).at("unshare the cgroup namespace")
    }
}

/// A process that attaches itself pays 0.03 ms; one that is attached by another waits up to 14 ms on an idle host.
fn join(tasks: &[OwnedFd]) -> Result<(), Failure> {
    for file in tasks {
        write(file, b"0").at("join the job's cgroup")?;
    }
    Ok(())
}

/// Leaves exactly the five descriptors of [`ChildEnds`] open, under their numbers.
fn lay_out(ends: &ChildEnds) -> Result<(), Errno> {
    let mut high = [0; 5];
    for (end, high) in ends.iter().zip(&mut high) {
        // Out of the way first: a source may stand where another one's place is.
        *high = fcntl(end, FcntlArg::F_DUPFD_CLOEXEC(16 + end.as_raw_fd()))?;
    }
    for (number, fd) in high.into_iter().enumerate() {
        sys::place(fd, number as RawFd, number >= ORDERS as usize)?;
    }
    sys::close_range(REPORT + 1, RawFd::MAX)
}

fn arm_self(hello: &Hello, agent: Pid) -> Result<Armed, Failure> {
    // 3. A session of its own: no terminal, and a group that a signal can name.
    setsid().at("make a session")?;
    // 4. The first to go when memory is short. A process that is not dumpable does not own its files in /proc.
    prctl::set_dumpable(true).at("become dumpable")?;
    let scored = File::options().write(true).open("/proc/self/oom_score_adj");
    scored
        .and_then(|mut file| file.write_all(b"1000"))
        .map_err(|error| Failure::of_io("set the job's oom_score_adj", &error))?;
    prctl::set_dumpable(false).at("become undumpable")?;
    // 5. Signals and file modes as any program expects them.
    reset_signals().at("reset signals")?;
    umask(Mode::from_bits_retain(0o022));
    // 6. The user, without a capability. The groups went before the fork.
    privilege::become_job(hello.identity)?;
    // 7. Gone with the agent. After the change of user, which forgets it; and the agent may be gone by now.
    privilege::guard_process().at("guard the job's process")?;
    if getppid() != agent {
        return Err(Failure::HostGone);
    }
    // 8. No program gives privilege back; the two locks below need this too.
    prctl::set_no_new_privs().at("set no_new_privs")?;
    // 9. Landlock before seccomp, because opening its directories is nothing that a filter need allow.
    let landlock_abi = landlock::confine(hello.writable_root)?;
    seccomp::confine().at("load the seccomp filters")?;
    let seen = (geteuid(), getegid());
    if let Some(Identity { uid, gid, .. }) = hello.identity
        && seen != (Uid::from_raw(uid), Gid::from_raw(gid))
    {
        return Err(Failure::Unproved(format!("the job is user {}:{}", seen.0, seen.1)));
    }
    Ok(Armed { pid: getpid().as_raw() as u32, uid: seen.0.as_raw(), landlock_abi })
}

fn reset_signals() -> Result<(), Errno> {
    for each in Signal::iterator().filter(|each| !matches!(each, Signal::SIGKILL | Signal::SIGSTOP)) {
        sys::dispose(each, SigHandler::SigDfl)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

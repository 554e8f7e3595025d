//! The job from `Run` to `Exit`: started, signalled, ended with all that it left behind.

use std::os::fd::OwnedFd;
use std::time::Duration;

use agent::codec::{Frame, StreamId};
use agent::message::{Ending, Exit, Run, ToAgent};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, write};

use crate::arm::{ArmedProcess, Report};
use crate::failure::{At, Failure};
use crate::reach::Reach;
use crate::streams::{Inlet, Outlet, Stdio};
use crate::sys;

/// A job whose first process has its orders.
#[derive(Debug)]
pub(crate) struct Job {
    leader: Pid,
    reach: Reach,
    report: OwnedFd,
    ending: Option<Ending>,
    usage: Usage,
    /// A lower bound: a straggler that waits for another may reap it while both are being killed.
    stragglers: u32,
}

/// What the job's processes used, as far as they were reaped here.
#[derive(Debug, Default)]
struct Usage {
    user: Duration,
    system: Duration,
    max_rss_kib: u64,
}

impl Job {
    /// Hands the armed process its orders.
    pub(crate) fn start(process: ArmedProcess, stream: StreamId, run: Run) -> Result<(Self, Stdio), Failure> {
        let mut stdin = Inlet::new(stream, process.stdin);
        if !run.stdin {
            // The end of file that /dev/null would give, without opening anything in the job's time.
            stdin.end();
        }
        let streams = Stdio {
            stdin,
            stdout: Outlet::new(stream + 1, process.stdout),
            stderr: Outlet::new(stream + 2, process.stderr),
        };
        give_orders(&process.orders, stream, run)?;
        let job = Self {
            leader: process.pid,
            reach: Reach::over(process.pid),
            report: process.report,
            ending: None,
            usage: Usage::default(),
            stragglers: 0,
        };
        Ok((job, streams))
    }

    /// Its first process.
    pub(crate) fn leader(&self) -> Pid {
        self.leader
    }

    /// Signals all processes of the job. After its end there are none, and the leader's number may be another's.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ending.is_none() {
            self.reach.signal(signal);
        }
    }

    /// Whether the first process ended and others are still being swept away.
    pub(crate) fn is_sweeping(&self) -> bool {
        self.ending.is_some()
    }

    /// Reaps what ended. Returns the job's exit once its last process is gone.
    pub(crate) fn reap(&mut self) -> Result<Option<Exit>, Failure> {
        loop {
            match sys::ended_child() {
                Ok(Some(pid)) => self.bury(pid)?,
                Ok(None) => {
                    // Again, for what a host's tool may have brought into the namespace since. A group is not
                    // signalled again: its leader is reaped, and its number free to be another's.
                    if self.is_sweeping() && matches!(self.reach, Reach::Namespace(_)) {
                        self.reach.signal(Signal::SIGKILL);
                    }
                    return Ok(None);
                }
                Err(Errno::ECHILD) => return Ok(self.exit()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).at("wait for the job"),
            }
        }
    }

    fn bury(&mut self, pid: Pid) -> Result<(), Failure> {
        if pid == self.leader {
            // Before it is reaped: until then the number of its group cannot be another's.
            self.reach.signal(Signal::SIGKILL);
        }
        let (status, usage) = sys::reap(pid).at("reap a process of the job")?;
        self.usage.add(&usage);
        if pid == self.leader {
            self.ending = Some(self.ending_of(status));
        } else if self.is_sweeping() && libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL {
            self.stragglers += 1;
        }
        Ok(())
    }

    fn ending_of(&self, status: i32) -> Ending {
        // The job cannot have written this: its end of the pipe closed when it became the job.
        if let Some(Report::NotStarted { why, errno }) = Report::receive(&self.report) {
            return Ending::NotStarted { why, errno };
        }
        if libc::WIFSIGNALED(status) {
            Ending::Signal(libc::WTERMSIG(status) as u8)
        } else {
            Ending::Code(libc::WEXITSTATUS(status) as u8)
        }
    }

    fn exit(&self) -> Option<Exit> {
        Some(Exit {
            ending: self.ending?,
            user_us: self.usage.user.as_micros() as u64,
            system_us: self.usage.system.as_micros() as u64,
            max_rss_kib: self.usage.max_rss_kib,
            stragglers: self.stragglers,
            memory: None,
        })
    }
}

fn give_orders(pipe: &OwnedFd, stream: StreamId, run: Run) -> Result<(), Failure> {
    let orders = Frame { stream, message: ToAgent::Run(run) }.encode()?;
    let mut rest = orders.as_slice();
    while !rest.is_empty() {
        // Blocks while more than a pipe holds is read by our own code, which does nothing else.
        match write(pipe, rest) {
            Ok(len) => rest = &rest[len..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).at("hand the job its orders"),
        }
    }
    Ok(())
}

/// Reaps what ended while no job runs: the first process of a namespace is everybody's parent in the end.
pub(crate) fn reap_orphans(armed: Option<Pid>) -> Result<(), Failure> {
    loop {
        match sys::ended_child() {
            Ok(Some(pid)) if Some(pid) == armed => {
                return Err(Failure::Unproved("the armed process ended before its job came".into()));
            }
            Ok(Some(pid)) => sys::reap(pid).map(drop).at("reap an orphan")?,
            Ok(None) | Err(Errno::ECHILD) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).at("wait for orphans"),
        }
    }
}

impl Usage {
    fn add(&mut self, more: &libc::rusage) {
        let time = |value: libc::timeval| {
            Duration::from_secs(value.tv_sec as u64) + Duration::from_micros(value.tv_usec as u64)
        };
        self.user += time(more.ru_utime);
        self.system += time(more.ru_stime);
        self.max_rss_kib = self.max_rss_kib.max(more.ru_maxrss as u64);
    }
}

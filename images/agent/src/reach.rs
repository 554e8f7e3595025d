//! Whom a signal of the agent may reach.
//!
//! `kill(-1)` means "all but me" in a pid namespace and "the whole machine" outside of one. Only a value that
//! exists in process 1 alone can say it.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

/// Proof that this process is the first one of its pid namespace.
#[derive(Debug)]
pub(crate) struct FirstProcess {
    /// What `kill` takes for "all but me". It exists nowhere else.
    all_others: Pid,
}

impl FirstProcess {
    fn if_this_is_it() -> Option<Self> {
        (getpid() == Pid::from_raw(1)).then_some(Self { all_others: Pid::from_raw(-1) })
    }

    fn signal_all_others(&self, signal: Signal) -> Result<(), Errno> {
        kill(self.all_others, signal)
    }
}

/// The processes that count as the job's.
#[derive(Debug)]
pub(crate) enum Reach {
    /// Everything in the pid namespace but the agent.
    Namespace(FirstProcess),
    /// The process group of the job's session leader. For an agent that is run by hand, or by a test.
    Group(Pid),
}

impl Reach {
    /// The reach of this agent over the job that `leader` leads.
    pub(crate) fn over(leader: Pid) -> Self {
        FirstProcess::if_this_is_it().map_or(Self::Group(leader), Self::Namespace)
    }

    /// Signals every process in reach. That there is none is no failure.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = match self {
            Self::Namespace(first) => first.signal_all_others(signal),
            // A leader's pid is never 0 or 1, which `kill` would take for "my group" and "everyone".
            Self::Group(leader) if leader.as_raw() > 1 => kill(Pid::from_raw(-leader.as_raw()), signal),
            Self::Group(_) => Ok(()),
        };
    }
}

//! Why the agent cannot go on.

use std::io;

use agent::codec::CodecError;
use agent::flow::FlowError;
use agent::message::{Fault, VERSION};
use nix::errno::Errno;
use thiserror::Error;

/// Each variant but the first reaches the host as a [`Fault`].
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The channel ended. There is nobody left to tell.
    #[error("the host is gone")]
    HostGone,
    /// A step of arming or serving did not work.
    #[error("{step}")]
    Step {
        /// What the agent tried.
        step: String,
        /// Why the kernel refused.
        errno: Errno,
    },
    /// A step looked done and was found undone.
    #[error("{0}")]
    Unproved(String),
    /// The armed process reported its own fault.
    #[error("{0:?}")]
    Reported(Fault),
    /// The host's bytes are not frames.
    #[error("host sent a {0}")]
    Frame(#[from] CodecError),
    /// The host sent more than it was granted.
    #[error("flow control: {0}")]
    Flow(#[from] FlowError),
    /// The host's frame does not fit the conversation.
    #[error("{0}")]
    OutOfTurn(&'static str),
    /// Host and agent were not built together.
    #[error("host speaks version {host}, the agent {VERSION}")]
    Version {
        /// The host's version.
        host: u16,
    },
    /// The command line is not one that the agent knows.
    #[error("command line: {0}")]
    Usage(String),
}

impl Failure {
    /// A step of the standard library that failed.
    pub(crate) fn of_io(step: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::Step { step: step.to_owned(), errno }
    }

    /// What the host is told.
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Reported(fault) => fault,
            Self::Step { step, errno } => Fault { step, errno: errno as i32 },
            other => Fault { step: other.to_string(), errno: 0 },
        }
    }
}

/// Names the step behind an errno.
pub(crate) trait At<T> {
    /// Says which step an errno belongs to.
    fn at(self, step: &str) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::Step { step: step.to_owned(), errno })
    }
}

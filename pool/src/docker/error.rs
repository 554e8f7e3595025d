//! What can go wrong with a docker daemon.

use images::ArchiveError;
use thiserror::Error;

use super::engine::floor;

/// The docker tier cannot do a step.
#[derive(Debug, Error)]
pub enum DockerError {
    /// A daemon of another host.
    #[error(
        "the docker daemon at \"{0}\" is not reached by a socket of this host, so its containers' processes and limits cannot be seen: name one as unix:///…"
    )]
    NotLocal(String),
    /// Nobody answers.
    #[error("no docker daemon answers at {socket}")]
    Away {
        /// Where.
        socket: String,
        /// Why.
        #[source]
        error: Box<bollard::errors::Error>,
    },
    /// A request failed.
    #[error("cannot {what}")]
    Request {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        error: Box<bollard::errors::Error>,
    },
    /// Sandboxes cannot be made with this daemon.
    #[error("the docker daemon cannot be used: {0}")]
    Unfit(String),
    /// The configuration names a runtime that the daemon does not know.
    #[error("the docker daemon knows no runtime \"{runtime}\", only {known}")]
    NoRuntime {
        /// What was asked for.
        runtime: String,
        /// What there is.
        known: String,
    },
    /// The daemon would take a runtime whose containers are no processes of the host's kernel.
    #[error(
        "the docker daemon's default runtime \"{runtime}\" has a kernel of its own, which makes other sandboxes: it is used only if it is named"
    )]
    Unnamed {
        /// Which.
        runtime: String,
    },
    /// The runtime has known ways out of its containers.
    #[error(
        "{runtime} {found} has known ways out of a container (CVE-2025-31133, -52565, -52881): {} or later is needed, or `allow_old_runtime = true`",
        floor()
    )]
    OldRuntime {
        /// The program.
        runtime: String,
        /// Its version.
        found: String,
    },
    /// The daemon or the runtime hangs.
    #[error("the container had not started {0:?} after it was ordered")]
    Slow(std::time::Duration),
    /// What is written to the root could not be bounded.
    #[error(
        "image {image} has a writable root, and with the runtime \"{runtime}\" nothing would bound what a job writes to it"
    )]
    WritableRoot {
        /// Which image.
        image: String,
        /// The runtime.
        runtime: String,
    },
    /// An image cannot be read for the daemon.
    #[error("cannot hand the image to the docker daemon")]
    Image(#[from] ArchiveError),
    /// This process cannot be marked as one with containers, or the lock for images cannot be had.
    #[error("cannot write {path}")]
    Mark {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The runtime ends, and what it was to do with it.
    #[error("the work was given up")]
    Stopped(#[from] tokio::task::JoinError),
}

impl DockerError {
    pub(super) fn request(what: &'static str) -> impl Fn(bollard::errors::Error) -> Self {
        move |error| Self::Request { what, error: Box::new(error) }
    }

    /// The status that the daemon answered with, if it answered.
    pub(super) fn status(error: &bollard::errors::Error) -> Option<u16> {
        match error {
            bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
            _ => None,
        }
    }

    /// What to do about it, for people.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NotLocal(_) => "set `socket` in [docker] of mayfly.toml, or DOCKER_HOST",
            Self::Away { .. } => "apt-get install docker.io && systemctl start docker",
            Self::OldRuntime { .. } => {
                "install a newer runc, or set `allow_old_runtime = true` in [docker] of mayfly.toml"
            }
            Self::NoRuntime { .. } | Self::Unnamed { .. } => "set `runtime` in [docker] of mayfly.toml",
            _ => "look at the daemon's log",
        }
    }
}

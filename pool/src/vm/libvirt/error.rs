//! Why libvirt makes no machine.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// Libvirt, or the program between it and mayfly, does not do what it must.
#[derive(Debug, Error)]
pub enum LibvirtError {
    /// The address leads to another host.
    #[error(
        "{0} does not name this host's libvirt: its machines' processes and files would not be to be seen here"
    )]
    NotLocal(String),
    /// The engine's program is not there.
    #[error("there is no {0}, the program between mayfly and libvirt")]
    NoEngine(PathBuf),
    /// It does not start.
    #[error("cannot start {path}")]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It was built for another mayfly.
    #[error("{0} does not speak as this mayfly does: both must come from one build")]
    OtherBuild(PathBuf),
    /// It ended, or talks nonsense.
    #[error("the libvirt engine ended in the middle of a question")]
    Died,
    /// A call hangs. The engine is ended with it.
    #[error("libvirt did not answer within {0:?}")]
    Hangs(Duration),
    /// Libvirt says no.
    #[error("libvirt cannot {step}: {why}")]
    Refused {
        /// What.
        step: String,
        /// Its own words.
        why: String,
    },
    /// A file of a machine.
    #[error("cannot {doing} {path}")]
    File {
        /// What.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// QEMU, which is nobody, could not reach a machine's files.
    #[error(
        "{0} may be entered by root only, and a machine's process, which is nobody on this host, has its files below it"
    )]
    Closed(PathBuf),
    /// qemu-img does not make a disk.
    #[error("qemu-img makes no disk: {0}")]
    Disk(String),
    /// Machines that could not be ended may still run, and there shall not be ever more of them.
    #[error(
        "libvirt has {0} machines of this process that could not be ended, and no other is booted before they are"
    )]
    Unended(usize),
    /// Somebody else opened a machine's channel.
    #[error("user {0} opened the channel of a machine, which is not its QEMU")]
    Stranger(u32),
}

impl LibvirtError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::NotLocal(_) => {
                Some("set vm.libvirt_uri = \"qemu:///system\", or choose another engine".to_owned())
            }
            Self::NoEngine(_) | Self::OtherBuild(_) => Some(
                "build it beside mayfly: cargo build --release -p libvirt-engine (needs libvirt-dev)"
                    .to_owned(),
            ),
            Self::Refused { step, .. } if step == "reach libvirt" => {
                Some("apt-get install libvirt-daemon-system, and start libvirtd".to_owned())
            }
            Self::Closed(path) => Some(format!("chmod o+x {}", path.display())),
            Self::Unended(_) => {
                Some("virsh list --all names them; the log says why each cannot be ended".to_owned())
            }
            Self::Disk(_) => Some("apt-get install qemu-utils".to_owned()),
            _ => None,
        }
    }

    pub(super) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { doing, path, error }
    }
}

//! Why there is no machine.

use std::{io, path::PathBuf, time::Duration};

use images::MachineError;
use thiserror::Error;
use tokio::task::JoinError;

use super::{freshness::Stale, libvirt::LibvirtError, qmp::QmpError};

/// No machine can be had.
#[derive(Debug, Error)]
pub enum VmError {
    /// QEMU is not installed.
    #[error("there is no {0} on this host")]
    NoQemu(PathBuf),
    /// The program is not where a machine's process can see it.
    #[error("{0} does not lie below /usr, and nothing else of the host is shown to a machine's process")]
    QemuElsewhere(PathBuf),
    /// Nothing runs machines here.
    #[error("no guest boots under KVM on this host ({0}), and software emulation is not allowed")]
    NoKvm(String),
    /// Emulation was asked for and not allowed.
    #[error("software emulation is no security boundary, and it is not allowed")]
    NoEmulation,
    /// The verdict on the accelerator could not be kept.
    #[error("cannot write {path}")]
    Verdict {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The image has no form for machines.
    #[error("the image has no form that a machine could take: {0}")]
    Form(#[from] MachineError),
    /// QEMU's monitor.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// A template could not be made, kept or read.
    #[error("cannot {doing} the template of machines {path}")]
    Template {
        /// What.
        doing: &'static str,
        /// Where, or that it is in memory.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The machine is not somebody new.
    #[error("the machine is not fit for a new life: {0}")]
    Stale(#[from] Stale),
    /// Libvirt.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// A machine that was booted for others to begin in does not end.
    #[error("a machine that has been kept does not end: {0}")]
    Unended(String),
    /// It took too long.
    #[error("the machine was not ready within {0:?}")]
    Late(Duration),
    /// The runtime ends.
    #[error("a task of the tier was stopped")]
    Stopped(#[source] JoinError),
}

impl VmError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::NoQemu(_) => Some("apt-get install qemu-system-x86".to_owned()),
            Self::NoKvm(_) | Self::NoEmulation => Some(
                "give this host KVM, or set vm.allow_emulation = true: emulation is no security boundary"
                    .to_owned(),
            ),
            Self::QemuElsewhere(_) => Some("name a program below /usr: vm.qemu".to_owned()),
            Self::Form(error) => error.hint(),
            Self::Libvirt(error) => error.fix(),
            _ => None,
        }
    }

    pub(super) fn template(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Template { doing, path, error }
    }
}

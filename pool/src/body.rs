//! What a tier keeps of a sandbox beside its stream. A closed set: one variant for each tier.

use std::{path::PathBuf, time::Duration};

use agent::message::Bounds;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cgroup::CgroupError,
    channel::ChannelError,
    limits::Limits,
    obituary::Obituary,
    sandbox::Sandbox,
    tier::Tier,
    tiers::PoolSlot,
    vm::{self, Accelerator, LibvirtError},
};

/// The sandbox as its tier knows it.
#[derive(Debug)]
pub(crate) enum Body {
    Chroot(Sandbox),
    Nspawn(Sandbox),
    Docker {
        sandbox: Sandbox,
        /// What results say of the runtime that made it.
        caveat: Option<String>,
    },
    Vm {
        /// QEMU is its one process, in the job's cgroup.
        sandbox: Sandbox,
        accelerator: Accelerator,
    },
}

/// What a job has used, as the host's kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all the job's processes.
    pub cpu: Duration,
    /// Largest memory of all the job's processes and files together, in bytes.
    pub peak_memory: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
}

/// A sandbox could not be ended, or something of it stays.
#[derive(Debug, Error)]
pub enum DestroyError {
    /// A process does not die.
    #[error("the sandbox's processes were still there {0:?} after they were killed")]
    StillRunning(Duration),
    /// The docker daemon does not remove a container.
    #[error("the docker daemon does not remove container {name}")]
    Container {
        /// Which.
        name: String,
        /// What it answers.
        #[source]
        error: Box<bollard::errors::Error>,
    },
    /// Libvirt does not end or forget a machine.
    #[error("the machine is set aside")]
    Domain(#[source] Box<LibvirtError>),
    /// The kernel does not give up a cgroup.
    #[error("cannot remove the sandbox's cgroup {path}")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
}

/// A limit could not be tightened.
#[derive(Debug, Error)]
pub enum NarrowError {
    /// One of the cgroup's.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The word to the agent could not be sent.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The size of the throw-away disk.
    #[error("cannot change the size of the sandbox's disk")]
    Disk(#[source] std::io::Error),
    /// There is nobody in the sandbox any more.
    #[error("the sandbox has died")]
    Dead,
}

impl Body {
    pub(crate) fn tier(&self) -> Tier {
        match self {
            Self::Chroot(_) => Tier::Chroot,
            Self::Nspawn(_) => Tier::Nspawn,
            Self::Docker { .. } => Tier::Docker,
            Self::Vm { .. } => Tier::Vm,
        }
    }

    fn sandbox(&self) -> &Sandbox {
        match self {
            Self::Chroot(sandbox)
            | Self::Nspawn(sandbox)
            | Self::Docker { sandbox, .. }
            | Self::Vm { sandbox, .. } => sandbox,
        }
    }

    fn sandbox_mut(&mut self) -> &mut Sandbox {
        match self {
            Self::Chroot(sandbox)
            | Self::Nspawn(sandbox)
            | Self::Docker { sandbox, .. }
            | Self::Vm { sandbox, .. } => sandbox,
        }
    }

    /// What is worth knowing of how it was made.
    pub(crate) fn caveat(&self) -> Option<&str> {
        match self {
            Self::Chroot(_) | Self::Nspawn(_) | Self::Vm { .. } => None,
            Self::Docker { caveat, .. } => caveat.as_deref(),
        }
    }

    /// What runs it, where it is a machine.
    pub(crate) fn accelerator(&self) -> Option<Accelerator> {
        match self {
            Self::Vm { accelerator, .. } => Some(*accelerator),
            _ => None,
        }
    }

    /// Whose end is to be written, once the sandbox counts as clean.
    pub(crate) fn announce(&mut self, obituary: Obituary) {
        self.sandbox_mut().announce(obituary);
    }

    /// The sandbox keeps its place in the pool until it is gone.
    pub(crate) fn hold(&mut self, slot: PoolSlot) {
        self.sandbox_mut().hold(slot);
    }

    /// Its job begins.
    pub(crate) fn be_young(&mut self) {
        self.sandbox_mut().be_young();
    }

    /// Tightens limits before the job begins. What the host cannot reach is in the word to the agent that this gives.
    pub(crate) fn narrow(&self, from: &Limits, to: &Limits) -> Result<Option<Bounds>, NarrowError> {
        match self {
            Self::Vm { sandbox, .. } => {
                sandbox.cgroup().slow_down(to)?;
                Ok(Some(vm::bounds_of(to)))
            }
            _ => self.sandbox().narrow(from, to).map(|()| None),
        }
    }

    /// Whether its first process lives.
    pub(crate) fn is_alive(&self) -> bool {
        self.sandbox().is_alive()
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.sandbox().is_halted()
    }

    pub(crate) fn usage(&self) -> Usage {
        self.sandbox().usage()
    }

    pub(crate) fn survivors(&self) -> Option<usize> {
        match self {
            // A kernel of its own: the host cannot look.
            Self::Vm { .. } => None,
            _ => self.sandbox().survivors(),
        }
    }

    pub(crate) async fn destroy(self) -> Result<(), DestroyError> {
        match self {
            Self::Chroot(sandbox)
            | Self::Nspawn(sandbox)
            | Self::Docker { sandbox, .. }
            | Self::Vm { sandbox, .. } => sandbox.destroy().await,
        }
    }
}

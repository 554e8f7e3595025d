//! What sandboxes are made with whose processes run on the host's own kernel, whichever tier they are of: ids, cgroups,
//! the process that clones them, and the task that ends those which nobody ended.

use std::{io, path::Path};

use thiserror::Error;

use crate::{
    cgroup::{Cgroup, CgroupError, Hierarchy},
    chroot::Spawner,
    greeting::GreetingError,
    id::GenerationId,
    instance::Instance,
    ledger::LedgerError,
    limits::Limits,
    sandbox::{Remains, Undertaker},
    uids::{UidError, UidRange},
};

/// One for each pool.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) instance: Instance,
    hierarchy: Hierarchy,
    pub(crate) spawner: Spawner,
    pub(crate) undertaker: Undertaker,
}

/// Sandboxes cannot be made here.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The spawner process did not start.
    #[error("cannot start the process that clones sandboxes")]
    Spawner(#[source] io::Error),
}

/// A sandbox could not be made. Nothing of it is left.
#[derive(Debug, Error)]
pub enum MakeError {
    /// No user ids.
    #[error(transparent)]
    Uids(#[from] UidError),
    /// No cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No stream.
    #[error("cannot make the sandbox's stream")]
    Stream(#[source] io::Error),
    /// The spawner is gone or does not answer.
    #[error("the process that clones sandboxes failed")]
    Spawner(#[source] io::Error),
    /// The spawner could not do a step.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The agent did not answer as it must.
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    /// The clean sandbox cannot be recorded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The host looked at the job's process and did not find it confined.
    #[error("the job's process is not confined: {0}")]
    Unconfined(String),
}

impl Workshop {
    pub(crate) fn open(program: &Path, instance: Instance, hierarchy: Hierarchy) -> Result<Self, OpenError> {
        let spawner = Spawner::start(program).map_err(OpenError::Spawner)?;
        Ok(Self { instance, hierarchy, spawner, undertaker: Undertaker::start() })
    }

    /// What must exist before the first process, so that nothing ever runs unlimited or unlabelled.
    pub(crate) fn lay_out(&self, generation: GenerationId, limits: &Limits) -> Result<Remains, MakeError> {
        let uids = UidRange::claim(&self.instance.uids(), &self.instance.signature())?;
        let name = self.instance.cgroup().join(generation.to_string());
        let cgroup = Cgroup::make(&self.hierarchy, name, limits, uids.base())?;
        Ok(Remains::new(cgroup, uids, &self.undertaker))
    }

    /// Waits until everything that was dropped is gone, and ends the spawner.
    pub(crate) async fn close(self) {
        self.undertaker.finish().await;
        self.spawner.stop().await;
    }
}

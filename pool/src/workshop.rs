//! What sandboxes are made with whose processes run on the host's own kernel, whichever tier they are of: ids, cgroups,
//! the process that clones them, and the task that ends those which nobody ended.

use std::{io, path::Path, sync::Arc, time::Duration};

use agent::message::Identity;
use images::{Image, RootMode};
use thiserror::Error;

use crate::{
    cgroup::{Cgroup, CgroupError, Delegated, Hierarchy},
    chroot::{
        Spawner,
        plan::{Entries, Plan},
    },
    docker::DockerError,
    greeting::GreetingError,
    id::GenerationId,
    instance::{Instance, InstanceError},
    ledger::LedgerError,
    limits::Limits,
    nspawn::NotInstalled,
    sandbox::{Remains, Undertaker},
    tier::Tier,
    uids::{UidError, UidRange},
    vm::VmError,
    witness::Witness,
};

/// What every sandbox calls itself.
pub(crate) const HOSTNAME: &str = "mayfly";

/// The agent's uid inside: next to nobody, and no account of an image.
const AGENT_UID: u32 = 65_533;

/// How long a sandbox may take to become clean. A host that needs seconds is overloaded.
pub(crate) const MAKING_DEADLINE: Duration = Duration::from_secs(10);

/// Who agent and job are in the sandboxes of an image.
pub(crate) fn identity(image: &Image) -> Identity {
    Identity { agent: AGENT_UID, uid: image.config.user, gid: image.config.group }
}

/// One for each pool.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) instance: Instance,
    hierarchy: Hierarchy,
    /// Goes after the sandboxes.
    _delegated: Delegated,
    pub(crate) spawner: Spawner,
    pub(crate) undertaker: Undertaker,
}

/// Sandboxes cannot be made here.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The spawner process did not start.
    #[error("cannot start the process that clones sandboxes")]
    Spawner(#[source] io::Error),
    /// There is no place for the cgroups of sandboxes.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The place cannot be noted.
    #[error(transparent)]
    Instance(#[from] InstanceError),
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
    /// There is no systemd-nspawn that could.
    #[error(transparent)]
    NoNspawn(#[from] NotInstalled),
    /// The docker daemon.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The sandbox ended while it was made.
    #[error("the sandbox ended before it was clean")]
    Died,
    /// systemd-nspawn ended, or did not say in time that its container runs.
    #[error("systemd-nspawn did not start the sandbox")]
    Supervisor(#[source] io::Error),
    /// It also said why.
    #[error("{who} complains: {said}")]
    Complaint {
        /// Who makes the sandbox.
        who: &'static str,
        /// Its own words.
        said: String,
        /// What failed with it.
        #[source]
        error: Box<MakeError>,
    },
    /// The host looked at the job's process and did not find it confined.
    #[error("the sandbox is not confined: {0}")]
    Unconfined(String),
}

impl Workshop {
    pub(crate) fn open(
        program: &Path,
        instance: Instance,
        mut hierarchy: Hierarchy,
        witness: Arc<dyn Witness>,
    ) -> Result<Self, OpenError> {
        let delegated = hierarchy.delegate(&instance.scope())?;
        instance.note_base(hierarchy.base())?;
        hierarchy.prepare(&instance.cgroup())?;
        let spawner = Spawner::start(program).map_err(OpenError::Spawner)?;
        let undertaker = Undertaker::start(witness);
        Ok(Self { instance, hierarchy, _delegated: delegated, spawner, undertaker })
    }

    pub(crate) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// What must exist before the first process, so that nothing ever runs unlimited or unlabelled.
    pub(crate) fn lay_out(
        &self,
        tier: Tier,
        generation: GenerationId,
        limits: &Limits,
    ) -> Result<Remains, MakeError> {
        let uids = UidRange::claim(&self.instance.uids(), &self.instance.signature())?;
        let cgroup = self.cgroup(generation, limits, uids.base())?;
        Ok(Remains::new(tier, cgroup, uids, &self.undertaker))
    }

    /// The cgroups of one life.
    pub(crate) fn cgroup(
        &self,
        generation: GenerationId,
        limits: &Limits,
        id_base: u32,
    ) -> Result<Cgroup, CgroupError> {
        let name = self.instance.cgroup().join(generation.to_string());
        Cgroup::make(&self.hierarchy, &name, limits, id_base)
    }

    /// What the spawner is to make of an image.
    pub(crate) fn plan(&self, image: &Image, limits: &Limits, id_base: u32) -> Plan {
        Plan {
            rootfs: image.rootfs.to_string_lossy().into_owned(),
            id_base,
            disk: limits.disk,
            inodes: limits.inodes,
            writable_root: image.config.root == RootMode::Writable,
            job_uid: image.config.user,
            job_gid: image.config.group,
            hostname: HOSTNAME.to_owned(),
            root_point: self.instance.root_point().to_string_lossy().into_owned(),
            disk_point: self.instance.disk_point().to_string_lossy().into_owned(),
            entries: Entries::Directories,
        }
    }

    /// Waits until everything that was dropped is gone, and ends the spawner.
    pub(crate) async fn close(self) {
        self.undertaker.finish().await;
        self.spawner.stop().await;
    }
}

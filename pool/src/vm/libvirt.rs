//! The libvirt engine: a machine is booted once, kept with its memory, and reverted to that before each life.
//!
//! Its domains are libvirt's, each life's process is in the job's cgroup like any other sandbox's, and ends like it: by
//! its pidfd, whether or not libvirt answers. What is libvirt's alone to do, `libvirt/engine.rs` has done by a program of its own.

mod domain;
mod engine;
mod error;
pub(crate) mod leftovers;
mod stable;
mod uri;
mod xml;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent::message::Ready;
use images::{Image, RootMode};
use tokio::{sync::OnceCell, time::timeout};

pub(crate) use self::{
    domain::Domain,
    stable::{Stable, shut},
};
use self::{
    domain::{Own, Process},
    xml::Owner,
};
pub use self::{error::LibvirtError, uri::check_local};
use super::{
    BOOT_DEADLINE, bounds_of, error::VmError, freshness, machine::Machine, settings::Libvirt as Settings,
};
use crate::{
    channel::Channel,
    failpoint, greeting,
    id::{GenerationId, Id},
    limits::Limits,
    proof,
    sandbox::{Remains, Sandbox},
    uids::UidRange,
    workshop::{MAKING_DEADLINE, MakeError, Workshop, identity},
};

/// How long a new life may take: libvirt's part, which is a new process, and then what every sandbox takes.
const LIFE_DEADLINE: Duration = Duration::from_secs(30);

/// Makes machines at libvirt.
#[derive(Debug)]
pub(super) struct Libvirt {
    workshop: Arc<Workshop>,
    settings: Settings,
    node: PathBuf,
    /// Asked when the first machine is wanted.
    stable: OnceCell<Arc<Stable>>,
}

/// A life that has begun.
pub(super) struct Begun {
    pub(super) generation: GenerationId,
    pub(super) sandbox: Sandbox,
    pub(super) channel: Channel,
    pub(super) ready: Ready,
}

impl Libvirt {
    pub(super) fn new(workshop: Arc<Workshop>, settings: Settings, node: &Path) -> Self {
        Self { workshop, settings, node: node.to_owned(), stable: OnceCell::new() }
    }

    /// The machines of this process, if it ever made some.
    pub(super) fn stable(&self) -> Option<&Arc<Stable>> {
        self.stable.get()
    }

    /// A new life in a machine that rests, or in one that is booted for it.
    pub(super) async fn make(
        &self,
        machine: &Machine,
        image: &Image,
        limits: &Limits,
    ) -> Result<Begun, MakeError> {
        let open = || Stable::open(&self.settings, &self.workshop.instance, &self.node);
        let stable = self.stable.get_or_try_init(open).await.map_err(VmError::from)?;
        let kind = machine.kind();
        if let Some(domain) = stable.take(&kind) {
            match self.begin(domain, machine, image, limits).await {
                Ok(begun) => return Ok(begun),
                // It is set aside, and no job waits for what has become of it.
                Err(error) => tracing::error!(%error, "a machine cannot be reverted: another one is booted"),
            }
        }
        loop {
            self.boot(stable, &kind, machine).await?;
            // Somebody else may have been quicker.
            if let Some(domain) = stable.take(&kind) {
                return self.begin(domain, machine, image, limits).await;
            }
        }
    }

    /// Boots a machine, keeps it where its agent has answered once, and lets it rest.
    async fn boot(&self, stable: &Arc<Stable>, kind: &str, machine: &Machine) -> Result<(), MakeError> {
        stable.make_room().await.map_err(VmError::from)?;
        let instance = &self.workshop.instance;
        let uids = UidRange::claim(&instance.uids(), &instance.signature())?;
        let ((name, folder), generation) = (stable.another(), Id::random());
        tracing::debug!(domain = name, "booting a machine");
        let own = Own::lay_out(folder, name, kind.to_owned(), machine, uids).await.map_err(VmError::from)?;
        let remains = self.remains(Domain::of(stable, own), generation, &machine.boot_limits())?;
        let mut sandbox = Sandbox::new(remains, &self.workshop.undertaker);
        failpoint::pass("vm-laid-out");
        let booted = async {
            let process = sandbox.domain().boot(machine, self.owner()).await.map_err(VmError::from)?;
            // No cgroup has its process yet.
            failpoint::pass("vm-booting");
            let mut channel = settle(&mut sandbox, process)?;
            let least =
                Limits { memory: Limits::LEAST_MEMORY, disk: Limits::LEAST_DISK, ..Limits::default() };
            freshness::renew_first(&mut channel, generation, bounds_of(&least))
                .await
                .map_err(VmError::from)?;
            sandbox.domain().keep().await.map_err(VmError::from)?;
            failpoint::pass("vm-kept");
            Ok::<_, MakeError>(())
        };
        timeout(BOOT_DEADLINE, booted).await.unwrap_or(Err(VmError::Late(BOOT_DEADLINE).into()))?;
        sandbox.be_sound();
        sandbox.destroy().await.map_err(|error| VmError::Unended(error.to_string()).into())
    }

    /// Reverts a machine and proves that it is somebody new. One with which that fails is never reverted again.
    async fn begin(
        &self,
        domain: Domain,
        machine: &Machine,
        image: &Image,
        limits: &Limits,
    ) -> Result<Begun, MakeError> {
        let (generation, gid) = (Id::random(), domain.gid());
        tracing::debug!(%generation, domain = domain.name(), "reverting a machine");
        let remains = self.remains(domain, generation, &machine.host_limits(limits))?;
        let mut sandbox = Sandbox::new(remains, &self.workshop.undertaker);
        let begun = async {
            let process = sandbox.domain().revert().await.map_err(VmError::from)?;
            failpoint::pass("vm-begun");
            let mut channel = settle(&mut sandbox, process)?;
            let renewed = async {
                freshness::renew(&mut channel, generation, bounds_of(limits)).await.map_err(VmError::from)
            };
            let labelled =
                async { sandbox.domain().label(self.owner(), generation).await.map_err(VmError::from) };
            tokio::try_join!(renewed, labelled)?;
            let writable_root = image.config.root == RootMode::Writable;
            let ready =
                greeting::greet(&mut channel, Some(identity(image)), writable_root, MAKING_DEADLINE).await?;
            proof::check_domain(&sandbox, gid).map_err(MakeError::Unconfined)?;
            Ok::<_, MakeError>((channel, ready))
        };
        let begun = timeout(LIFE_DEADLINE, begun).await;
        let (channel, ready) = begun.unwrap_or(Err(VmError::Late(LIFE_DEADLINE).into()))?;
        Ok(Begun { generation, sandbox, channel, ready })
    }

    fn owner(&self) -> Owner<'_> {
        let instance = &self.workshop.instance;
        Owner { node: &self.node, instance: instance.id(), boot: instance.boot() }
    }

    fn remains(
        &self,
        domain: Domain,
        generation: GenerationId,
        limits: &Limits,
    ) -> Result<Remains, MakeError> {
        let cgroup = self.workshop.cgroup(generation, limits, domain.uids().base())?;
        Ok(Remains::of_domain(cgroup, domain, &self.workshop.undertaker))
    }
}

/// Takes a machine's process into its sandbox.
fn settle(sandbox: &mut Sandbox, process: Process) -> Result<Channel, MakeError> {
    let Process { stream, pid, handle } = process;
    sandbox.depend_on(handle);
    sandbox.cgroup().adopt(pid)?;
    let (reader, writer) = stream.into_split();
    Ok(Channel::new(reader, writer))
}

//! The docker tier: a docker daemon makes the namespaces, takes the capabilities and loads its filter; mayfly then gives
//! the container the same root, job's cgroup and agent as the chroot tier has.
//!
//! What the daemon is told is in `docker/order.rs`, what it must be in `docker/engine.rs`, and how a container ends in
//! `docker/fleet.rs`. A container as the daemon makes it is confined by itself: read-only root, sized tmpfs, no capability.
//! Docker cannot express the rest (one disk that bounds all that is written, a throw-away root that can be written to, an
//! agent that the job does not see, nothing of the host's such as its `resolv.conf`), so the container's root is replaced
//! before its agent is spoken to: `enclose.rs`.
//!
//! The agent is the container's first process; its stream is the one that is attached. There is no user namespace, so
//! agent and job are one user, whose id on the host no other sandbox has; nothing inside ever has a capability. The agent
//! is no dumpable process and hidden in `/proc`, cannot be signalled by its own namespace, and the job's filter refuses
//! what could throttle another process.
//!
//! A runtime with a kernel of its own (gVisor's `runsc`, Kata) is another matter: the host sees one program, of which it
//! bounds memory and CPU time. Root and disks stay as the daemon makes them, and what is said of the inside is the agent's
//! word.

mod engine;
mod error;
mod fleet;
mod floor;
mod image;
mod labels;
mod leftovers;
mod order;
mod settings;
mod stream;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agent::message::{AGENT_PATH, Identity};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions,
    StartContainerOptions,
};
use images::{Image, RootMode};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    sync::OnceCell,
    task::spawn_blocking,
    time::{sleep, timeout},
};

pub use self::{engine::Engine, error::DockerError, image::name_of, settings::Docker};
pub(crate) use self::{
    fleet::{Container, Fleet, Removed},
    leftovers::{count, inspect, noted, remove},
};
use self::{image::Images, order::Order, stream::Complaints};
use crate::{
    body::Body,
    cgroup::{self, Cgroup},
    channel::Channel,
    chroot::plan::{Kind, Task},
    greeting,
    id::{GenerationId, Id, InstanceId},
    instance,
    lease::Proof,
    limits::Limits,
    proof,
    sandbox::{Remains, Sandbox},
    uids::UidRange,
    workshop::{MAKING_DEADLINE, MakeError, Workshop},
};

/// A daemon or a runtime may hang for ever in the middle of a start.
const STARTING_DEADLINE: Duration = Duration::from_secs(30);

/// How often the container's first process is looked at until it is the agent.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Makes sandboxes by a docker daemon of this host.
#[derive(Debug)]
pub(crate) struct Tier {
    workshop: Arc<Workshop>,
    settings: Docker,
    node: PathBuf,
    images: Images,
    /// Asked when the first sandbox is wanted: most pools never want one.
    daemon: OnceCell<Daemon>,
}

/// A daemon that can be used.
#[derive(Debug)]
struct Daemon {
    fleet: Arc<Fleet>,
    engine: Engine,
}

/// A container that runs, and what it is known by.
struct Running {
    id: String,
    channel: Channel,
    /// Its first process.
    leader: i32,
}

impl Tier {
    pub(crate) fn new(workshop: Arc<Workshop>, settings: Docker, run_dir: &Path, node: &Path) -> Self {
        let images = Images::new(run_dir, node);
        Self { workshop, settings, node: node.to_owned(), images, daemon: OnceCell::new() }
    }

    /// Whether the runtime may have a kernel of its own.
    pub(crate) fn may_have_own_kernel(&self) -> bool {
        self.settings.may_have_own_kernel()
    }

    /// Makes a sandbox and proves that it is clean.
    pub(crate) async fn make(&self, image: Arc<Image>, limits: Limits) -> Result<Proof, MakeError> {
        let started = Instant::now();
        let daemon = self.daemon.get_or_try_init(|| self.reach()).await?;
        if daemon.engine.own_kernel && image.config.root == RootMode::Writable {
            let (image, runtime) = (image.name.to_string(), daemon.engine.runtime.clone());
            return Err(DockerError::WritableRoot { image, runtime }.into());
        }
        let name = self.images.hand_over(daemon.fleet.client(), &image).await?;

        let generation = Id::random();
        let uids = UidRange::claim(&self.workshop.instance.uids(), &self.workshop.instance.signature())?;
        let container = daemon.fleet.announce(generation);
        let order = self.order(daemon, &image, name.clone(), limits, &uids, generation);
        let remains = Remains::of_container(container, uids, &self.workshop.undertaker);
        let mut sandbox = Sandbox::new(remains, &self.workshop.undertaker);

        let complaints = Complaints::default();
        let settled = async {
            let running = start(&sandbox, order, &complaints).await;
            if let Err(MakeError::Docker(DockerError::Request { error, .. })) = &running
                && DockerError::status(error) == Some(404)
            {
                self.images.forget(&name).await;
            }
            let Running { id, mut channel, leader } = running?;
            sandbox.depend_on(handle(leader)?);
            let writable_root = image.config.root == RootMode::Writable;
            if daemon.engine.own_kernel {
                // What is inside is that kernel's: the host bounds the whole, and believes the agent.
                sandbox.settle(Cgroup::around(self.workshop.hierarchy(), leader, &id, &limits)?);
                let ready = greeting::greet(&mut channel, None, writable_root, MAKING_DEADLINE).await?;
                return Ok((channel, ready));
            }
            sandbox.settle(Cgroup::within(self.workshop.hierarchy(), leader, &id, &limits)?);
            await_agent(leader).await?;
            self.enclose(&image, &limits, &sandbox, leader).await?;
            let ready = greeting::greet(&mut channel, None, writable_root, MAKING_DEADLINE).await?;
            bring_job_to_its_leaf(&sandbox, leader).await?;
            check(&sandbox, leader, &image)?;
            Ok((channel, ready))
        };
        let settled: Result<_, MakeError> = timeout(STARTING_DEADLINE, settled)
            .await
            .unwrap_or_else(|_| Err(DockerError::Slow(STARTING_DEADLINE).into()));
        // Why the runtime or the agent gave up stands there and nowhere else.
        let (channel, ready) = settled.map_err(|error| match complaints.said() {
            Some(said) => MakeError::Complaint { who: "the container", said, error: Box::new(error) },
            None => error,
        })?;
        let caveat = daemon.engine.caveat();
        let making = started.elapsed();
        let body = Body::Docker { sandbox, caveat };
        Ok(Proof { generation, image, limits, ready, making, channel, body })
    }

    /// Removes what the daemon has of this process and nobody here holds, and images that are no more.
    pub(crate) async fn sweep(&self, images_too: bool) {
        let Some(daemon) = self.daemon.get() else { return };
        let mut swept = daemon.fleet.sweep(self.workshop.instance.id()).await;
        if images_too && swept.is_ok() {
            swept = self.images.collect(daemon.fleet.client()).await;
        }
        if let Err(error) = swept {
            tracing::warn!(%error, "cannot look for what is left at the docker daemon");
        }
    }

    /// The containers of this process, if it ever made some.
    pub(crate) fn fleet(&self) -> Option<Arc<Fleet>> {
        self.daemon.get().map(|daemon| Arc::clone(&daemon.fleet))
    }

    async fn reach(&self) -> Result<Daemon, DockerError> {
        let client = engine::connect(&self.settings).await?;
        let engine = engine::ask(&client, &self.settings).await?;
        if let Some(caveat) = engine.caveat() {
            tracing::debug!(caveat, "the docker daemon has less than it could");
        }
        // Before the first container: whoever finds this process dead looks there.
        leftovers::note(&self.workshop.instance.mark(), &self.settings)?;
        Ok(Daemon { fleet: Fleet::new(client), engine })
    }

    fn order(
        &self,
        daemon: &Daemon,
        image: &Image,
        name: String,
        limits: Limits,
        uids: &UidRange,
        generation: GenerationId,
    ) -> Order {
        let instance = &self.workshop.instance;
        let parent = self.workshop.hierarchy().base().join(instance::containers_cgroup_name(instance.id()));
        Order {
            image: name,
            uid: uids.base() + image.config.user,
            gid: uids.base() + image.config.group,
            limits,
            runtime: daemon.engine.runtime.clone(),
            own_kernel: daemon.engine.own_kernel,
            cgroup_parent: daemon.engine.places_cgroups.then(|| format!("/{}", parent.display())),
            labels: labels::of(instance, &self.node.to_string_lossy(), generation),
        }
    }

    /// Gives the container its root, before its agent is spoken to.
    async fn enclose(
        &self,
        image: &Image,
        limits: &Limits,
        sandbox: &Sandbox,
        leader: i32,
    ) -> Result<(), MakeError> {
        let plan = self.workshop.plan(image, limits, sandbox.id_base());
        let task = Task::Enclose { plan, kind: Kind::HostsUsers, leader };
        self.workshop.spawner.ask(&task, &[]).await?;
        // Else the pid may have been another's.
        if sandbox.is_alive() { Ok(()) } else { Err(MakeError::Died) }
    }
}

/// Has the daemon make and start the container.
async fn start(sandbox: &Sandbox, order: Order, complaints: &Complaints) -> Result<Running, MakeError> {
    let container = sandbox.container().ok_or(MakeError::Died)?;
    let (client, name) = (container.client(), container.name());
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let made = client.create_container(Some(options), order.body()).await;
    let id = made.map_err(DockerError::request("make a container"))?.id;

    // Before the start, so that not a byte is missed.
    let options =
        AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
    let attached = client.attach_container(&id, Some(options)).await;
    let attached = attached.map_err(DockerError::request("attach to the container"))?;
    let channel = Channel::new(stream::Stdout::new(attached.output, complaints.clone()), attached.input);

    let started = client.start_container(&id, None::<StartContainerOptions>).await;
    started.map_err(DockerError::request("start the container"))?;
    let found = client.inspect_container(&id, None::<InspectContainerOptions>).await;
    let found = found.map_err(DockerError::request("look at the container"))?;
    let leader = found.state.and_then(|state| state.pid).and_then(|pid| i32::try_from(pid).ok());
    match leader {
        Some(leader @ 1..) => Ok(Running { id, channel, leader }),
        _ => Err(MakeError::Died),
    }
}

fn handle(leader: i32) -> Result<OwnedFd, MakeError> {
    let pid = Pid::from_raw(leader).ok_or(MakeError::Died)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|_| MakeError::Died)
}

/// Until then the first process is the runtime, with the host's rights and in the middle of giving them up.
async fn await_agent(leader: i32) -> Result<(), MakeError> {
    let program = format!("/proc/{leader}/exe");
    let became = async {
        // An end shows as an error.
        while !fs::read_link(&program).map_err(|_| MakeError::Died)?.ends_with(&AGENT_PATH[1..]) {
            sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    };
    timeout(MAKING_DEADLINE, became).await.unwrap_or(Err(MakeError::Died))
}

/// Without a right of its own the agent cannot do it.
async fn bring_job_to_its_leaf(sandbox: &Sandbox, leader: i32) -> Result<(), MakeError> {
    let cgroup = sandbox.cgroup().clone();
    let [job] = cgroup.beside(leader)[..] else {
        return Err(MakeError::Unconfined(format!(
            "{} processes beside the agent, not one",
            cgroup.beside(leader).len()
        )));
    };
    let moved = spawn_blocking(move || cgroup.adopt(job)).await;
    Ok(moved.map_err(DockerError::Stopped)??)
}

/// The host looks for itself at both processes.
fn check(sandbox: &Sandbox, leader: i32, image: &Image) -> Result<(), MakeError> {
    let identity = Identity { agent: image.config.user, uid: image.config.user, gid: image.config.group };
    let cgroup = sandbox.cgroup();
    if cgroup.agent_pids() != [leader] {
        return Err(MakeError::Unconfined(format!("processes {:?} beside the agent", cgroup.beside(leader))));
    }
    proof::check_stripped(sandbox, leader, identity)
        .and_then(|()| proof::check_namespaces(leader, &["cgroup", "ipc", "mnt", "net", "pid", "uts"]))
        .and_then(|()| proof::check_job_of_container(sandbox, identity))
        .map_err(MakeError::Unconfined)
}

/// The cgroups that a daemon makes above those of a process's containers, in every tree: it leaves them.
pub(crate) fn remove_cgroups_of(instance: InstanceId, base: &Path) -> io::Result<()> {
    for tree in cgroup::every_tree()? {
        match fs::remove_dir(tree.join(base).join(instance::containers_cgroup_name(instance))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

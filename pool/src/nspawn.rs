//! The nspawn tier: systemd-nspawn makes the namespaces, takes the capabilities and loads its filter; mayfly then gives
//! the container the same root, cgroups and agent as the chroot tier has.
//!
//! What can be said on its command line is in `nspawn/command.rs`, how it is started in `nspawn/launch.rs` and what it
//! leaves open and mayfly closes in `enclose.rs`; the latter two run in the spawner. This file is the host's side.
//!
//! The agent is the container's first process, over two pipes. It begins as the container's user 0 with the five
//! capabilities of `command::AGENT_NEEDS`, all within the container's user namespace, and is told an identity in
//! `Hello` as on the chroot tier: it arms the job's process as another user without any capability, and keeps three
//! to signal it and to open files as it. So a job has neither the agent's uid nor a sight of it, and nothing rests on
//! the filter alone. systemd-nspawn itself stays outside as the agent's parent: if it dies the agent dies with it, and
//! the job is lost with its sandbox.
//!
//! Job and agent see cgroups from the agent's leaf, where systemd-nspawn makes their namespace: `/../job`. Giving each
//! its own view would take `CAP_SYS_ADMIN` inside.

mod command;
mod install;
mod launch;
mod leader;
pub(crate) mod notice;

use std::{
    io::{self, PipeReader},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use agent::message::AGENT_PATH;
use images::Image;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::Interest,
    net::unix::pipe,
    sync::OnceCell,
    task::{JoinError, spawn_blocking},
    time::timeout,
};

pub use self::install::{Installed, NotInstalled};
pub(crate) use self::{
    install::find,
    launch::{hear, launch, tale},
};
use crate::{
    body::Body,
    cgroup::Entry,
    channel::Channel,
    chroot::plan::{Entries, Kind, Launch, Task},
    greeting,
    id::Id,
    lease::Proof,
    limits::Limits,
    proof,
    sandbox::Sandbox,
    tier::Tier,
    watch::watch,
    workshop::{MAKING_DEADLINE, MakeError, Workshop, identity},
};

/// The cgroups that systemd-nspawn makes below the one it is started in: for the container, and for itself.
const PAYLOAD: &str = "payload";
const SUPERVISOR: &str = "supervisor";

/// Makes sandboxes by systemd-nspawn on this host.
#[derive(Debug)]
pub(crate) struct Nspawn {
    workshop: Arc<Workshop>,
    /// Looked for when the first sandbox is wanted: most pools never want one.
    installed: OnceCell<PathBuf>,
}

/// The host's ends of what systemd-nspawn is started with.
struct Ends {
    channel: Channel,
    stderr: PipeReader,
    notify: OwnedFd,
    /// systemd-nspawn itself.
    supervisor: OwnedFd,
}

impl Nspawn {
    pub(crate) fn new(workshop: Arc<Workshop>) -> Self {
        Self { workshop, installed: OnceCell::new() }
    }

    /// Makes a sandbox and proves that it is clean.
    pub(crate) async fn make(&self, image: Arc<Image>, limits: Limits) -> Result<Proof, MakeError> {
        let started = Instant::now();
        let program = self.installed.get_or_try_init(look).await?;
        let generation = Id::random();
        let remains = self.workshop.lay_out(Tier::Nspawn, generation, &limits)?;
        let mut sandbox = Sandbox::new(remains, &self.workshop.undertaker);

        let launch = Launch {
            program: program.to_string_lossy().into_owned(),
            args: command::args(generation, sandbox.id_base(), &limits, AGENT_PATH),
            rootfs: image.rootfs.to_string_lossy().into_owned(),
            legacy_tree: sandbox.cgroup().legacy_tree().map(|tree| tree.to_string_lossy().into_owned()),
            entry: Entries::Directories,
        };
        let ends = self.start(launch, &sandbox).await?;
        sandbox.depend_on(ends.supervisor.try_clone().map_err(MakeError::Stream)?);

        let Ends { mut channel, stderr, notify, supervisor } = ends;
        let settled = async {
            let leader = await_leader(notify, &supervisor, &sandbox).await?;
            self.enclose(&image, &limits, &mut sandbox, leader).await?;
            let writable_root = image.config.root == images::RootMode::Writable;
            let ready =
                greeting::greet(&mut channel, Some(identity(&image)), writable_root, MAKING_DEADLINE).await?;
            bring_job_to_its_leaf(&sandbox, leader).await?;
            check_alone(&sandbox, leader, &supervisor)?;
            proof::check_job(&sandbox, identity(&image)).map_err(MakeError::Unconfined)?;
            Ok(ready)
        };
        let settled: Result<_, MakeError> = settled.await;
        // Why systemd-nspawn or the agent gave up stands there and nowhere else.
        let ready = settled.map_err(|error| match notice::complaint(&stderr) {
            Some(said) => MakeError::Complaint { who: "systemd-nspawn", said, error: Box::new(error) },
            None => error,
        })?;
        Ok(Proof {
            generation,
            image,
            limits,
            ready,
            making: started.elapsed(),
            channel,
            body: Body::Nspawn(sandbox),
        })
    }

    /// Starts systemd-nspawn in the agent's cgroups, with pipes for the agent.
    async fn start(&self, mut launch: Launch, sandbox: &Sandbox) -> Result<Ends, MakeError> {
        let pipe = || io::pipe().map_err(MakeError::Stream);
        let (stdin, to_agent) = pipe()?;
        let (from_agent, stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let entry = match sandbox.cgroup().agent_entry()? {
            Entry::Tasks(tasks) => {
                launch.entry = Entries::Tasks(tasks.len() as u8);
                tasks
            }
            Entry::Directory(directory) => vec![directory],
        };
        let mut fds = vec![stdin.as_fd(), stdout.as_fd(), their_stderr.as_fd()];
        fds.extend(entry.iter().map(AsFd::as_fd));
        let fds = self.workshop.spawner.ask(&Task::Nspawn(launch), &fds).await?;
        let [supervisor, notify] = <[OwnedFd; 2]>::try_from(fds)
            .map_err(|_| MakeError::Spawner(io::ErrorKind::InvalidData.into()))?;
        let reader = pipe::Receiver::from_owned_fd(from_agent.into()).map_err(MakeError::Stream)?;
        let writer = pipe::Sender::from_owned_fd(to_agent.into()).map_err(MakeError::Stream)?;
        Ok(Ends { channel: Channel::new(reader, writer), stderr, notify, supervisor })
    }

    /// Gives the container its root, before its agent is spoken to.
    async fn enclose(
        &self,
        image: &Image,
        limits: &Limits,
        sandbox: &mut Sandbox,
        leader: i32,
    ) -> Result<(), MakeError> {
        let gone = |error: rustix::io::Errno| MakeError::Supervisor(error.into());
        let pid = Pid::from_raw(leader).ok_or_else(|| gone(rustix::io::Errno::SRCH))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(gone)?;
        let plan = self.workshop.plan(image, limits, sandbox.id_base());
        let task = Task::Enclose { plan, kind: Kind::OwnUsers, leader };
        self.workshop.spawner.ask(&task, &[]).await?;
        sandbox.depend_on(pidfd);
        // Else the pid may have been another's.
        if sandbox.is_alive() { Ok(()) } else { Err(gone(rustix::io::Errno::SRCH)) }
    }
}

async fn look() -> Result<PathBuf, MakeError> {
    Ok(spawn_blocking(find).await.map_err(stopped)??.program)
}

/// The runtime ends, and what it was to do with it.
fn stopped(error: JoinError) -> MakeError {
    MakeError::Supervisor(io::Error::other(error))
}

/// The container's first process, once systemd-nspawn says that there is one, and it is what it must be.
async fn await_leader(notify: OwnedFd, supervisor: &OwnedFd, sandbox: &Sandbox) -> Result<i32, MakeError> {
    let ended = async { watch(supervisor.try_clone()?, Interest::READABLE)?.readable().await.map(drop) };
    let told = async {
        tokio::select! {
            told = notice::running(notify) => told,
            ended = ended => Err(ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
        }
    };
    let leader = timeout(MAKING_DEADLINE, told)
        .await
        .map_err(|_| MakeError::Supervisor(io::ErrorKind::TimedOut.into()))?
        .map_err(MakeError::Supervisor)?;
    let supervisor = leader::pid_of(supervisor.as_fd()).map_err(MakeError::Supervisor)?;
    leader::check(leader, supervisor, sandbox.id_base()).map_err(MakeError::Unconfined)?;
    Ok(leader)
}

/// From its cgroup namespace the agent cannot reach the job's leaf, so the host does it.
async fn bring_job_to_its_leaf(sandbox: &Sandbox, leader: i32) -> Result<(), MakeError> {
    let mut pids = sandbox.cgroup().pids_below_agent(PAYLOAD);
    pids.retain(|pid| *pid != leader);
    let [job] = pids[..] else {
        return Err(MakeError::Unconfined(format!("{} processes beside the agent, not one", pids.len())));
    };
    let cgroup = sandbox.cgroup().clone();
    Ok(spawn_blocking(move || cgroup.adopt(job)).await.map_err(stopped)??)
}

/// Checks that systemd-nspawn and the agent are alone where they are.
fn check_alone(sandbox: &Sandbox, leader: i32, supervisor: &OwnedFd) -> Result<(), MakeError> {
    let supervisor = leader::pid_of(supervisor.as_fd()).map_err(MakeError::Supervisor)?;
    let cgroup = sandbox.cgroup();
    for (leaf, pids, expected) in [
        ("agent", cgroup.agent_pids(), None),
        (PAYLOAD, cgroup.pids_below_agent(PAYLOAD), Some(leader)),
        (SUPERVISOR, cgroup.pids_below_agent(SUPERVISOR), Some(supervisor)),
    ] {
        if pids != Vec::from_iter(expected) {
            return Err(MakeError::Unconfined(format!(
                "processes {pids:?} in cgroup {leaf}, not {expected:?}"
            )));
        }
    }
    Ok(())
}

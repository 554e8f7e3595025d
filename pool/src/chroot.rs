//! The chroot tier: namespaces, an id-mapped read-only root, seccomp and cgroups, made by mayfly itself.
//!
//! A sandbox is cloned by the spawner, sets itself up (`chroot/setup.rs`, the numbered story) and becomes the
//! agent. This file is the host's side: what must exist before, and the proof that what came out is clean and
//! confined. Its end is in `sandbox.rs`.

mod devices;
pub(crate) mod kernel;
pub(crate) mod mounts;
pub(crate) mod plan;
mod request;
pub(crate) mod setup;
pub(crate) mod spawner;

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use images::{Image, RootMode};
use tokio::net::UnixStream;

use self::plan::{Entries, Plan, Task};
pub(crate) use self::request::Spawner;
use crate::{
    body::Body,
    cgroup::Entry,
    channel::Channel,
    greeting,
    id::Id,
    lease::Proof,
    limits::Limits,
    proof,
    sandbox::{Remains, Sandbox},
    tier::Tier,
    workshop::{MAKING_DEADLINE, MakeError, Workshop, identity},
};

/// The one argument with which mayfly starts itself as the spawner.
pub const SPAWNER_ARG: &str = "__spawner";

/// Makes chroot sandboxes on this host.
#[derive(Debug)]
pub(crate) struct Chroot {
    workshop: Arc<Workshop>,
}

/// Runs the spawner: the whole life of a process that mayfly starts with [`SPAWNER_ARG`].
///
/// Call it before anything else in `main`: it must be the only thread.
#[must_use]
pub fn spawner() -> ExitCode {
    match spawner::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            let error = io::Error::from_raw_os_error(failed.errno);
            // Stderr is mayfly's own: the last words, as nobody may be left on the socket.
            let _ = writeln!(io::stderr(), "mayfly: the spawner cannot {}: {error}", failed.step);
            ExitCode::FAILURE
        }
    }
}

impl Chroot {
    pub(crate) fn new(workshop: Arc<Workshop>) -> Self {
        Self { workshop }
    }

    /// Makes a sandbox and proves that it is clean.
    pub(crate) async fn make(&self, image: Arc<Image>, limits: Limits) -> Result<Proof, MakeError> {
        let started = Instant::now();
        let generation = Id::random();

        let mut remains = self.workshop.lay_out(Tier::Chroot, generation, &limits)?;

        let writable_root = image.config.root == RootMode::Writable;
        let identity = identity(&image);
        let (ours, theirs) = StdStream::pair().map_err(MakeError::Stream)?;
        let plan = self.workshop.plan(&image, &limits, remains.uids().base());
        match self.spawn(plan, &remains, theirs.into()).await {
            Ok(pidfd) => remains.depend_on(pidfd),
            Err(error) => {
                self.workshop.undertaker.bury(remains);
                return Err(error);
            }
        }
        let sandbox = Sandbox::new(remains, &self.workshop.undertaker);

        ours.set_nonblocking(true).map_err(MakeError::Stream)?;
        let (reader, writer) = UnixStream::from_std(ours).map_err(MakeError::Stream)?.into_split();
        let mut channel = Channel::new(reader, writer);
        let ready = greeting::greet(&mut channel, Some(identity), writable_root, MAKING_DEADLINE).await?;
        proof::check_confined(&sandbox, identity).map_err(MakeError::Unconfined)?;

        let making = started.elapsed();
        Ok(Proof { generation, image, limits, ready, making, channel, body: Body::Chroot(sandbox) })
    }

    async fn spawn(&self, mut plan: Plan, remains: &Remains, stream: OwnedFd) -> Result<OwnedFd, MakeError> {
        let (agent, job) = (remains.cgroup().agent_entry()?, remains.cgroup().job_entry()?);
        let mut fds = vec![stream.as_fd()];
        plan.entries = match (&agent, &job) {
            (Entry::Tasks(agent), Entry::Tasks(job)) => {
                fds.extend(agent.iter().chain(job).map(AsFd::as_fd));
                Entries::Tasks(agent.len() as u8)
            }
            (Entry::Directory(agent), Entry::Directory(job)) => {
                fds.extend([agent.as_fd(), job.as_fd()] as [BorrowedFd<'_>; 2]);
                Entries::Directories
            }
            _ => unreachable!("both entries come from one hierarchy"),
        };
        let fds = self.workshop.spawner.ask(&Task::Chroot(plan), &fds).await?;
        fds.into_iter().next().ok_or_else(|| MakeError::Spawner(io::ErrorKind::InvalidData.into()))
    }
}

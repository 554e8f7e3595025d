//! The fork engine: a machine is booted once for each image and size, and all others begin where it stopped.
//!
//! What the first one leaves is a template: its memory in a file that nobody can write to any more, and the state of its
//! devices. A clone is a QEMU of its own whose memory is a private copy of that file, made page by page as it writes. It is
//! started ahead of its job, so that a checkout is one frame. `fork/template.rs` is how a template is made and kept,
//! `fork/launch.rs` the place where QEMU runs, `fork/spares.rs` where a process waits for the next life.

pub(super) mod launch;
mod spares;
mod template;

pub(super) use self::template::{boots, forget_unfinished};

use std::{
    fmt,
    fs::File,
    io::{self, PipeReader, PipeWriter},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::{Arc, Mutex, PoisonError},
};

use agent::message::Bounds;
use serde_json::json;
use tokio::{net::UnixStream, sync::OnceCell, time::timeout};

use self::{
    launch::Launch,
    spares::{Purpose, Spares},
    template::Template,
};
use super::{
    error::VmError,
    machine::{Begin, Machine},
    qmp::{Monitor, QmpError},
};
use crate::{
    cgroup::Entry,
    channel::Channel,
    chroot::plan::{Entries, Task},
    failpoint,
    id::{GenerationId, Id},
    limits::Limits,
    nspawn::notice::complaint,
    sandbox::Sandbox,
    tier::Tier,
    workshop::{MAKING_DEADLINE, MakeError, Workshop},
};

/// How many templates a process holds: each is as much memory as a guest has used. Those of the disk are soon read again.
const MOST_TEMPLATES: usize = 32;

/// Makes machines of templates.
#[derive(Debug)]
pub(super) struct Fork {
    workshop: Arc<Workshop>,
    /// By the machine's kind, and by its owner where that matters. Each is made once, and whoever comes meanwhile waits.
    templates: Mutex<Templates>,
    spares: Arc<Spares>,
}

/// The one that was asked for last comes last.
type Templates = Vec<(String, Arc<OnceCell<Arc<Template>>>)>;

/// A machine's process, and the host's ends of what it is given.
pub(super) struct Running {
    pub(super) channel: Channel,
    pub(super) monitor: Monitor,
}

/// A process that has yet to take over the state of its template, in the sandbox that it is to be.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) generation: GenerationId,
    pub(super) sandbox: Sandbox,
    pub(super) complaints: Complaints,
    pub(super) running: Running,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// Where QEMU says why it gave up. No word of a guest's ever gets there.
#[derive(Debug)]
pub(super) struct Complaints {
    ours: PipeReader,
    theirs: PipeWriter,
}

impl Complaints {
    pub(super) fn new() -> Result<Self, MakeError> {
        let (ours, theirs) = io::pipe().map_err(MakeError::Stream)?;
        Ok(Self { ours, theirs })
    }

    /// Adds what was said to an error.
    pub(super) fn explain(&self, error: MakeError) -> MakeError {
        match complaint(&self.ours) {
            Some(said) => MakeError::Complaint { who: "QEMU", said, error: Box::new(error) },
            None => error,
        }
    }
}

impl Fork {
    pub(super) fn new(workshop: Arc<Workshop>) -> Self {
        Self { workshop, templates: Mutex::default(), spares: Arc::default() }
    }

    /// The template of a kind of machines: of this process, of the disk, or booted now.
    ///
    /// Lives with these bounds need not be given them once more.
    pub(super) async fn template(
        &self,
        machine: &Machine,
        bounds: Bounds,
        owner: Option<&str>,
    ) -> Result<Arc<Template>, MakeError> {
        // An owner's is read from the disk into memory of its own.
        let cell = self.cell(name(machine, owner));
        let template =
            cell.get_or_try_init(|| template::load_or_boot(&self.workshop, machine, bounds)).await?;
        Ok(Arc::clone(template))
    }

    fn cell(&self, name: String) -> Arc<OnceCell<Arc<Template>>> {
        // Nothing panics between two halves of a change.
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        let known = templates.iter().position(|(known, _)| *known == name);
        let cell = known.map_or_else(Arc::default, |known| templates.remove(known).1);
        templates.push((name, Arc::clone(&cell)));
        if templates.len() > MOST_TEMPLATES {
            templates.remove(0);
        }
        cell
    }

    /// A process for a life of a template: one that waits for that, or one that is started now.
    pub(super) async fn start(
        &self,
        template: &Arc<Template>,
        machine: &Machine,
        limits: &Limits,
        owner: Option<&str>,
    ) -> Result<Started, MakeError> {
        let purpose = Purpose { name: name(machine, owner), limits: *limits };
        let started = match self.spares.take(&purpose, template) {
            Some(started) => started,
            None => Started::new(&self.workshop, template, machine, limits).await?,
        };
        let (workshop, template, machine) =
            (Arc::clone(&self.workshop), Arc::clone(template), machine.clone());
        let (of, limits) = (Arc::clone(&template), *limits);
        let another = async move { Started::new(&workshop, &template, &machine, &limits).await };
        self.spares.follow(purpose, &of, another);
        Ok(started)
    }

    /// Ends what has waited for too long.
    pub(super) fn sweep(&self) {
        self.spares.sweep();
    }

    /// Ends what waits.
    pub(super) async fn close(&self) {
        self.spares.close().await;
    }
}

/// By the machine's kind, and by its owner where that matters.
fn name(machine: &Machine, owner: Option<&str>) -> String {
    format!("{} {}", machine.kind(), owner.unwrap_or_default())
}

impl Started {
    async fn new(
        workshop: &Workshop,
        template: &Template,
        machine: &Machine,
        limits: &Limits,
    ) -> Result<Self, MakeError> {
        let generation = Id::random();
        let remains = workshop.lay_out(Tier::Vm, generation, &machine.host_limits(limits))?;
        let mut sandbox = Sandbox::new(remains, &workshop.undertaker);
        let complaints = Complaints::new()?;
        failpoint::pass("vm-laid-out");
        let state = template.state().map_err(VmError::template("open the state of", machine.shape()))?;
        let disk = open(machine)?;
        let fds = [template.memory(), disk.as_fd(), state.as_fd()];
        let running = async {
            let mut running =
                start(workshop, &mut sandbox, machine, Begin::Resume, &fds, &complaints).await?;
            ignore_shared(&mut running.monitor).await.map_err(VmError::from)?;
            Ok(running)
        };
        let running = timeout(MAKING_DEADLINE, running).await;
        let running = running.unwrap_or(Err(VmError::Late(MAKING_DEADLINE).into()));
        let running = running.map_err(|error| complaints.explain(error))?;
        Ok(Self { generation, sandbox, complaints, running })
    }

    /// Whether it waits as it was left.
    fn is_well(&self) -> bool {
        self.sandbox.is_alive() && !self.sandbox.is_halted()
    }
}

impl Running {
    /// Goes on where the template stopped. Nobody has told the machine yet that it is another.
    pub(super) async fn go_on(mut self) -> Result<Channel, MakeError> {
        let uri = format!("fd:{}", super::machine::STATE_FD);
        self.monitor.ask("migrate-incoming", json!({ "uri": uri })).await.map_err(VmError::from)?;
        // It runs as soon as it has taken over, and ends if it cannot. The monitor is closed with this, for QEMU hears it
        // byte by byte: whether the machine is well, its agent says.
        Ok(self.channel)
    }
}

/// The image's disk, which no process of a machine could open by itself.
pub(super) fn open(machine: &Machine) -> Result<File, VmError> {
    File::open(&machine.form.disk).map_err(VmError::template("open the disk of", &machine.form.disk))
}

/// Starts a machine's process in its cgroups and namespaces.
pub(super) async fn start(
    workshop: &Workshop,
    sandbox: &mut Sandbox,
    machine: &Machine,
    begin: Begin,
    files: &[BorrowedFd<'_>],
    complaints: &Complaints,
) -> Result<Running, MakeError> {
    let pair = || StdStream::pair().map_err(MakeError::Stream);
    let ((agent, their_agent), (monitor, their_monitor)) = (pair()?, pair()?);
    let kvm = machine.accelerator == super::Accelerator::Kvm;
    let cgroup = sandbox.cgroup();
    let entry = if kvm { cgroup.job_entry_but_devices()? } else { cgroup.job_entry()? };
    let (entry, entries) = match entry {
        Entry::Tasks(tasks) => {
            let count = tasks.len() as u8;
            (tasks, Entries::Tasks(count))
        }
        Entry::Directory(directory) => (vec![directory], Entries::Directories),
    };
    let launch = Launch {
        program: machine.qemu.program.to_string_lossy().into_owned(),
        args: machine.args(begin),
        uid: sandbox.id_base(),
        kvm,
        descriptors: 3 + files.len() as u8,
        entries,
        root_point: workshop.instance.root_point().to_string_lossy().into_owned(),
    };
    let mut fds = vec![complaints.theirs.as_fd(), their_agent.as_fd(), their_monitor.as_fd()];
    fds.extend(files);
    fds.extend(entry.iter().map(AsFd::as_fd));
    let fds = workshop.spawner.ask(&Task::Machine(launch), &fds).await?;
    let [process] =
        <[OwnedFd; 1]>::try_from(fds).map_err(|_| MakeError::Spawner(io::ErrorKind::InvalidData.into()))?;
    sandbox.depend_on(process);
    // Or their end would not be seen here.
    drop((their_agent, their_monitor));
    agent.set_nonblocking(true).map_err(MakeError::Stream)?;
    let (reader, writer) = UnixStream::from_std(agent).map_err(MakeError::Stream)?.into_split();
    let monitor = Monitor::open(monitor).await.map_err(VmError::from)?;
    Ok(Running { channel: Channel::new(reader, writer), monitor })
}

/// Memory that is a file is no part of the state.
async fn ignore_shared(monitor: &mut Monitor) -> Result<(), QmpError> {
    let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    monitor.ask("migrate-set-capabilities", capability).await.map(drop)
}

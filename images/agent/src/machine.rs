//! The agent as the first process of a virtual machine: from the kernel's hands to the host's first word.
//!
//! The machine has no program but this one. It loads the drivers of its two devices, finds the host at a serial port, puts
//! the root together that a sandbox has on every tier, and waits. The host then keeps the machine's memory and lets many
//! begin in it, so each begins with a [`Resume`]: until it is answered nothing here is anybody's.

mod bounds;
mod drivers;
mod life;
mod rehearsal;
mod root;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};

use agent::message::{Bounds, Hello, Identity, Memory, Resume, Resumed, VERSION};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::Pid;

use self::bounds::JobCgroup;
use self::life::Names;
pub(crate) use self::rehearsal::Rehearsal;
use crate::arm::{self, JobCgroups};
use crate::failure::{At, Failure};
use crate::job::Job;
use crate::session::{Stage, Surroundings};
use crate::{privilege, session, sys};

/// The first word of the command line in a machine.
pub(crate) const OPTION: &str = "--machine";

/// The one word of the command line of a program that is run to have been run.
pub(crate) const NOTHING: &str = "--nothing";

/// Limits of processes that the kernel guesses from a machine's size, and how many descriptors it lets anybody ask for. A job's
/// are those that were asked for, and its cgroup's.
const LIFTED: [(Resource, u64); 2] =
    [(Resource::RLIMIT_NPROC, RLIM_INFINITY), (Resource::RLIMIT_NOFILE, 1 << 20)];

/// What an image says of its root, from the kernel's command line.
#[derive(Debug, Clone, Copy)]
struct Owner {
    identity: Identity,
    writable_root: bool,
}

impl Owner {
    /// What the host will say of a job's process, for those that are armed before there is a word of the host's.
    fn greeting(self) -> Hello {
        Hello {
            version: VERSION,
            nonce: [0; 32],
            identity: Some(self.identity),
            writable_root: self.writable_root,
        }
    }
}

/// What the agent can still do to its machine, until a job's first byte arrives.
#[derive(Debug)]
pub(crate) struct Machine {
    owner: Owner,
    /// The kernel's generator.
    random: File,
    names: Names,
    job: JobCgroup,
    /// Until the host's greeting.
    cast: Option<Cast>,
}

/// Processes that were armed before the machine's memory was kept. Where code is translated as it runs, arming costs a life
/// more than its names and clock together; and it is the same for all.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) rehearsals: Vec<Rehearsal>,
    pub(crate) stage: Stage,
}

/// Serves the host from the machine's port. Its end ends the machine.
pub(crate) fn serve(args: impl Iterator<Item = OsString>) -> Failure {
    match find_host(args) {
        Ok(owner) => session::serve(move || settle(owner)),
        Err(failure) => {
            // To the console: nobody else listens yet.
            let _ = writeln!(std::io::stderr(), "mayfly-agent: cannot {failure}");
            failure
        }
    }
}

/// Everything before there is somebody to tell what goes wrong.
fn find_host(args: impl Iterator<Item = OsString>) -> Result<Owner, Failure> {
    let owner = owner_of(args)?;
    let nothing = None::<&str>;
    mount(nothing, "/dev", Some("devtmpfs"), MsFlags::empty(), nothing).at("mount /dev")?;
    drivers::load()?;
    let port = drivers::await_port()?;
    let silence = File::options().read(true).write(true).open("/dev/null");
    let silence = silence.map_err(|error| Failure::of_io("open /dev/null", &error))?;
    for (fd, number) in [(port.as_fd(), 0), (port.as_fd(), 1), (silence.as_fd(), 2)] {
        sys::place(fd.as_raw_fd(), number, false).at("make the port standard input and output")?;
    }
    Ok(owner)
}

fn owner_of(mut args: impl Iterator<Item = OsString>) -> Result<Owner, Failure> {
    let usage = || {
        let wants =
            "wants the user ids of the agent and of the job, a group id, and `read-only` or `writable`";
        Failure::Usage(format!("{OPTION} {wants}"))
    };
    let mut word = || args.next().and_then(|word| word.into_string().ok()).ok_or_else(usage);
    let mut id = || word()?.parse().map_err(|_| usage());
    let identity = Identity { agent: id()?, uid: id()?, gid: id()? };
    let writable_root = match word()?.as_str() {
        "read-only" => false,
        "writable" => true,
        _ => return Err(usage()),
    };
    Ok(Owner { identity, writable_root })
}

/// Makes the sandbox inside the machine.
fn settle(owner: Owner) -> Result<Surroundings, Failure> {
    let job = JobCgroup::make()?;
    let names = root::enter(owner)?;
    sys::loopback_up().at("bring up the loopback interface")?;
    let random = File::options().write(true).open("/dev/random");
    let random = random.map_err(|error| Failure::of_io("open /dev/random", &error))?;
    // Before the forks, for all processes.
    for (resource, limit) in LIFTED {
        setrlimit(resource, limit, limit).at("lift a limit")?;
    }
    privilege::clear_groups()?;
    let hello = owner.greeting();
    let cgroups = JobCgroups { tasks: Vec::new(), directory: Some(job.directory()?) };
    let rehearsals = Rehearsal::prepare(|| arm::fork(&hello, &cgroups), &job)?;
    let stage = Stage::set(&hello, cgroups, privilege::MACHINE_KEEPS)?;
    let cast = Some(Cast { rehearsals, stage });
    Ok(Surroundings::OfMachine(Machine { owner, random, names, job, cast }))
}

impl Machine {
    /// Becomes somebody new.
    pub(crate) fn resume(&mut self, resume: &Resume) -> Result<Resumed, Failure> {
        let arrived = life::Arrival::now()?;
        // 1. First of all the generator: whatever is drawn from here on is drawn by nobody else.
        life::reseed(&self.random, &resume.entropy)?;
        self.names.renew(resume)?;
        // 2. What a job may use.
        self.job.bound(&resume.bounds)?;
        // 3. The time that the host gave, and what has gone by since.
        arrived.set_clock(resume.time)?;
        Ok(Resumed { nonce: resume.nonce, boot_id: session::boot_id()?, time: life::clock()? })
    }

    /// Those who wait for this life.
    pub(crate) fn cast(&mut self, hello: &Hello) -> Result<Cast, Failure> {
        if (hello.identity, hello.writable_root) != (Some(self.owner.identity), self.owner.writable_root) {
            return Err(Failure::OutOfTurn("a Hello for another image than the machine was booted with"));
        }
        // Nothing is given up yet. What will give it up is translated with this, and asked what there is.
        privilege::keep(privilege::MACHINE_KEEPS)?;
        self.cast.take().ok_or(Failure::OutOfTurn("a second Hello"))
    }

    /// Ends a rehearsal, and spares those whose orders are yet to come.
    pub(crate) fn end(&self, rehearsed: &Job, spared: &[Pid]) -> Result<(), Failure> {
        rehearsal::end(rehearsed, &self.job, spared)
    }

    /// Tightens the limits of a job that has not begun.
    pub(crate) fn bound(&self, bounds: &Bounds) -> Result<(), Failure> {
        self.job.bound(bounds)
    }

    /// What the kernel counted of the job's memory.
    pub(crate) fn memory(&self) -> Memory {
        self.job.memory()
    }
}

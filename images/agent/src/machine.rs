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

use agent::message::{Armed, Bounds, Hello, Identity, Memory, Resume, Resumed, VERSION};
use nix::mount::{MsFlags, mount};

use self::bounds::JobCgroup;
use self::life::Names;
use self::rehearsal::Rehearsal;
use crate::arm::{self, ArmedProcess, JobCgroups};
use crate::failure::{At, Failure};
use crate::session::Surroundings;
use crate::{privilege, session, sys};

/// The first word of the command line in a machine.
pub(crate) const OPTION: &str = "--machine";

/// The one word of the command line of a program that is run to have been run.
pub(crate) const NOTHING: &str = "--nothing";

/// What an image says of its root, from the kernel's command line.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
    writable_root: bool,
}

impl Owner {
    /// What the host will say of a job's process, for those that are armed before there is a word of the host's.
    fn greeting(self) -> Hello {
        let identity = Identity { agent: self.uid, uid: self.uid, gid: self.gid };
        Hello {
            version: VERSION,
            nonce: [0; 32],
            identity: Some(identity),
            writable_root: self.writable_root,
        }
    }

    /// Whether it did.
    fn is_of(self, hello: &Hello) -> bool {
        let job = hello.identity.map(|identity| (identity.uid, identity.gid));
        job == Some((self.uid, self.gid)) && hello.writable_root == self.writable_root
    }
}

/// What the agent can still do to its machine, until a job's first byte arrives.
#[derive(Debug)]
pub(crate) struct Machine {
    owner: Owner,
    names: Names,
    job: JobCgroup,
    /// Until the host's greeting.
    cast: Option<Cast>,
}

/// Two processes that were armed before the machine's memory was kept. Where code is translated as it runs, arming costs
/// a life more than its boot id, clock and names together; and it is the same for all.
#[derive(Debug)]
struct Cast {
    rehearsal: Rehearsal,
    job: ArmedProcess,
    armed: Armed,
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
    let usage =
        || Failure::Usage(format!("{OPTION} wants a user id, a group id, and `read-only` or `writable`"));
    let mut word = || args.next().and_then(|word| word.into_string().ok()).ok_or_else(usage);
    let (uid, gid, root) = (word()?, word()?, word()?);
    let id = |text: &str| text.parse().map_err(|_| usage());
    let writable_root = match root.as_str() {
        "read-only" => false,
        "writable" => true,
        _ => return Err(usage()),
    };
    Ok(Owner { uid: id(&uid)?, gid: id(&gid)?, writable_root })
}

/// Makes the sandbox inside the machine.
fn settle(owner: Owner) -> Result<Surroundings, Failure> {
    let job = JobCgroup::make()?;
    let names = root::enter(owner)?;
    sys::loopback_up().at("bring up the loopback interface")?;
    privilege::clear_groups()?;
    let cgroups = JobCgroups { tasks: Vec::new(), directory: Some(job.directory()?) };
    let arm = || arm::fork(&owner.greeting(), &cgroups);
    let rehearsal = Rehearsal::prepare(arm, &job)?;
    let process = arm()?;
    let armed = process.wait_armed()?;
    let cast = Some(Cast { rehearsal, job: process, armed });
    Ok(Surroundings::OfMachine(Machine { owner, names, job, cast }))
}

impl Machine {
    /// Becomes somebody new.
    pub(crate) fn resume(&mut self, resume: &Resume) -> Result<Resumed, Failure> {
        let arrived = life::Arrival::now()?;
        // 1. First of all the generator: whatever is drawn from here on is drawn by nobody else.
        life::reseed(&resume.entropy)?;
        self.names.renew(resume)?;
        // 2. What a job may use.
        self.job.bound(&resume.bounds)?;
        // 3. The time that the host gave, and what has gone by since.
        arrived.set_clock(resume.time)?;
        Ok(Resumed { nonce: resume.nonce, boot_id: life::boot_id()?, time: life::clock()? })
    }

    /// The job's process, in a machine that has just run another.
    pub(crate) fn process(&mut self, hello: &Hello) -> Result<(ArmedProcess, Armed), Failure> {
        if !self.owner.is_of(hello) {
            return Err(Failure::OutOfTurn("a Hello for another image than the machine was booted with"));
        }
        let cast = self.cast.take().ok_or(Failure::OutOfTurn("a second Hello"))?;
        cast.rehearsal.run(&self.job, cast.job.pid)?;
        Ok((cast.job, cast.armed))
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

//! From the host's first word to a job's process that waits for its orders.

use std::fs::File;
use std::io::{self, Read};

use agent::codec::Frame;
use agent::message::{Armed, Hello, Nonce, Ready, ToAgent, ToHost, VERSION};
use nix::sys::signal::{self, SigHandler, SigSet};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::utsname::uname;

use crate::arm::{self, ArmedProcess, JobCgroups};
use crate::channel::Channel;
use crate::failure::{At, Failure};
use crate::machine::{Cast, Machine, Rehearsal};
use crate::{privilege, sys};

/// What the agent finds around itself.
pub(crate) enum Surroundings {
    /// A sandbox that was made from outside, and the cgroups of its job.
    OfHost(JobCgroups),
    /// One that the agent made itself.
    OfMachine(Machine),
}

/// The armed process, and how the end of a child is heard.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(super) children: SignalFd,
    pub(super) process: ArmedProcess,
    pub(super) armed: Armed,
}

impl Stage {
    /// Two processes, each with no more privilege than it needs. The agent keeps `more` for now.
    ///
    /// The groups went before.
    pub(crate) fn set(hello: &Hello, cgroups: JobCgroups, more: u64) -> Result<Self, Failure> {
        let children = watch_children()?;
        let process = arm::fork(hello, &cgroups)?;
        // Nobody needs these again, and nobody shall find them here.
        drop(cgroups);
        // The agent gives up its own privilege while the child arms itself.
        privilege::confine_agent(hello.identity, more)?;
        let armed = process.wait_armed()?;
        Ok(Self { children, process, armed })
    }
}

/// What the host's `Hello` found, or had made.
pub(super) struct Greeted {
    pub(super) nonce: Nonce,
    pub(super) stage: Stage,
    pub(super) machine: Option<Machine>,
    /// Of a machine, what it has yet to do before it is ready.
    pub(super) rehearsals: Vec<Rehearsal>,
}

/// From the first word to an armed process.
pub(super) fn greet(
    channel: &mut Channel,
    find: impl FnOnce() -> Result<Surroundings, Failure>,
) -> Result<Greeted, Failure> {
    privilege::guard_process().at("guard the agent")?;
    for each in [signal::Signal::SIGPIPE, signal::Signal::SIGXFSZ] {
        // An errno says it as well.
        sys::dispose(each, SigHandler::SigIgn).at("ignore a signal")?;
    }
    let mut surroundings = find()?;
    let hello = await_hello(channel, &mut surroundings)?;
    if hello.version != VERSION {
        return Err(Failure::Version { host: hello.version });
    }
    let nonce = hello.nonce;
    match surroundings {
        Surroundings::OfHost(cgroups) => {
            // Before the fork, for both processes.
            privilege::clear_groups()?;
            let stage = Stage::set(&hello, cgroups, 0)?;
            Ok(Greeted { nonce, stage, machine: None, rehearsals: Vec::new() })
        }
        Surroundings::OfMachine(mut machine) => {
            let Cast { rehearsals, stage } = machine.cast(&hello)?;
            Ok(Greeted { nonce, stage, machine: Some(machine), rehearsals })
        }
    }
}

/// The host's first word, and before it, in a machine, that this is another life.
fn await_hello(channel: &mut Channel, surroundings: &mut Surroundings) -> Result<Hello, Failure> {
    loop {
        match (channel.wait_frame()?, &mut *surroundings) {
            (Frame { stream: 0, message: ToAgent::Hello(hello) }, _) => return Ok(hello),
            (Frame { stream: 0, message: ToAgent::Resume(resume) }, Surroundings::OfMachine(machine)) => {
                let resumed = machine.resume(&resume)?;
                channel.send(0, ToHost::Resumed(resumed))?;
                channel.flush()?;
            }
            _ => return Err(Failure::OutOfTurn("the first frame is not a Hello on stream 0")),
        }
    }
}

fn watch_children() -> Result<SignalFd, Failure> {
    let mut mask = SigSet::empty();
    mask.add(signal::Signal::SIGCHLD);
    mask.thread_block().at("block SIGCHLD")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).at("watch for SIGCHLD")
}

/// What the host is told of a process that waits for its orders.
pub(super) fn ready(nonce: Nonce, job: Armed) -> Result<Ready, Failure> {
    let kernel = uname().at("ask for the kernel's release")?.release().to_string_lossy().into_owned();
    Ok(Ready { version: VERSION, nonce, boot_id: boot_id()?, kernel, job })
}

/// The kernel's name for this boot, as every program reads it.
pub(crate) fn boot_id() -> Result<String, Failure> {
    // Without asking how long it is: in a machine each call counts.
    let mut text = [0; 64];
    match File::open("/proc/sys/kernel/random/boot_id").and_then(|mut file| file.read(&mut text)) {
        Ok(len) => Ok(String::from_utf8_lossy(&text[..len]).trim_end().to_owned()),
        // gVisor's kernel has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::of_io("read the boot id", &error)),
    }
}

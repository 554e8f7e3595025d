//! The conversation with the host: one loop that waits for everything and never for one thing alone.
//!
//! Greeting, armed, running, ended: the states follow each other and none comes back. Requests for files are served
//! in each of them.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use agent::codec::{FIRST_AGENT_STREAM, Frame, StreamId};
use agent::message::{Armed, Bounds, Hello, Put, Ready, Run, Signal, ToAgent, ToHost, VERSION};
use nix::sys::signal::{self, SigHandler, SigSet};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::utsname::uname;

use crate::arm::{self, ArmedProcess, JobCgroups};
use crate::channel::{Channel, waiting_for};
use crate::failure::{At, Failure};
use crate::files::get::Download;
use crate::files::put::Upload;
use crate::job::{self, Job};
use crate::machine::Machine;
use crate::streams::Stdio;
use crate::tunnels::Tunnels;
use crate::{privilege, sys};

/// Uploads and downloads that may be open at once.
const MAX_REQUESTS: usize = 64;

/// Steps of a download between two looks at everything else.
const DOWNLOAD_STEPS: usize = 16;

/// How long to wait before what outlived the job is signalled again, in milliseconds.
const SWEEP_AGAIN_MS: i32 = 10;

/// Places in the poll set.
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const CHILDREN: usize = 2;
const STDIN: usize = 3;
const STDOUT: usize = 4;
const STDERR: usize = 5;
const TUNNELS: usize = 6;

/// What the agent finds around itself.
pub(crate) enum Surroundings {
    /// A sandbox that was made from outside, and the cgroups of its job.
    OfHost(JobCgroups),
    /// One that the agent made itself.
    OfMachine(Machine),
}

struct Session {
    channel: Channel,
    children: SignalFd,
    phase: Phase,
    machine: Option<Machine>,
    /// In a machine the agent keeps some rights until the first byte of a job, for the job's limits come last.
    has_rights: bool,
    /// The job's streams, from its start on: its output is still on the way when it ended.
    stdio: Option<Stdio>,
    /// From the job's start on, if it was given a way out.
    tunnels: Option<Tunnels>,
    uploads: BTreeMap<StreamId, Upload>,
    /// Served one after the other, so that open directories are bounded.
    downloads: VecDeque<Download>,
}

enum Phase {
    Armed(ArmedProcess),
    Running(Job),
    Ended,
}

/// Serves the host until it is gone. What goes wrong on the way is told to it first.
pub(crate) fn serve(find: impl FnOnce() -> Result<Surroundings, Failure>) -> Failure {
    let mut channel = match Channel::on_standard_descriptors() {
        Ok(channel) => channel,
        Err(failure) => return failure,
    };
    let mut session = match greet(&mut channel, find) {
        Ok((Stage { children, process, .. }, machine)) => Session {
            channel,
            children,
            phase: Phase::Armed(process),
            has_rights: machine.is_some(),
            machine,
            stdio: None,
            tunnels: None,
            uploads: BTreeMap::new(),
            downloads: VecDeque::new(),
        },
        Err(failure) => return tell(&mut channel, failure),
    };
    let Err(failure) = session.run();
    // As the first process the end of the agent is the end of all; otherwise the job is its own to end.
    if let Phase::Running(job) = &session.phase {
        job.signal(signal::Signal::SIGKILL);
    }
    tell(&mut session.channel, failure)
}

fn tell(channel: &mut Channel, failure: Failure) -> Failure {
    if matches!(failure, Failure::HostGone) {
        return failure;
    }
    let fault = failure.fault();
    channel.say_last(ToHost::Fault(fault.clone()));
    Failure::Reported(fault)
}

/// The armed process, and how the end of a child is heard.
#[derive(Debug)]
pub(crate) struct Stage {
    children: SignalFd,
    pub(crate) process: ArmedProcess,
    armed: Armed,
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

/// From `Hello` to `Ready`.
fn greet(
    channel: &mut Channel,
    find: impl FnOnce() -> Result<Surroundings, Failure>,
) -> Result<(Stage, Option<Machine>), Failure> {
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
    let (stage, machine) = match surroundings {
        Surroundings::OfHost(cgroups) => {
            // Before the fork, for both processes.
            privilege::clear_groups()?;
            (Stage::set(&hello, cgroups, 0)?, None)
        }
        Surroundings::OfMachine(mut machine) => (machine.stage(&hello)?, Some(machine)),
    };
    let ready = Ready {
        version: VERSION,
        nonce: hello.nonce,
        boot_id: boot_id()?,
        kernel: uname().at("ask for the kernel's release")?.release().to_string_lossy().into_owned(),
        job: stage.armed,
    };
    channel.send(0, ToHost::Ready(ready))?;
    Ok((stage, machine))
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

impl Session {
    fn run(&mut self) -> Result<Infallible, Failure> {
        loop {
            while let Some(frame) = self.channel.next_frame()? {
                self.obey(frame)?;
            }
            self.serve_downloads()?;
            self.channel.flush()?;
            let slots = self.wait()?;
            let ready = |slot: usize| slots[slot].revents != 0;
            if ready(INPUT) {
                self.channel.receive()?;
            }
            if let Some(stdio) = &mut self.stdio {
                if ready(STDIN) {
                    stdio.stdin.on_ready(&mut self.channel)?;
                }
                if ready(STDOUT) {
                    stdio.stdout.pump(&mut self.channel)?;
                }
                if ready(STDERR) {
                    stdio.stderr.pump(&mut self.channel)?;
                }
            }
            if let Some(tunnels) = &mut self.tunnels {
                tunnels.on_ready(&slots[TUNNELS..], &mut self.channel)?;
            }
            if ready(CHILDREN) || self.is_sweeping() {
                self.reap()?;
            }
        }
    }

    /// Waits until something is ready and tells what.
    fn wait(&mut self) -> Result<Vec<libc::pollfd>, Failure> {
        let mut slots = vec![waiting_for(None, 0); TUNNELS];
        slots[INPUT] = waiting_for(self.channel.input(), libc::POLLIN);
        slots[OUTPUT] = waiting_for(self.channel.output(), libc::POLLOUT);
        slots[CHILDREN] = waiting_for(Some(self.children.as_fd()), libc::POLLIN);
        if let Some(stdio) = &self.stdio {
            let (pipe, events) = stdio.stdin.interest();
            slots[STDIN] = waiting_for(pipe, events);
            slots[STDOUT] = waiting_for(stdio.stdout.interest(&self.channel), libc::POLLIN);
            slots[STDERR] = waiting_for(stdio.stderr.interest(&self.channel), libc::POLLIN);
        }
        if let Some(tunnels) = &self.tunnels {
            tunnels.interests(&self.channel, &mut slots);
        }
        let timeout = if self.download_is_ready() {
            0
        } else if self.is_sweeping() {
            SWEEP_AGAIN_MS
        } else {
            -1
        };
        sys::poll(&mut slots, timeout).at("wait for something to do")?;
        Ok(slots)
    }

    fn is_sweeping(&self) -> bool {
        matches!(&self.phase, Phase::Running(job) if job.is_sweeping())
    }

    fn reap(&mut self) -> Result<(), Failure> {
        // One signal may stand for many children; the loop in `reap` finds them all.
        while self.children.read_signal().at("read SIGCHLD")?.is_some() {}
        match &mut self.phase {
            Phase::Running(job) => {
                if let Some(mut exit) = job.reap()? {
                    exit.memory = self.machine.as_ref().map(Machine::memory);
                    self.phase = Phase::Ended;
                    if let Some(tunnels) = &mut self.tunnels {
                        tunnels.close(&mut self.channel)?;
                    }
                    self.channel.send(0, ToHost::Exit(exit))?;
                }
                Ok(())
            }
            Phase::Armed(process) => job::reap_orphans(Some(process.pid)),
            Phase::Ended => job::reap_orphans(None),
        }
    }

    fn obey(&mut self, frame: Frame<ToAgent>) -> Result<(), Failure> {
        let stream = frame.stream;
        if let ToAgent::Bound(bounds) = frame.message {
            return self.bound(&bounds);
        }
        if std::mem::take(&mut self.has_rights) {
            privilege::keep_no_more()?;
        }
        match frame.message {
            ToAgent::Hello(_) => Err(Failure::OutOfTurn("a second Hello")),
            ToAgent::Resume(_) => Err(Failure::OutOfTurn("a Resume behind Hello")),
            ToAgent::Bound(_) => Err(Failure::OutOfTurn("a Bound that was not heard")),
            ToAgent::Run(run) => self.start(stream, run),
            ToAgent::Signal(signal) => {
                self.signal(signal);
                Ok(())
            }
            ToAgent::Put(put) => self.begin_upload(stream, &put),
            ToAgent::Get(get) => {
                self.open_request(stream)?;
                self.downloads.push_back(Download::new(stream, get));
                Ok(())
            }
            ToAgent::Data(bytes) => self.take(stream, &bytes),
            ToAgent::Credit(more) => self.grant(stream, more),
            ToAgent::End => self.end(stream),
            ToAgent::Reset => self.reset(stream),
        }
    }

    fn bound(&self, bounds: &Bounds) -> Result<(), Failure> {
        match &self.machine {
            Some(machine) if self.has_rights => machine.bound(bounds),
            _ => Err(Failure::OutOfTurn("limits behind a job's first byte, or outside of a machine")),
        }
    }

    fn start(&mut self, stream: StreamId, run: Run) -> Result<(), Failure> {
        if !(1..FIRST_AGENT_STREAM - 2).contains(&stream) {
            return Err(Failure::OutOfTurn("a Run on a stream that is not the host's to open"));
        }
        if (stream..=stream + 2).any(|stream| self.is_open(stream)) {
            return Err(Failure::OutOfTurn("a Run on a stream that is open"));
        }
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Armed(process) => {
                if !run.listen.is_empty() {
                    self.tunnels = Some(Tunnels::listen(&run.listen)?);
                }
                let (job, stdio) = Job::start(process, stream, run)?;
                self.phase = Phase::Running(job);
                self.stdio = Some(stdio);
                Ok(())
            }
            other => {
                self.phase = other;
                Err(Failure::OutOfTurn("a second Run: a sandbox serves one job"))
            }
        }
    }

    /// A signal for a job that is not there (yet, or any more) has nobody to reach.
    fn signal(&self, signal: Signal) {
        if let Phase::Running(job) = &self.phase {
            job.signal(match signal {
                Signal::Term => signal::Signal::SIGTERM,
                Signal::Kill => signal::Signal::SIGKILL,
            });
        }
    }

    fn begin_upload(&mut self, stream: StreamId, put: &Put) -> Result<(), Failure> {
        self.open_request(stream)?;
        self.uploads.insert(stream, Upload::begin(put));
        Ok(())
    }

    /// Checks that a request may be opened on `stream`.
    fn open_request(&self, stream: StreamId) -> Result<(), Failure> {
        if stream == 0 || stream >= FIRST_AGENT_STREAM {
            Err(Failure::OutOfTurn("a request on a stream that is not the host's to open"))
        } else if self.is_open(stream) {
            Err(Failure::OutOfTurn("a request on a stream that is open"))
        } else if self.uploads.len() + self.downloads.len() >= MAX_REQUESTS {
            Err(Failure::OutOfTurn("too many requests at once"))
        } else {
            Ok(())
        }
    }

    fn is_open(&self, stream: StreamId) -> bool {
        self.uploads.contains_key(&stream)
            || self.downloads.iter().any(|download| download.is(stream))
            || self.stdio.as_ref().is_some_and(|stdio| stdio.has(stream))
    }

    fn take(&mut self, stream: StreamId, bytes: &[u8]) -> Result<(), Failure> {
        if let Some(tunnels) = self.tunnels.as_mut().filter(|tunnels| tunnels.has(stream)) {
            return tunnels.take(stream, bytes, &mut self.channel);
        }
        if let Some(upload) = self.uploads.get_mut(&stream) {
            return match upload.take(bytes)? {
                Some(grant) => self.channel.send(stream, ToHost::Credit(grant)),
                None => Ok(()),
            };
        }
        match &mut self.stdio {
            Some(stdio) if stdio.stdin.is(stream) => stdio.stdin.take(bytes, &mut self.channel),
            _ => Err(Failure::OutOfTurn("data on a stream that takes none")),
        }
    }

    fn end(&mut self, stream: StreamId) -> Result<(), Failure> {
        if let Some(tunnels) = self.tunnels.as_mut().filter(|tunnels| tunnels.has(stream)) {
            return tunnels.end(stream, &mut self.channel);
        }
        if let Some(upload) = self.uploads.remove(&stream) {
            return self.channel.send(stream, ToHost::PutDone(upload.finish()));
        }
        match &mut self.stdio {
            Some(stdio) if stdio.stdin.is(stream) => {
                stdio.stdin.end();
                Ok(())
            }
            _ => Err(Failure::OutOfTurn("the end of a stream that takes no data")),
        }
    }

    /// Credit for a stream that is gone was under way when it went.
    fn grant(&mut self, stream: StreamId, more: u32) -> Result<(), Failure> {
        if let Some(download) = self.downloads.iter_mut().find(|download| download.is(stream)) {
            return download.grant(more);
        }
        if let Some(tunnels) = self.tunnels.as_mut().filter(|tunnels| tunnels.has(stream)) {
            return tunnels.grant(stream, more);
        }
        match self.stdio.as_mut().and_then(|stdio| stdio.outlet(stream)) {
            Some(outlet) => outlet.grant(more),
            None => Ok(()),
        }
    }

    fn reset(&mut self, stream: StreamId) -> Result<(), Failure> {
        if self.uploads.contains_key(&stream) {
            return Err(Failure::OutOfTurn("Reset of a stream that the host writes"));
        }
        if let Some(tunnels) = &mut self.tunnels {
            tunnels.reset(stream, &mut self.channel)?;
        }
        self.downloads.retain(|download| !download.is(stream));
        if let Some(outlet) = self.stdio.as_mut().and_then(|stdio| stdio.outlet(stream)) {
            outlet.close();
        }
        Ok(())
    }

    fn download_is_ready(&self) -> bool {
        self.downloads.front().is_some_and(|download| download.is_ready(&self.channel))
    }

    fn serve_downloads(&mut self) -> Result<(), Failure> {
        for _ in 0..DOWNLOAD_STEPS {
            let Some(download) = self.downloads.front_mut() else { break };
            if !download.is_ready(&self.channel) {
                break;
            }
            download.step(&mut self.channel)?;
            if download.is_done() {
                self.downloads.pop_front();
            }
        }
        Ok(())
    }
}

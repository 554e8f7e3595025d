//! The conversation with the host: one loop that waits for everything and never for one thing alone.
//!
//! Greeting, armed, running, ended: the states follow each other and none comes back. Requests for files are served
//! in each of them.

mod greeting;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::mem;
use std::os::fd::AsFd;

use agent::codec::{FIRST_AGENT_STREAM, Frame, StreamId};
use agent::message::{Armed, Bounds, Nonce, Put, Run, Signal, ToAgent, ToHost};
use nix::sys::signal;
use nix::sys::signalfd::SignalFd;

use self::greeting::{Greeted, greet};
pub(crate) use self::greeting::{Stage, Surroundings, boot_id};
use crate::arm::ArmedProcess;
use crate::channel::{Channel, waiting_for};
use crate::failure::{At, Failure};
use crate::files::get::Download;
use crate::files::put::Upload;
use crate::job::{self, Job};
use crate::machine::{Machine, Rehearsal};
use crate::streams::Stdio;
use crate::tunnels::Tunnels;
use crate::{privilege, sys};

/// Uploads and downloads that may be open at once.
const MAX_REQUESTS: usize = 64;

/// Steps of a download between two looks at everything else.
const DOWNLOAD_STEPS: usize = 16;

/// How long to wait before what outlived the job is signalled again, in milliseconds.
const SWEEP_AGAIN_MS: i32 = 10;

/// When a machine that waits for its job wakes once by itself, in milliseconds: the kernel is idle by then, and its way out of
/// that is translated when the job comes.
const WAKE_ONCE_MS: i32 = 40;

/// Places in the poll set.
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const CHILDREN: usize = 2;
const STDIN: usize = 3;
const STDOUT: usize = 4;
const STDERR: usize = 5;
const TUNNELS: usize = 6;

struct Session {
    channel: Channel,
    children: SignalFd,
    phase: Phase,
    machine: Option<Machine>,
    /// In a machine the agent keeps some rights until the first byte of a job, for the job's limits come last.
    has_rights: bool,
    /// A machine does, when it is ready.
    wakes_once: bool,
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
    let Greeted { nonce, stage, machine, rehearsals } = match greet(&mut channel, find) {
        Ok(greeted) => greeted,
        Err(failure) => return tell(&mut channel, failure),
    };
    let Stage { children, process, armed } = stage;
    let mut session = Session {
        channel,
        children,
        phase: Phase::Armed(process),
        has_rights: false,
        wakes_once: false,
        machine,
        stdio: None,
        tunnels: None,
        uploads: BTreeMap::new(),
        downloads: VecDeque::new(),
    };
    let Err(failure) = session.prepare(nonce, armed, rehearsals).and_then(|()| session.run());
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

impl Session {
    /// Gets ready for the job, and says so.
    fn prepare(&mut self, nonce: Nonce, armed: Armed, rehearsals: Vec<Rehearsal>) -> Result<(), Failure> {
        self.rehearse(rehearsals)?;
        (self.has_rights, self.wakes_once) = (self.machine.is_some(), self.machine.is_some());
        self.channel.send(0, ToHost::Ready(greeting::ready(nonce, armed)?))
    }

    /// Goes the way of a job from its orders to its last byte, again and again, with nobody to hear of it.
    fn rehearse(&mut self, mut rehearsals: Vec<Rehearsal>) -> Result<(), Failure> {
        while let Some(Rehearsal { process, run }) = rehearsals.pop() {
            let armed = mem::replace(&mut self.phase, Phase::Armed(process));
            self.channel.hear(&Frame { stream: 1, message: ToAgent::Run(run) })?;
            while let Some(frame) = self.channel.next_frame()? {
                self.obey(frame)?;
            }
            self.await_end()?;
            self.channel.forget();
            let ended = mem::replace(&mut self.phase, armed);
            let waiting = rehearsals.iter().map(|it| it.process.pid);
            if let (Some(machine), Phase::Running(job), Phase::Armed(process)) =
                (&self.machine, ended, &self.phase)
            {
                machine.end(&job, &waiting.chain([process.pid]).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// Takes what a rehearsal's program writes until it is over.
    fn await_end(&mut self) -> Result<(), Failure> {
        loop {
            let slots = self.wait()?;
            self.attend(&slots)?;
            if slots[CHILDREN].revents != 0 {
                self.stdio = None;
                return self.hear_of_children();
            }
        }
    }

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
            self.attend(&slots)?;
            if ready(CHILDREN) || self.is_sweeping() {
                self.reap()?;
            }
        }
    }

    /// Moves the bytes of the job.
    fn attend(&mut self, slots: &[libc::pollfd]) -> Result<(), Failure> {
        let ready = |slot: usize| slots[slot].revents != 0;
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
        match &mut self.tunnels {
            Some(tunnels) => tunnels.on_ready(&slots[TUNNELS..], &mut self.channel),
            None => Ok(()),
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
        } else if mem::take(&mut self.wakes_once) {
            WAKE_ONCE_MS
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
        self.hear_of_children()?;
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

    /// One signal may stand for many children: whoever asks next finds them all.
    fn hear_of_children(&mut self) -> Result<(), Failure> {
        while self.children.read_signal().at("read SIGCHLD")?.is_some() {}
        Ok(())
    }

    fn obey(&mut self, frame: Frame<ToAgent>) -> Result<(), Failure> {
        let stream = frame.stream;
        if let ToAgent::Bound(bounds) = frame.message {
            return self.bound(&bounds);
        }
        if mem::take(&mut self.has_rights) {
            privilege::keep(0)?;
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
        match mem::replace(&mut self.phase, Phase::Ended) {
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

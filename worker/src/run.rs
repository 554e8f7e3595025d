//! Runs the command: its streams, its deadline, its end.
//!
//! One loop over everything that can happen. Nothing in it waits for anything but the next event, so neither a
//! slow reader nor a silent sandbox can hold up the deadline. What the command's end means is decided in
//! `verdict`.

use std::{collections::BTreeMap, time::Duration};

use agent::{
    codec::{FIRST_AGENT_STREAM, Frame, MAX_CHUNK, StreamId},
    message::{Exit, Rlimit, Run, Signal, ToAgent, ToHost},
};
use egress::Session;
use images::ImageConfig;
use pool::Channel;
use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep_until},
};

use crate::{
    assignment::{Assignment, Reader},
    cancel::{Cancelled, Urgency},
    output::Output,
    traffic::{CHANNEL, Lost, RUN_STREAM, frame_or},
    tunnels::Tunnels,
};

const STDOUT: StreamId = RUN_STREAM + 1;
const STDERR: StreamId = RUN_STREAM + 2;

/// How long the agent may take to say that a killed job is gone.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// How long one wait for the rest of the output may take once the command has ended …
const DRAIN_STEP: Duration = Duration::from_secs(1);
/// … and all of them together.
const DRAIN_BUDGET: Duration = Duration::from_secs(3);

/// What to run, and how far it may go.
pub(crate) struct Orders {
    pub(crate) run: Run,
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
    pub(crate) output_limit: u64,
}

impl Orders {
    /// What the job asks for, on top of what its image says and of what the way out brings along.
    pub(crate) fn new(job: &Assignment, image: &ImageConfig, stdin: bool, door: Option<&Session>) -> Self {
        let ways = door.into_iter().flat_map(Session::environment);
        let env: BTreeMap<_, _> = image.env.iter().chain(ways).chain(&job.env).collect();
        let limits = &job.want.limits;
        let run = Run {
            argv: job.command.iter().map(|word| word.clone().into_bytes()).collect(),
            env: env.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
            cwd: job.workdir.as_ref().unwrap_or(&image.workdir).clone().into_bytes(),
            rlimits: vec![
                (Rlimit::Nofile, limits.open_files),
                // Above the disk, so that a full disk is ENOSPC and not SIGXFSZ; a bound on sparse files all the same.
                (Rlimit::Fsize, limits.memory),
                (Rlimit::Nproc, u64::from(limits.pids)),
                // A core dump would be one more file on the job's disk, and its pattern is the host's.
                (Rlimit::Core, 0),
            ],
            stdin,
            listen: door.map(Session::ports).unwrap_or_default(),
        };
        Self { run, timeout: job.timeout, grace: job.grace, output_limit: job.output_limit }
    }
}

/// Why the host ended the command. The first reason counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    TimedOut,
    OutputLimit,
    Cancelled,
}

/// What is known once the command has ended, or its sandbox has.
pub(crate) struct Ended {
    pub(crate) stop: Option<Stop>,
    /// The agent's word on how the command ended.
    pub(crate) exit: Option<Exit>,
    pub(crate) lost: Option<Lost>,
    /// Whether nothing more may be waited for.
    pub(crate) at_once: bool,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl Ended {
    /// Whether nobody answered at the deadline, not even that the job is killed.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.stop == Some(Stop::TimedOut) && self.exit.is_none()
    }

    /// The time was not the job's to use.
    pub(crate) fn lose(&mut self, lost: Lost) {
        (self.stop, self.lost) = (None, Some(lost));
    }

    /// Whether the agent still answers, and whether there is time to ask it.
    pub(crate) fn may_be_asked(&self) -> bool {
        self.exit.is_some() && self.lost.is_none() && !self.at_once
    }
}

/// Runs the command to its end.
pub(crate) async fn run(
    channel: &mut Channel,
    orders: Orders,
    stdin: Option<Reader>,
    [stdout, stderr]: [Output; 2],
    door: Option<&Session>,
    cancelled: Cancelled,
) -> Ended {
    let mut attendance = Attendance {
        channel,
        grace: orders.grace,
        output_limit: orders.output_limit,
        phase: Phase::Running,
        alarm: Instant::now() + orders.timeout,
        chunk: if stdin.is_some() { vec![0; MAX_CHUNK] } else { Vec::new() },
        stdin,
        tunnels: Tunnels::new(door),
        urgency: Urgency::None,
        cancelled,
        ended: Ended { stop: None, exit: None, lost: None, at_once: false, stdout, stderr },
    };
    attendance.ended.lost = attendance.attend(orders.run).await.err();
    attendance.settle().await;
    attendance.ended
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// SIGTERM is under way, and the alarm is the end of the grace.
    Terminating,
    /// SIGKILL is under way.
    Killing,
    /// The command has ended; its output may still be on the way, for as long as this.
    Draining(Duration),
    Over,
}

/// Everything that can happen.
enum Event {
    Frame(Frame<ToHost>),
    /// There may be room for more stdin or in a tunnel: look again.
    Credit,
    /// Something is to be carried through a tunnel.
    Tunnels,
    Input(std::io::Result<usize>),
    Shown(StreamId, usize),
    Alarm,
    Cancel(Urgency),
}

struct Attendance<'a> {
    channel: &'a mut Channel,
    grace: Duration,
    output_limit: u64,
    phase: Phase,
    alarm: Instant,
    stdin: Option<Reader>,
    chunk: Vec<u8>,
    tunnels: Tunnels<'a>,
    urgency: Urgency,
    cancelled: Cancelled,
    ended: Ended,
}

impl Attendance<'_> {
    async fn attend(&mut self, run: Run) -> Result<(), Lost> {
        self.channel.send(RUN_STREAM, ToAgent::Run(run))?;
        while !self.is_over() {
            match self.next_event().await? {
                Event::Frame(frame) => self.on_frame(frame)?,
                Event::Credit | Event::Tunnels => self.tunnels.go_on(self.channel)?,
                Event::Input(read) => self.on_input(read)?,
                Event::Shown(stream, bytes) => self.channel.release(stream, bytes)?,
                Event::Alarm => self.on_alarm()?,
                Event::Cancel(urgency) => self.on_cancel(urgency)?,
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let Ended { stdout, stderr, .. } = &self.ended;
        match self.phase {
            Phase::Over => true,
            Phase::Draining(_) => stdout.has_ended() && stderr.has_ended() && self.shown_all(),
            Phase::Running | Phase::Terminating | Phase::Killing => false,
        }
    }

    fn shown_all(&self) -> bool {
        self.ended.stdout.is_idle() && self.ended.stderr.is_idle()
    }

    async fn next_event(&mut self) -> Result<Event, Lost> {
        let started = Instant::now();
        // While our own reader is behind, the sandbox may be waiting for credit: that is not its silence.
        let sandbox_owes = self.shown_all();
        let alarm = match self.phase {
            Phase::Draining(budget) => sandbox_owes.then(|| started + budget.min(DRAIN_STEP)),
            _ => Some(self.alarm),
        };
        let room = self.stdin.as_ref().map_or(0, |_| self.channel.may_send(RUN_STREAM).unwrap_or(0));
        let stalled = self.stdin.is_some() && room == 0;
        let tunnels = &self.tunnels;
        let may_go_on = |channel: &Channel| {
            (stalled && channel.may_send(RUN_STREAM) != Some(0)) || tunnels.may_go_on(channel)
        };
        let Ended { stdout, stderr, .. } = &mut self.ended;
        let event = tokio::select! {
            // The deadline first: a flood of frames must not hide it.
            biased;
            () = sleep_until(alarm.unwrap_or(started)), if alarm.is_some() => Event::Alarm,
            urgency = self.cancelled.beyond(self.urgency) => Event::Cancel(urgency),
            bytes = stdout.progress() => Event::Shown(STDOUT, bytes),
            bytes = stderr.progress() => Event::Shown(STDERR, bytes),
            read = read_some(self.stdin.as_mut(), &mut self.chunk[..room]), if room > 0 => Event::Input(read),
            () = tunnels.rung(), if tunnels.are_allowed() => Event::Tunnels,
            frame = frame_or(self.channel, may_go_on) => frame?.map_or(Event::Credit, Event::Frame),
        };
        if let (Phase::Draining(budget), true) = (&mut self.phase, sandbox_owes) {
            *budget = budget.saturating_sub(started.elapsed());
        }
        Ok(event)
    }

    fn on_frame(&mut self, Frame { stream, message }: Frame<ToHost>) -> Result<(), Lost> {
        match (stream, message) {
            (FIRST_AGENT_STREAM.., message) => self.tunnels.on_frame(stream, message, self.channel),
            (STDOUT | STDERR, ToHost::Data(bytes)) => self.on_output(stream, bytes),
            (STDOUT, ToHost::End) => {
                self.ended.stdout.end();
                Ok(())
            }
            (STDERR, ToHost::End) => {
                self.ended.stderr.end();
                Ok(())
            }
            (RUN_STREAM, ToHost::Reset) => {
                self.stdin = None;
                Ok(())
            }
            (CHANNEL, ToHost::Exit(_)) if self.ended.exit.is_some() => {
                Err(Lost::Breach("the command ended twice"))
            }
            (CHANNEL, ToHost::Exit(exit)) => {
                self.ended.exit = Some(exit);
                self.stdin = None;
                self.phase = Phase::Draining(DRAIN_BUDGET);
                Ok(())
            }
            (_, ToHost::Fault(fault)) => Err(fault.into()),
            _ => Err(Lost::Breach("it said something that nothing asked for while the command ran")),
        }
    }

    fn on_output(&mut self, stream: StreamId, bytes: Vec<u8>) -> Result<(), Lost> {
        let Ended { stdout, stderr, .. } = &mut self.ended;
        let room = self.output_limit.saturating_sub(stdout.bytes() + stderr.bytes()) as usize;
        let beyond = bytes.len() > room;
        let output = if stream == STDOUT { stdout } else { stderr };
        let done = output.take(bytes, room);
        self.channel.release(stream, done)?;
        if beyond && self.ended.stop.is_none() {
            self.ended.stop = Some(Stop::OutputLimit);
            if self.ended.exit.is_none() {
                self.kill()?;
            }
        }
        Ok(())
    }

    fn on_input(&mut self, read: std::io::Result<usize>) -> Result<(), Lost> {
        let read = read.unwrap_or_else(|error| {
            tracing::warn!(%error, "stdin cannot be read; the job sees its end");
            0
        });
        let message = match read {
            0 => {
                self.stdin = None;
                ToAgent::End
            }
            read => ToAgent::Data(self.chunk[..read].to_vec()),
        };
        Ok(self.channel.send(RUN_STREAM, message)?)
    }

    fn on_alarm(&mut self) -> Result<(), Lost> {
        match self.phase {
            Phase::Running => {
                self.ended.stop = Some(Stop::TimedOut);
                self.terminate()?;
            }
            Phase::Terminating => self.kill()?,
            Phase::Killing => return Err(Lost::Silent(KILL_PATIENCE, "it was told to kill the job")),
            // The rest of the output will not come; what came is kept and marked as cut.
            Phase::Draining(_) | Phase::Over => self.phase = Phase::Over,
        }
        Ok(())
    }

    fn on_cancel(&mut self, urgency: Urgency) -> Result<(), Lost> {
        self.urgency = urgency;
        if self.ended.exit.is_none() {
            self.ended.stop.get_or_insert(Stop::Cancelled);
        }
        if urgency == Urgency::AtOnce {
            self.ended.at_once = true;
            self.phase = Phase::Over;
        }
        match self.phase {
            Phase::Running => self.terminate()?,
            // Whoever cancels does not want to wait for a slow reader either.
            Phase::Draining(_) | Phase::Over => self.leave_readers_out()?,
            Phase::Terminating | Phase::Killing => {}
        }
        Ok(())
    }

    fn terminate(&mut self) -> Result<(), Lost> {
        self.channel.send(CHANNEL, ToAgent::Signal(Signal::Term))?;
        self.phase = Phase::Terminating;
        self.alarm = Instant::now() + self.grace;
        Ok(())
    }

    fn kill(&mut self) -> Result<(), Lost> {
        self.channel.send(CHANNEL, ToAgent::Signal(Signal::Kill))?;
        self.phase = Phase::Killing;
        self.alarm = Instant::now() + KILL_PATIENCE;
        Ok(())
    }

    fn leave_readers_out(&mut self) -> Result<(), Lost> {
        let unseen = [(STDOUT, self.ended.stdout.abandon()), (STDERR, self.ended.stderr.abandon())];
        for (stream, bytes) in unseen {
            self.channel.release(stream, bytes)?;
        }
        Ok(())
    }

    /// Shows the readers what came before the sandbox was lost.
    async fn settle(&mut self) {
        while !self.shown_all() {
            let Ended { stdout, stderr, .. } = &mut self.ended;
            tokio::select! {
                _ = self.cancelled.beyond(self.urgency) => {
                    stdout.abandon();
                    stderr.abandon();
                }
                _ = stdout.progress() => {}
                _ = stderr.progress() => {}
            }
        }
    }
}

async fn read_some(source: Option<&mut Reader>, chunk: &mut [u8]) -> std::io::Result<usize> {
    match source {
        Some(source) => source.read(chunk).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

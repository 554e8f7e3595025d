//! The job's stdin, stdout and stderr: pipes on one side, streams with credit on the other.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::codec::StreamId;
use agent::flow::{ReceiveWindow, SendWindow};
use agent::message::ToHost;
use nix::errno::Errno;
use nix::unistd::{read, write};

use crate::channel::Channel;
use crate::failure::Failure;

/// The job's three streams.
pub(crate) struct Stdio {
    pub(crate) stdin: Inlet,
    pub(crate) stdout: Outlet,
    pub(crate) stderr: Outlet,
}

impl Stdio {
    pub(crate) fn has(&self, stream: StreamId) -> bool {
        [self.stdin.stream, self.stdout.stream, self.stderr.stream].contains(&stream)
    }

    pub(crate) fn outlet(&mut self, stream: StreamId) -> Option<&mut Outlet> {
        [&mut self.stdout, &mut self.stderr].into_iter().find(|outlet| outlet.stream == stream)
    }
}

/// The job's stdin. Holds at most a window of bytes that the job has not read.
pub(crate) struct Inlet {
    stream: StreamId,
    window: ReceiveWindow,
    /// The agent's end of the pipe. None once the job has its end of file, or closed its own end.
    pipe: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    /// The host said that no more comes.
    ended: bool,
}

impl Inlet {
    pub(crate) fn new(stream: StreamId, pipe: OwnedFd) -> Self {
        Self {
            stream,
            window: ReceiveWindow::default(),
            pipe: Some(pipe),
            waiting: VecDeque::new(),
            ended: false,
        }
    }

    pub(crate) fn is(&self, stream: StreamId) -> bool {
        self.stream == stream
    }

    /// What to wait for: room in the pipe while bytes wait, and otherwise only that the job closes its end.
    pub(crate) fn interest(&self) -> (Option<BorrowedFd<'_>>, libc::c_short) {
        (self.pipe.as_ref().map(AsFd::as_fd), if self.waiting.is_empty() { 0 } else { libc::POLLOUT })
    }

    pub(crate) fn take(&mut self, bytes: &[u8], channel: &mut Channel) -> Result<(), Failure> {
        if self.ended {
            return Err(Failure::OutOfTurn("host sent stdin after its end"));
        }
        self.window.receive(bytes.len())?;
        // Without a pipe the host was told by Reset, or is about to read it: what is under way is dropped.
        if self.pipe.is_some() {
            self.waiting.extend(bytes);
            self.pump(channel)?;
        }
        Ok(())
    }

    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.close_when_drained();
    }

    /// Writes what the pipe takes, and grants the host as much again.
    fn pump(&mut self, channel: &mut Channel) -> Result<(), Failure> {
        while let (Some(pipe), (front, _)) = (&self.pipe, self.waiting.as_slices()) {
            if front.is_empty() {
                break;
            }
            match write(pipe, front) {
                Ok(len) => {
                    self.waiting.drain(..len);
                    if let Some(grant) = self.window.release(len) {
                        channel.send(self.stream, ToHost::Credit(grant))?;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return self.refuse(channel),
            }
        }
        self.close_when_drained();
        Ok(())
    }

    /// Deals with what [`Inlet::interest`] waited for.
    pub(crate) fn on_ready(&mut self, channel: &mut Channel) -> Result<(), Failure> {
        // With nothing to write, all that can happen is that the job closed its end.
        if self.waiting.is_empty() { self.refuse(channel) } else { self.pump(channel) }
    }

    /// The job closed its stdin: nobody reads any more.
    fn refuse(&mut self, channel: &mut Channel) -> Result<(), Failure> {
        self.waiting = VecDeque::new();
        if self.pipe.take().is_some() && !self.ended {
            channel.send(self.stream, ToHost::Reset)?;
        }
        Ok(())
    }

    fn close_when_drained(&mut self) {
        if self.ended && self.waiting.is_empty() {
            self.pipe = None;
        }
    }
}

/// The job's stdout or stderr. Holds no byte: what the host gave no credit for stays in the pipe, or in the job.
pub(crate) struct Outlet {
    stream: StreamId,
    window: SendWindow,
    pipe: Option<OwnedFd>,
}

impl Outlet {
    pub(crate) fn new(stream: StreamId, pipe: OwnedFd) -> Self {
        Self { stream, window: SendWindow::default(), pipe: Some(pipe) }
    }

    /// The pipe, while its bytes may be sent. Left out of the poll set otherwise, or its hangup would spin the loop.
    pub(crate) fn interest(&self, channel: &Channel) -> Option<BorrowedFd<'_>> {
        let pipe = self.pipe.as_ref().map(AsFd::as_fd);
        pipe.filter(|_| self.window.available() > 0 && channel.has_room())
    }

    pub(crate) fn grant(&mut self, more: u32) -> Result<(), Failure> {
        Ok(self.window.grant(more)?)
    }

    /// The host wants no more. The job's next write answers EPIPE.
    pub(crate) fn close(&mut self) {
        self.pipe = None;
    }

    /// Sends one piece of what the job wrote.
    pub(crate) fn pump(&mut self, channel: &mut Channel) -> Result<(), Failure> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        match channel.send_data(self.stream, self.window.available(), |chunk| read(pipe, chunk))? {
            Ok(len @ 1..) => self.window.consume(len),
            // The pipe does not block: the job can open it by way of /proc/self/fd and take its own bytes back.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => {
                self.pipe = None;
                channel.send(self.stream, ToHost::End)?;
            }
        }
        Ok(())
    }
}

//! The one byte stream to the host: frames in on descriptor 0, frames out on descriptor 1.
//!
//! Never blocks on the way out. What the host does not take yet waits in the outbox, and those who make bytes ask
//! [`Channel::has_room`] first, so that it stays small.

use std::os::fd::{AsFd, BorrowedFd};

use agent::codec::{Decoder, Frame, MAX_CHUNK, StreamId};
use agent::message::{ToAgent, ToHost};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{read, write};

use crate::failure::{At, Failure};
use crate::sys;

/// Bytes in the outbox above which no stream adds more.
const ROOM: usize = 4 * MAX_CHUNK;

/// Bytes in the outbox above which not even requests are taken: a host that asks and never reads answers waits.
const FULL: usize = 16 * MAX_CHUNK;

pub(crate) struct Channel {
    input: BorrowedFd<'static>,
    output: BorrowedFd<'static>,
    /// A socket is asked not to block at each send: its flags may be shared with a process that wants to block.
    output_is_socket: bool,
    decoder: Decoder,
    outbox: Vec<u8>,
    /// How much of the outbox the host has.
    sent: usize,
    scratch: Vec<u8>,
}

impl Channel {
    pub(crate) fn on_standard_descriptors() -> Result<Self, Failure> {
        let (input, output) = (sys::fixed(0), sys::fixed(1));
        let mode = fstat(output).at("look at the channel")?.st_mode;
        let output_is_socket = SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFSOCK;
        if !output_is_socket {
            // The write end of a pipe or of a serial port, which the agent alone holds. The input needs no flag:
            // it is read once after each word from poll that something is there.
            let flags = fcntl(output, FcntlArg::F_GETFL).at("read the channel's flags")?;
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(output, FcntlArg::F_SETFL(flags)).at("make the channel non-blocking")?;
        }
        Ok(Self {
            input,
            output,
            output_is_socket,
            decoder: Decoder::default(),
            outbox: Vec::new(),
            sent: 0,
            scratch: vec![0; MAX_CHUNK],
        })
    }

    /// Where to wait for bytes from the host, while there is room for what they may ask for.
    pub(crate) fn input(&self) -> Option<BorrowedFd<'static>> {
        (self.pending() < FULL).then_some(self.input)
    }

    /// Where to wait for the host to take bytes, while there are some.
    pub(crate) fn output(&self) -> Option<BorrowedFd<'static>> {
        (self.pending() > 0).then_some(self.output)
    }

    /// Takes what arrived. Call it when [`Channel::input`] is ready.
    pub(crate) fn receive(&mut self) -> Result<(), Failure> {
        match read(self.input, &mut self.scratch) {
            Ok(0) | Err(Errno::ECONNRESET) => Err(Failure::HostGone),
            Ok(len) => {
                self.decoder.feed(&self.scratch[..len]);
                Ok(())
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno).at("read the channel"),
        }
    }

    /// The next frame of what arrived.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<ToAgent>>, Failure> {
        if self.pending() >= FULL {
            return Ok(None);
        }
        Ok(self.decoder.next_frame()?)
    }

    /// Waits for one frame. For the greeting, before there is anything else to wait for.
    pub(crate) fn wait_frame(&mut self) -> Result<Frame<ToAgent>, Failure> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            // Whatever the descriptor's flags are, this waits.
            sys::poll(&mut [waiting_for(Some(self.input.as_fd()), libc::POLLIN)], -1)
                .at("wait for the host")?;
            self.receive()?;
        }
    }

    /// Whether a stream may add a chunk.
    pub(crate) fn has_room(&self) -> bool {
        self.pending() < ROOM
    }

    fn pending(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// Puts a message into the outbox.
    pub(crate) fn send(&mut self, stream: StreamId, message: ToHost) -> Result<(), Failure> {
        Ok(Frame { stream, message }.encode_into(&mut self.outbox)?)
    }

    /// Lets `fill` write a chunk of at most `limit` bytes, and puts what it wrote into the outbox.
    pub(crate) fn send_data(
        &mut self,
        stream: StreamId,
        limit: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Failure> {
        let filled = fill(&mut self.scratch[..limit.min(MAX_CHUNK)]);
        if let Ok(len @ 1..) = filled {
            self.send(stream, ToHost::Data(self.scratch[..len].to_vec()))?;
        }
        Ok(filled)
    }

    /// Gives the host as much of the outbox as it takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        while self.pending() > 0 {
            let rest = &self.outbox[self.sent..];
            let taken =
                if self.output_is_socket { sys::send(self.output, rest) } else { write(self.output, rest) };
            match taken {
                Ok(len) => self.sent += len,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Failure::HostGone),
                Err(errno) => return Err(errno).at("write the channel"),
            }
        }
        if self.pending() == 0 {
            self.outbox.clear();
            self.sent = 0;
        } else if self.sent >= ROOM {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Takes a frame as though the host had sent it.
    pub(crate) fn hear(&mut self, frame: &Frame<ToAgent>) -> Result<(), Failure> {
        self.decoder.feed(&frame.encode()?);
        Ok(())
    }

    /// Drops what the host has not taken.
    pub(crate) fn forget(&mut self) {
        self.outbox.clear();
        self.sent = 0;
    }

    /// Says a last word and gives the host one second to take it.
    pub(crate) fn say_last(&mut self, message: ToHost) {
        let told = self.send(0, message).and_then(|()| self.flush());
        if told.is_ok() && self.pending() > 0 {
            let _ = sys::poll(&mut [waiting_for(self.output(), libc::POLLOUT)], 1000);
            let _ = self.flush();
        }
    }
}

/// A place in a poll set. Without a descriptor it is skipped.
pub(crate) fn waiting_for(fd: Option<BorrowedFd<'_>>, events: libc::c_short) -> libc::pollfd {
    use std::os::fd::AsRawFd;
    libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events, revents: 0 }
}

//! Files on their way out: what a walk finds, sent a chunk at a time under the stream's credit.

use std::fs::File;
use std::io::{ErrorKind, Read};

use agent::codec::StreamId;
use agent::flow::SendWindow;
use agent::message::{FileError, Get, GetDone, GetLimit, ToHost};
use nix::errno::Errno;

use super::place;
use super::walk::{Found, Walk};
use crate::channel::Channel;
use crate::failure::Failure;

/// A `Get` that is being served.
pub(crate) struct Download {
    stream: StreamId,
    window: SendWindow,
    walk: Walk,
    current: Option<File>,
    files_left: u32,
    bytes_left: u64,
    done: bool,
}

impl Download {
    pub(crate) fn new(stream: StreamId, get: Get) -> Self {
        Self {
            stream,
            window: SendWindow::default(),
            walk: Walk::new(get.patterns, get.max_visited),
            current: None,
            files_left: get.max_files,
            bytes_left: get.max_bytes,
            done: false,
        }
    }

    pub(crate) fn is(&self, stream: StreamId) -> bool {
        self.stream == stream
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    pub(crate) fn grant(&mut self, more: u32) -> Result<(), Failure> {
        Ok(self.window.grant(more)?)
    }

    /// Whether a step could be taken now.
    pub(crate) fn is_ready(&self, channel: &Channel) -> bool {
        channel.has_room() && (self.current.is_none() || self.window.available() > 0)
    }

    /// Takes one step: a piece of a directory, one name, or one chunk of a file.
    pub(crate) fn step(&mut self, channel: &mut Channel) -> Result<(), Failure> {
        if let Some(file) = self.current.take() {
            return self.send_chunk(file, channel);
        }
        match self.walk.step() {
            Found::Nothing => Ok(()),
            Found::Skipped(skipped) => channel.send(self.stream, ToHost::Skipped(skipped)),
            Found::File(..) if self.files_left == 0 => self.finish(Some(GetLimit::Files), channel),
            Found::File(_, entry) if self.bytes_left == 0 && entry.size > 0 => {
                self.finish(Some(GetLimit::Bytes), channel)
            }
            Found::File(file, entry) => {
                self.files_left -= 1;
                self.current = Some(file);
                channel.send(self.stream, ToHost::Entry(entry))
            }
            Found::End(limit) => self.finish(limit, channel),
        }
    }

    fn send_chunk(&mut self, mut file: File, channel: &mut Channel) -> Result<(), Failure> {
        let allowed = usize::try_from(self.bytes_left).unwrap_or(usize::MAX);
        if allowed == 0 {
            return self.cut(file, channel);
        }
        let limit = self.window.available().min(allowed);
        let sent = channel.send_data(self.stream, limit, |chunk| read(&mut file, chunk))?;
        match sent {
            Ok(0) => channel.send(self.stream, ToHost::EntryDone(Ok(()))),
            Ok(len) => {
                self.window.consume(len);
                self.bytes_left -= len as u64;
                self.current = Some(file);
                Ok(())
            }
            Err(errno) => channel.send(self.stream, ToHost::EntryDone(Err(place::file_error(errno)))),
        }
    }

    /// The byte limit is reached. One byte more tells a file that ended just there from one that is cut.
    fn cut(&mut self, mut file: File, channel: &mut Channel) -> Result<(), Failure> {
        if let Ok(0) = read(&mut file, &mut [0]) {
            return channel.send(self.stream, ToHost::EntryDone(Ok(())));
        }
        channel.send(self.stream, ToHost::EntryDone(Err(FileError::Truncated)))?;
        self.finish(Some(GetLimit::Bytes), channel)
    }

    fn finish(&mut self, stopped_by: Option<GetLimit>, channel: &mut Channel) -> Result<(), Failure> {
        self.done = true;
        channel.send(self.stream, ToHost::GetDone(GetDone { stopped_by }))
    }
}

fn read(file: &mut File, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
}

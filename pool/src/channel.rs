//! The host's end of a sandbox's one byte stream.
//!
//! Frames are queued by [`Channel::send`] and travel while somebody waits in [`Channel::next`]. There is no
//! task behind it: who owns the channel drives it, and dropping it ends the agent and with it the sandbox.
//! Everything that arrives is hostile: framing, direction, stream numbers and credit are checked here, and
//! the first breach ends the conversation.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use agent::{
    codec::{CodecError, Decoder, FIRST_AGENT_STREAM, Frame, MAX_CHUNK, StreamId},
    flow::{FlowError, MAX_TUNNELS, ReceiveWindow, SendWindow},
    message::{ToAgent, ToHost},
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait to be written above which nobody should add more.
const ROOM: usize = 4 * MAX_CHUNK;

/// Why the conversation with an agent is over. After any of these the sandbox is lost.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The agent is gone: killed, crashed, or its sandbox was.
    #[error("the sandbox's agent closed its channel")]
    Closed,
    /// The stream itself failed.
    #[error("the channel to the sandbox failed")]
    Io(#[source] io::Error),
    /// What arrived is no frame of ours.
    #[error("the sandbox sent something that is no frame: {0}")]
    Codec(#[from] CodecError),
    /// The agent sent more than it may.
    #[error("the sandbox broke flow control on stream {stream}: {error}")]
    Flow {
        /// On which stream.
        stream: StreamId,
        /// How.
        error: FlowError,
    },
    /// The agent spoke on a stream that is not open in that direction.
    #[error("the sandbox spoke on stream {0}, which is not open")]
    UnknownStream(StreamId),
    /// The agent opened a tunnel that it may not.
    #[error("the sandbox opened tunnel {0}, which it may not")]
    Tunnel(StreamId),
}

/// The host's end of the stream to an agent.
pub struct Channel {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    decoder: Decoder,
    /// Frames that wait to be written; the first `written` bytes are gone already.
    outbox: Vec<u8>,
    written: usize,
    inbox: Box<[u8]>,
    sending: HashMap<StreamId, SendWindow>,
    receiving: HashMap<StreamId, ReceiveWindow>,
    /// Whether the agent may open streams.
    listens: bool,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("unwritten", &(self.outbox.len() - self.written))
            .field("sending", &self.sending.keys())
            .field("receiving", &self.receiving.keys())
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// Wraps the two directions of a sandbox's stream.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
            decoder: Decoder::default(),
            outbox: Vec::new(),
            written: 0,
            inbox: vec![0; MAX_CHUNK].into_boxed_slice(),
            sending: HashMap::new(),
            receiving: HashMap::new(),
            listens: false,
        }
    }

    /// Queues a frame. `Run`, `Put` and `Get` open the streams that they need; `End` and `Reset` close theirs.
    pub fn send(&mut self, stream: StreamId, message: ToAgent) -> Result<(), ChannelError> {
        match &message {
            ToAgent::Run(run) => {
                if run.stdin {
                    self.sending.insert(stream, SendWindow::default());
                }
                self.receiving.insert(stream + 1, ReceiveWindow::default());
                self.receiving.insert(stream + 2, ReceiveWindow::default());
                self.listens = !run.listen.is_empty();
            }
            ToAgent::Put(_) => drop(self.sending.insert(stream, SendWindow::default())),
            ToAgent::Get(_) => drop(self.receiving.insert(stream, ReceiveWindow::default())),
            ToAgent::End => drop(self.sending.remove(&stream)),
            // What still comes is for nobody, but it comes until the agent has said its own last word.
            ToAgent::Reset if stream >= FIRST_AGENT_STREAM => drop(self.sending.remove(&stream)),
            ToAgent::Data(bytes) => match self.sending.get_mut(&stream) {
                Some(window) => window.consume(bytes.len()),
                // The agent reset the stream while the bytes were being read: nobody wants them.
                None => return Ok(()),
            },
            _ => {}
        }
        Frame { stream, message }.encode_into(&mut self.outbox)?;
        Ok(())
    }

    /// Bytes that may be sent on `stream` now: at most one chunk, 0 while the agent's reader is behind, and
    /// `None` once the stream is closed.
    #[must_use]
    pub fn may_send(&self, stream: StreamId) -> Option<usize> {
        self.sending.get(&stream).map(|window| window.available().min(MAX_CHUNK))
    }

    /// Whether what waits to be written is little enough to add to it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.outbox.len() - self.written < ROOM
    }

    /// Lets the agent have `more` bytes of a tunnel under way than it may in the beginning.
    pub fn widen(&mut self, stream: StreamId, more: u32) -> Result<(), ChannelError> {
        match self.receiving.get_mut(&stream) {
            Some(window) => {
                window.widen(more);
                self.send(stream, ToAgent::Credit(more))
            }
            None => Ok(()),
        }
    }

    /// Notes that `len` bytes of `stream` were taken, so that the agent may send as many again.
    pub fn release(&mut self, stream: StreamId, len: usize) -> Result<(), ChannelError> {
        match self.receiving.get_mut(&stream).and_then(|window| window.release(len)) {
            Some(grant) => self.send(stream, ToAgent::Credit(grant)),
            None => Ok(()),
        }
    }

    /// Writes what is queued and waits for the next frame. Credit is settled here and never returned.
    ///
    /// Cancel safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Frame<ToHost>, ChannelError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Whether the stream is open and nothing has come on it: an agent that waits speaks only when it is spoken to.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut one = [0];
        let mut buffer = ReadBuf::new(&mut one);
        let mut nobody = Context::from_waker(Waker::noop());
        Pin::new(&mut self.reader).poll_read(&mut nobody, &mut buffer).is_pending()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<ToHost>, ChannelError>> {
        loop {
            // Reading goes on while writing waits, or two full directions would wait for each other.
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            while let Some(frame) = self.decoder.next_frame()? {
                if let Some(frame) = self.settle(frame)? {
                    return Poll::Ready(Ok(frame));
                }
            }
            let mut buffer = ReadBuf::new(&mut self.inbox);
            ready!(Pin::new(&mut self.reader).poll_read(cx, &mut buffer)).map_err(ChannelError::Io)?;
            match buffer.filled() {
                [] => return Poll::Ready(Err(ChannelError::Closed)),
                bytes => self.decoder.feed(bytes),
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        while self.written < self.outbox.len() {
            let rest = &self.outbox[self.written..];
            match ready!(Pin::new(&mut self.writer).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(ChannelError::Closed)),
                Ok(n) => self.written += n,
                // A sandbox that died says more by what it sent before: let the reader find the end.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.written = self.outbox.len(),
                Err(error) => return Poll::Ready(Err(ChannelError::Io(error))),
            }
        }
        self.outbox.clear();
        self.written = 0;
        Pin::new(&mut self.writer).poll_flush(cx).map_err(ChannelError::Io)
    }

    /// Checks a frame against the streams that are open; swallows credit.
    fn settle(&mut self, frame: Frame<ToHost>) -> Result<Option<Frame<ToHost>>, ChannelError> {
        let stream = frame.stream;
        if stream >= FIRST_AGENT_STREAM && !self.listens {
            return Err(ChannelError::UnknownStream(stream));
        }
        match &frame.message {
            ToHost::Credit(more) => {
                // A grant may cross the host's own End on the way.
                if let Some(window) = self.sending.get_mut(&stream) {
                    window.grant(*more).map_err(|error| ChannelError::Flow { stream, error })?;
                }
                return Ok(None);
            }
            ToHost::Data(bytes) => {
                let window = self.receiving.get_mut(&stream).ok_or(ChannelError::UnknownStream(stream))?;
                window.receive(bytes.len()).map_err(|error| ChannelError::Flow { stream, error })?;
            }
            ToHost::End | ToHost::GetDone(_) => {
                self.receiving.remove(&stream).ok_or(ChannelError::UnknownStream(stream))?;
            }
            ToHost::Tunnel(_) => self.open(stream)?,
            ToHost::Reset if stream >= FIRST_AGENT_STREAM => {
                // Both may have ended, and this was under way. Otherwise the host's last word is still owed.
                let owed = self.sending.contains_key(&stream);
                let open = self.receiving.remove(&stream).is_some();
                return Ok((open || owed).then_some(frame));
            }
            ToHost::Reset | ToHost::PutDone(_) => drop(self.sending.remove(&stream)),
            ToHost::Ready(_)
            | ToHost::Resumed(_)
            | ToHost::Fault(_)
            | ToHost::Exit(_)
            | ToHost::Entry(_)
            | ToHost::EntryDone(_)
            | ToHost::Skipped(_) => {}
        }
        Ok(Some(frame))
    }

    /// Opens a stream that the agent has chosen.
    fn open(&mut self, stream: StreamId) -> Result<(), ChannelError> {
        // Whichever end has still to say its last word, it is open.
        let sending = self.sending.keys().filter(|stream| !self.receiving.contains_key(stream));
        let open = sending.chain(self.receiving.keys()).filter(|stream| **stream >= FIRST_AGENT_STREAM);
        let known = self.sending.contains_key(&stream) || self.receiving.contains_key(&stream);
        if known || stream < FIRST_AGENT_STREAM || open.count() >= MAX_TUNNELS {
            return Err(ChannelError::Tunnel(stream));
        }
        self.sending.insert(stream, SendWindow::of_tunnel());
        self.receiving.insert(stream, ReceiveWindow::of_tunnel());
        Ok(())
    }
}

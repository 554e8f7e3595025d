//! The host's ends of a job's connections: what the agent carries as streams, the door serves as [`Tunnel`]s.
//!
//! The loop of `run` owns the channel; whoever serves a tunnel is a task of its own. Between the two lies a pipe for each
//! tunnel, bounded in both directions, and one bell that tells the loop which of them to look at.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use agent::{
    codec::{MAX_CHUNK, StreamId},
    flow::TUNNEL_CREDIT,
    message::{ToAgent, ToHost},
};
use egress::Session;
use pool::Channel;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::traffic::Lost;

/// Beyond the credit that each tunnel begins with, what the windows of all of a job's may have, in bytes.
const SPARE: u32 = 4 * 1024 * 1024;
/// The most that one of them may have of it.
const WIDEST: u32 = 512 * 1024;
/// Bytes that are read before the loop hears of it: a part of the smallest window.
const WORTH_A_RING: usize = TUNNEL_CREDIT as usize / 4;

/// All tunnels of one job, seen from the loop.
pub(crate) struct Tunnels<'a> {
    door: Option<&'a Session>,
    bell: Arc<Bell>,
    open: HashMap<StreamId, Open>,
    /// Those that have something for the agent which may not be sent yet.
    stalled: Vec<StreamId>,
    spare: u32,
}

/// A tunnel, as far as the agent is concerned.
struct Open {
    pipe: Arc<Pipe>,
    /// What its window has of what is to spare.
    widened: u32,
    said: LastWord,
    heard_last: bool,
}

/// What the agent was told last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastWord {
    None,
    End,
    Reset,
}

/// One connection of the job's, for whoever serves it. Dropped, it is over for the job, too.
pub(crate) struct Tunnel(Arc<Pipe>);

struct Pipe {
    stream: StreamId,
    state: Mutex<State>,
    bell: Arc<Bell>,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each end of each direction ends by itself")]
struct State {
    /// What the job wrote, and how much of the first piece was read.
    inbound: VecDeque<Vec<u8>>,
    read: usize,
    /// Bytes that were read since the agent was last told.
    taken: usize,
    inbound_ended: bool,
    reader: Option<Waker>,
    /// What is for the job.
    outbound: Vec<u8>,
    outbound_ended: bool,
    writer: Option<Waker>,
    /// The job, or its sandbox, is gone.
    reset: bool,
    /// Nobody serves it any more.
    dropped: bool,
}

/// Tells the loop which tunnels something happened to.
#[derive(Default)]
struct Bell {
    rung: Mutex<Vec<StreamId>>,
    heard: Notify,
}

impl<'a> Tunnels<'a> {
    pub(crate) fn new(door: Option<&'a Session>) -> Self {
        Self { door, bell: Arc::default(), open: HashMap::new(), stalled: Vec::new(), spare: SPARE }
    }

    /// Whether there can be any.
    pub(crate) fn are_allowed(&self) -> bool {
        self.door.is_some()
    }

    /// Waits until there is something to do for a tunnel. Cancel safe.
    pub(crate) async fn rung(&self) {
        self.bell.heard.notified().await;
    }

    /// Whether something that waited for the channel may go on.
    pub(crate) fn may_go_on(&self, channel: &Channel) -> bool {
        channel.has_room() && self.stalled.iter().any(|stream| channel.may_send(*stream) != Some(0))
    }

    /// Carries on what the bell was rung for, and what had to wait.
    pub(crate) fn go_on(&mut self, channel: &mut Channel) -> Result<(), Lost> {
        let mut due = std::mem::take(&mut self.stalled);
        due.append(&mut lock(&self.bell.rung));
        due.sort_unstable();
        due.dedup();
        due.into_iter().try_for_each(|stream| self.carry(stream, channel))
    }

    /// Hears what the agent says of a tunnel.
    pub(crate) fn on_frame(
        &mut self,
        stream: StreamId,
        message: ToHost,
        channel: &mut Channel,
    ) -> Result<(), Lost> {
        if let ToHost::Tunnel(tunnel) = message {
            return self.begin(stream, tunnel.port, channel);
        }
        // The channel lets nothing through for a stream that is not open.
        let Some(open) = self.open.get_mut(&stream) else { return Ok(()) };
        let mut state = open.pipe.lock();
        match message {
            ToHost::Data(_) if state.dropped => {}
            ToHost::Data(bytes) => state.inbound.push_back(bytes),
            ToHost::End => {
                state.inbound_ended = true;
                open.heard_last = true;
            }
            ToHost::Reset => {
                state.reset = true;
                state.outbound.clear();
                open.heard_last = true;
            }
            _ => return Err(Lost::Breach("it said something of a tunnel that tunnels know nothing of")),
        }
        state.wake();
        drop(state);
        self.carry(stream, channel)
    }

    fn begin(&mut self, stream: StreamId, port: u16, channel: &mut Channel) -> Result<(), Lost> {
        let Some(door) = self.door else {
            return Err(Lost::Breach("it opened a tunnel, and the job was given none"));
        };
        let pipe = Arc::new(Pipe { stream, state: Mutex::default(), bell: self.bell.clone() });
        // The first ones get wide windows, a crowd gets narrow ones.
        let widened = WIDEST.min(self.spare / 4);
        self.spare -= widened;
        channel.widen(stream, widened)?;
        door.serve(port, Tunnel(pipe.clone()));
        self.open.insert(stream, Open { pipe, widened, said: LastWord::None, heard_last: false });
        Ok(())
    }

    /// Gives the agent what there is for it, as far as it may have it.
    fn carry(&mut self, stream: StreamId, channel: &mut Channel) -> Result<(), Lost> {
        let Some(open) = self.open.get_mut(&stream) else { return Ok(()) };
        let mut state = open.pipe.lock();
        channel.release(stream, std::mem::take(&mut state.taken))?;
        while open.said == LastWord::None && !state.outbound.is_empty() {
            let room = channel.may_send(stream).unwrap_or(0);
            if room == 0 || !channel.has_room() {
                self.stalled.push(stream);
                break;
            }
            channel.send(stream, ToAgent::Data(state.next_piece(room)))?;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
        }
        while let Some(word) = state.last_word(open) {
            open.said = word;
            channel.send(stream, if word == LastWord::End { ToAgent::End } else { ToAgent::Reset })?;
        }
        drop(state);
        if open.said != LastWord::None && open.heard_last {
            self.spare += open.widened;
            self.open.remove(&stream);
        }
        Ok(())
    }
}

impl Drop for Tunnels<'_> {
    /// Whoever still serves a tunnel learns that the job is gone, but may read what came before its end.
    fn drop(&mut self) {
        for open in self.open.values() {
            let mut state = open.pipe.lock();
            state.reset |= !state.inbound_ended;
            state.outbound_ended = true;
            state.wake();
        }
    }
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn next_piece(&mut self, room: usize) -> Vec<u8> {
        if self.outbound.len() <= room {
            return std::mem::take(&mut self.outbound);
        }
        let rest = self.outbound.split_off(room);
        std::mem::replace(&mut self.outbound, rest)
    }

    /// What the agent is to be told now. Whoever drops a tunnel wants no more of it, even behind an end.
    fn last_word(&self, open: &Open) -> Option<LastWord> {
        let unwanted = self.dropped && !open.heard_last;
        match open.said {
            LastWord::None if self.reset => Some(LastWord::Reset),
            LastWord::None if self.outbound_ended => self.outbound.is_empty().then_some(LastWord::End),
            LastWord::None => self.dropped.then_some(LastWord::Reset),
            LastWord::End => unwanted.then_some(LastWord::Reset),
            LastWord::Reset => None,
        }
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn ring(&self) {
        lock(&self.bell.rung).push(self.stream);
        self.bell.heard.notify_one();
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let State { inbound, read, .. } = &mut *state;
        let before = buffer.filled().len();
        while let (Some(piece), 1..) = (inbound.front(), buffer.remaining()) {
            let some = buffer.remaining().min(piece.len() - *read);
            buffer.put_slice(&piece[*read..*read + some]);
            *read += some;
            if *read == piece.len() {
                inbound.pop_front();
                *read = 0;
            }
        }
        let taken = buffer.filled().len() - before;
        if taken > 0 {
            state.taken += taken;
            if state.taken >= WORTH_A_RING {
                self.0.ring();
            }
            return Poll::Ready(Ok(()));
        }
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.inbound_ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.reset || state.outbound_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let some = bytes.len().min(MAX_CHUNK - state.outbound.len());
        if some == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // What waits already has the loop's attention.
        if state.outbound.is_empty() {
            self.0.ring();
        }
        state.outbound.extend_from_slice(&bytes[..some]);
        Poll::Ready(Ok(some))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().outbound_ended = true;
        self.0.ring();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.dropped = true;
        state.inbound.clear();
        drop(state);
        self.0.ring();
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tunnel").field(&self.0.stream).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked with it in hand left a state that is whole: each change of it is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

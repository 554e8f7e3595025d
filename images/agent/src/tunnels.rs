//! The job's way out: connections to ports of its own loopback, each carried to the host as a stream of its own.
//!
//! Nothing is decided here. The host knows what each port stands for, and whether it is given.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use agent::codec::{FIRST_AGENT_STREAM, StreamId};
use agent::flow::{MAX_TUNNELS, ReceiveWindow, SendWindow, TUNNEL_CREDIT};
use agent::message::{self, ToHost};
use nix::errno::Errno;
use nix::unistd::{read, write};

use crate::channel::{Channel, waiting_for};
use crate::failure::{At, Failure};
use crate::sys;

/// Beyond the credit that each tunnel begins with, what the windows of all of them may have, in bytes: the agent has
/// little memory, and holds what the job does not read.
const SPARE: u32 = 2 * 1024 * 1024;

/// The most that one of them may have of it: enough that a long way to the host does not slow it down.
const WIDEST: u32 = 256 * 1024 - TUNNEL_CREDIT;

/// Pieces of a connection that are sent after the job's end: what it wrote last is on its way, and no more can come.
const LAST_PIECES: usize = 16;

pub(crate) struct Tunnels {
    listeners: Vec<(u16, TcpListener)>,
    open: BTreeMap<StreamId, Tunnel>,
    /// Numbers go round before one comes again, so that nothing which is said late meets another stream.
    next: StreamId,
    spare: u32,
}

/// One connection of the job's.
struct Tunnel {
    /// None once it is gone here, and the host's last word is still to come.
    socket: Option<TcpStream>,
    sending: SendWindow,
    receiving: ReceiveWindow,
    /// What the job does not take yet.
    waiting: VecDeque<u8>,
    /// Whether each end has said that it sends no more.
    said_last: bool,
    heard_last: bool,
}

impl Tunnels {
    /// Listens on ports of the loopback.
    pub(crate) fn listen(ports: &[u16]) -> Result<Self, Failure> {
        let listen = |port: &u16| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
            listener.set_nonblocking(true)?;
            Ok((*port, listener))
        };
        let listeners = ports.iter().map(listen).collect::<Result<_, _>>();
        let listeners = listeners.map_err(|error| Failure::of_io("listen for the job", &error))?;
        Ok(Self { listeners, open: BTreeMap::new(), next: FIRST_AGENT_STREAM, spare: SPARE })
    }

    /// Adds what is to be waited for: each port, then each connection.
    pub(crate) fn interests(&self, channel: &Channel, slots: &mut Vec<libc::pollfd>) {
        let more = self.open.len() < MAX_TUNNELS && channel.has_room();
        let ports = self.listeners.iter();
        slots.extend(ports.map(|(_, port)| waiting_for(more.then(|| port.as_fd()), libc::POLLIN)));
        slots.extend(self.open.values().map(|tunnel| {
            let (socket, events) = tunnel.interest(channel);
            waiting_for(socket, events)
        }));
    }

    /// Deals with what [`Tunnels::interests`] waited for.
    pub(crate) fn on_ready(&mut self, slots: &[libc::pollfd], channel: &mut Channel) -> Result<(), Failure> {
        let (ports, connections) = slots.split_at(self.listeners.len());
        let streams: Vec<_> = self.open.keys().copied().zip(connections).collect();
        for (stream, slot) in streams {
            if slot.revents != 0 {
                self.with(stream, |tunnel| {
                    tunnel.give(stream, channel)?;
                    tunnel.take_some(stream, channel)
                })?;
            }
        }
        for (place, slot) in ports.iter().enumerate() {
            if slot.revents != 0 {
                self.accept(place, channel)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, place: usize, channel: &mut Channel) -> Result<(), Failure> {
        let (port, listener) = &self.listeners[place];
        let Ok((socket, _)) = listener.accept() else {
            // It went again, or there are no descriptors left; then others go first.
            return Ok(());
        };
        let made = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
        made.map_err(|error| Failure::of_io("take a connection of the job's", &error))?;
        let stream = self.next;
        self.next = stream.checked_add(1).unwrap_or(FIRST_AGENT_STREAM);
        channel.send(stream, ToHost::Tunnel(message::Tunnel { port: *port }))?;
        let mut tunnel = Tunnel {
            socket: Some(socket),
            sending: SendWindow::of_tunnel(),
            receiving: ReceiveWindow::of_tunnel(),
            waiting: VecDeque::new(),
            said_last: false,
            heard_last: false,
        };
        // The first ones get wide windows, a crowd gets narrow ones.
        let more = WIDEST.min(self.spare / 4);
        self.spare -= more;
        tunnel.receiving.widen(more);
        channel.send(stream, ToHost::Credit(more))?;
        self.open.insert(stream, tunnel);
        Ok(())
    }

    pub(crate) fn has(&self, stream: StreamId) -> bool {
        self.open.contains_key(&stream)
    }

    /// Bytes of the host's for the job.
    pub(crate) fn take(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
        channel: &mut Channel,
    ) -> Result<(), Failure> {
        self.with(stream, |tunnel| {
            tunnel.receiving.receive(bytes.len())?;
            // Whoever reset the connection here is about to tell the host.
            if tunnel.socket.is_some() {
                tunnel.waiting.extend(bytes);
            }
            tunnel.give(stream, channel)
        })
    }

    /// The host sends no more.
    pub(crate) fn end(&mut self, stream: StreamId, channel: &mut Channel) -> Result<(), Failure> {
        self.with(stream, |tunnel| {
            tunnel.heard_last = true;
            tunnel.give(stream, channel)
        })
    }

    /// The host wants no more. The job sees its connection reset, or what the host sent before it ended.
    pub(crate) fn reset(&mut self, stream: StreamId, channel: &mut Channel) -> Result<(), Failure> {
        self.with(stream, |tunnel| {
            if !std::mem::replace(&mut tunnel.heard_last, true) {
                return tunnel.abort(stream, channel);
            }
            if !std::mem::replace(&mut tunnel.said_last, true) {
                channel.send(stream, ToHost::Reset)?;
            }
            Ok(())
        })
    }

    pub(crate) fn grant(&mut self, stream: StreamId, more: u32) -> Result<(), Failure> {
        // Credit for a stream that is over was under way when that ended.
        self.open.get_mut(&stream).map_or(Ok(()), |tunnel| Ok(tunnel.sending.grant(more)?))
    }

    /// The job has ended: what it wrote last goes out, and nothing of it is left.
    pub(crate) fn close(&mut self, channel: &mut Channel) -> Result<(), Failure> {
        self.listeners.clear();
        let streams: Vec<_> = self.open.keys().copied().collect();
        for stream in streams {
            self.with(stream, |tunnel| {
                for _ in 0..LAST_PIECES {
                    tunnel.take_some(stream, channel)?;
                }
                tunnel.abort(stream, channel)
            })?;
        }
        Ok(())
    }

    /// Does something with one tunnel, and forgets it if it is over then.
    fn with(
        &mut self,
        stream: StreamId,
        act: impl FnOnce(&mut Tunnel) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some(tunnel) = self.open.get_mut(&stream) else { return Ok(()) };
        act(tunnel)?;
        if tunnel.is_over() {
            self.spare += tunnel.receiving.size() - TUNNEL_CREDIT;
            self.open.remove(&stream);
        }
        Ok(())
    }
}

impl Tunnel {
    fn interest(&self, channel: &Channel) -> (Option<BorrowedFd<'_>>, libc::c_short) {
        let mut events = 0;
        if self.may_read(channel) {
            events |= libc::POLLIN;
        }
        if !self.waiting.is_empty() {
            events |= libc::POLLOUT;
        }
        // With nothing to do, its hangup would spin the loop.
        let socket = self.socket.as_ref().map(AsFd::as_fd).filter(|_| events != 0);
        (socket, events)
    }

    fn may_read(&self, channel: &Channel) -> bool {
        !self.said_last && self.sending.available() > 0 && channel.has_room()
    }

    /// Sends the host one piece of what the job wrote.
    fn take_some(&mut self, stream: StreamId, channel: &mut Channel) -> Result<(), Failure> {
        if !self.may_read(channel) {
            return Ok(());
        }
        let Some(socket) = &self.socket else { return Ok(()) };
        match channel.send_data(stream, self.sending.available(), |chunk| read(socket, chunk))? {
            Ok(0) => {
                self.said_last = true;
                channel.send(stream, ToHost::End)
            }
            Ok(len) => {
                self.sending.consume(len);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(_) => self.abort(stream, channel),
        }
    }

    /// Gives the job what it takes, and the host as much credit again.
    fn give(&mut self, stream: StreamId, channel: &mut Channel) -> Result<(), Failure> {
        while let (Some(socket), (front @ [_, ..], _)) = (&self.socket, self.waiting.as_slices()) {
            match write(socket, front) {
                Ok(len) => {
                    self.waiting.drain(..len);
                    if let (Some(grant), false) = (self.receiving.release(len), self.heard_last) {
                        channel.send(stream, ToHost::Credit(grant))?;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return self.abort(stream, channel),
            }
        }
        if let (Some(socket), true, true) = (&self.socket, self.heard_last, self.waiting.is_empty()) {
            // The job may have closed it already.
            let _ = socket.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// The connection is of no use to one of its ends any more.
    fn abort(&mut self, stream: StreamId, channel: &mut Channel) -> Result<(), Failure> {
        self.waiting.clear();
        let Some(socket) = self.socket.take() else { return Ok(()) };
        sys::reset_when_closed(&socket).at("reset a connection of the job's")?;
        // Behind an End it still says that nothing more is wanted.
        if !(self.said_last && self.heard_last) {
            self.said_last = true;
            channel.send(stream, ToHost::Reset)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.said_last && self.heard_last && self.waiting.is_empty()
    }
}

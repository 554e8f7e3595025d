//! A connection that can be cut or stalled: one TCP hop on loopback.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Passes every connection on to a port, until told otherwise.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether answers are lost.
    deaf: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Both ends of each connection, newest last.
    open: Vec<TcpStream>,
    accepted: usize,
    stalled: bool,
    refusing: bool,
    slice: Option<usize>,
    /// How many answers were lost.
    lost: usize,
    over: bool,
}

impl Proxy {
    /// Listens on a port of its own and connects each caller to `target` on loopback.
    pub fn start(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, target, &of_thread));
        Ok(Self { port, shared })
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it has taken since it started.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// Ends all connections that are open. New ones are taken.
    pub fn cut(&self) {
        for end in self.shared.state().open.drain(..) {
            // It may be gone already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Whether new connections end at once.
    pub fn refuse(&self, refusing: bool) {
        self.shared.state().refusing = refusing;
    }

    /// Whether bytes wait instead of passing: nobody is told that the other end is out of reach.
    pub fn stall(&self, stalled: bool) {
        self.shared.state().stalled = stalled;
        self.shared.changed.notify_all();
    }

    /// Passes at most so many bytes at once.
    pub fn slice(&self, bytes: Option<usize>) {
        self.shared.state().slice = bytes;
    }

    /// Whether answers are lost: what is asked arrives, and the connection ends instead of the first answer.
    pub fn lose_answers(&self, losing: bool) {
        self.shared.deaf.store(losing, Ordering::SeqCst);
    }

    /// How many answers were lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.shared.state().lost
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.cut();
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, target: u16, shared: &Arc<Shared>) {
    while let Ok((caller, _)) = listener.accept() {
        let mut state = shared.state();
        if state.over {
            return;
        }
        state.accepted += 1;
        if state.refusing {
            continue;
        }
        // Whoever called sees the end of the connection, as with a server that is not there.
        let Ok(called) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else { continue };
        for (from, to, answers) in [(&caller, &called, false), (&called, &caller, true)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            // The proxy adds one hop and should add no more.
            let _ = to.set_nodelay(true);
            let shared = Arc::clone(shared);
            thread::spawn(move || pass(from, to, answers, &shared));
        }
        state.open.extend([caller, called]);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, answers: bool, shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let most = shared.state().slice.unwrap_or(buffer.len()).clamp(1, buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..most]) else { break };
        let mut state = shared.state();
        while state.stalled && !state.over {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if answers && shared.deaf.load(Ordering::SeqCst) {
            state.lost += 1;
            break;
        }
        drop(state);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

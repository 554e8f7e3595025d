//! A tiny blocking host.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use agent::codec::{Decoder, Frame, MAX_CHUNK, StreamId};
use agent::flow::{ReceiveWindow, SendWindow};
use agent::message::{
    Ending, Exit, Get, GetDone, Hello, Identity, Put, Ready, Run, Skipped, ToAgent, ToHost, VERSION,
};

/// The stream of every job's stdin; stdout and stderr follow it.
pub(crate) const STDIN: StreamId = 1;
pub(crate) const STDOUT: StreamId = 2;
pub(crate) const STDERR: StreamId = 3;
/// The stream of single file requests.
const FILES: StreamId = 100;

/// No job here writes more to one stream.
const MAX_OUTPUT: usize = 256 * 1024 * 1024;

/// What a `Get` asks for, and what this host keeps of it whatever the agent does: an agent that hands out
/// `/proc/kcore` shall fail a test, and not take the machine's memory.
const MAX_GIVEN: u64 = 64 * 1024 * 1024;

const NONCE: [u8; 32] = [7; 32];

/// The other end of an agent. Dropping it closes the channel and waits for the agent.
pub(crate) struct Host {
    pub(crate) agent: Child,
    socket: Option<UnixStream>,
    decoder: Decoder,
}

/// What a job gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// What a `Get` gave.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) cut: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) done: Option<GetDone>,
}

impl Outcome {
    pub(crate) fn code(&self) -> u8 {
        match self.exit.ending {
            Ending::Code(code) => code,
            other => panic!("{other:?}, stderr: {}", String::from_utf8_lossy(&self.stderr)),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub(crate) fn hello() -> Hello {
    Hello { version: VERSION, nonce: NONCE, identity: None, writable_root: true }
}

/// Ids that nobody has.
pub(crate) const NOBODIES: Identity = Identity { agent: 61_001, uid: 61_002, gid: 61_003 };

pub(crate) fn run(argv: &[&str]) -> Run {
    let bytes = |strings: &[&str]| strings.iter().map(|string| string.as_bytes().to_vec()).collect();
    Run {
        argv: bytes(argv),
        env: bytes(&["PATH=/usr/bin:/bin", "LC_ALL=C"]),
        cwd: b"/".to_vec(),
        rlimits: vec![],
        stdin: false,
        listen: Vec::new(),
    }
}

pub(crate) fn sh(script: &str) -> Run {
    run(&["sh", "-c", script])
}

pub(crate) fn get(patterns: &[&str]) -> Get {
    let patterns = patterns.iter().map(ToString::to_string).collect();
    Get { patterns, max_files: 10_000, max_bytes: MAX_GIVEN, max_visited: 100_000 }
}

impl Host {
    /// An agent of its own, without a greeting.
    pub(crate) fn spawn() -> Self {
        Self::spawn_as(Command::new(env!("CARGO_BIN_EXE_mayfly-agent")))
    }

    /// An agent that is the first process of a pid namespace, without a greeting.
    pub(crate) fn spawn_first() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_mayfly-agent")]);
        Self::spawn_as(command)
    }

    pub(crate) fn spawn_as(mut command: Command) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        // A hang is a failure with a name, not a stuck suite.
        ours.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        command.stdin(OwnedFd::from(theirs.try_clone().expect("a second descriptor")));
        command.stdout(OwnedFd::from(theirs));
        let agent = command.spawn().expect("the agent starts");
        Self { agent, socket: Some(ours), decoder: Decoder::default() }
    }

    /// An agent that was greeted and is ready.
    pub(crate) fn ready() -> Self {
        let mut host = Self::spawn();
        host.greet(hello());
        host
    }

    pub(crate) fn greet(&mut self, hello: Hello) -> Ready {
        self.send(0, ToAgent::Hello(hello));
        match self.receive() {
            Frame { stream: 0, message: ToHost::Ready(ready) } => {
                assert_eq!(ready.nonce, NONCE);
                ready
            }
            other => panic!("not ready: {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, stream: StreamId, message: ToAgent) {
        self.send_raw(&Frame { stream, message }.encode().expect("a frame"));
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.socket.as_mut().expect("open").write_all(bytes).expect("the agent takes bytes");
    }

    /// Whether the agent takes `bytes` within a second. The conversation is not to be used after a no.
    pub(crate) fn takes(&mut self, bytes: &[u8]) -> bool {
        let socket = self.socket.as_mut().expect("open");
        socket.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        socket.write_all(bytes).is_ok()
    }

    /// The next frame, or `None` at the end of the channel.
    pub(crate) fn next(&mut self) -> Option<Frame<ToHost>> {
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the agent speaks in frames") {
                return Some(frame);
            }
            match self.socket.as_mut().expect("open").read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.decoder.feed(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the agent says nothing: {error}"),
            }
        }
    }

    pub(crate) fn receive(&mut self) -> Frame<ToHost> {
        self.next().expect("the agent is still there")
    }

    /// The fault that ends the conversation.
    pub(crate) fn fault(&mut self) -> String {
        loop {
            match self.next() {
                Some(Frame { message: ToHost::Fault(fault), .. }) => return fault.step,
                Some(_) => {}
                None => panic!("the agent ended without a fault"),
            }
        }
    }

    pub(crate) fn run(&mut self, run: Run) -> Outcome {
        self.send(STDIN, ToAgent::Run(run));
        self.finish(&[])
    }

    /// Feeds `stdin` to the job that runs and collects everything to its end.
    pub(crate) fn finish(&mut self, mut stdin: &[u8]) -> Outcome {
        let mut sending = SendWindow::default();
        let mut open = !stdin.is_empty();
        let mut outputs: HashMap<_, _> =
            [STDOUT, STDERR].map(|stream| (stream, (Vec::new(), ReceiveWindow::default(), false))).into();
        let mut exit = None;
        while exit.is_none() || outputs.values().any(|(_, _, ended)| !ended) {
            while open && sending.available() > 0 {
                let len = stdin.len().min(sending.available()).min(MAX_CHUNK);
                let (piece, rest) = stdin.split_at(len);
                self.send(STDIN, ToAgent::Data(piece.to_vec()));
                sending.consume(len);
                stdin = rest;
                if stdin.is_empty() {
                    self.send(STDIN, ToAgent::End);
                    open = false;
                }
            }
            let Frame { stream, message } = self.receive();
            match message {
                ToHost::Data(bytes) => {
                    let (all, window, ended) = outputs.get_mut(&stream).expect("an output stream");
                    assert!(!*ended, "data after the end");
                    assert!(all.len() <= MAX_OUTPUT, "more output than any job here writes");
                    window.receive(bytes.len()).expect("within the credit");
                    all.extend_from_slice(&bytes);
                    if let Some(grant) = window.release(bytes.len()) {
                        self.send(stream, ToAgent::Credit(grant));
                    }
                }
                ToHost::End => outputs.get_mut(&stream).expect("an output stream").2 = true,
                ToHost::Credit(more) => sending.grant(more).expect("sane credit"),
                ToHost::Reset => open = false,
                ToHost::Exit(how) => exit = Some(how),
                other => panic!("unexpected {other:?}"),
            }
        }
        let mut take = |stream| outputs.remove(&stream).expect("collected").0;
        Outcome { exit: exit.expect("the loop waits for it"), stdout: take(STDOUT), stderr: take(STDERR) }
    }

    pub(crate) fn put(
        &mut self,
        path: &str,
        mode: u32,
        mut bytes: &[u8],
    ) -> Result<u64, agent::message::FileError> {
        self.send(FILES, ToAgent::Put(Put { path: path.into(), mode }));
        let mut window = SendWindow::default();
        loop {
            let len = bytes.len().min(window.available()).min(MAX_CHUNK);
            if len > 0 {
                let (piece, rest) = bytes.split_at(len);
                self.send(FILES, ToAgent::Data(piece.to_vec()));
                window.consume(len);
                bytes = rest;
            } else if bytes.is_empty() {
                break;
            } else {
                match self.receive().message {
                    ToHost::Credit(credit) => window.grant(credit).expect("sane credit"),
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        self.send(FILES, ToAgent::End);
        loop {
            match self.receive().message {
                ToHost::Credit(_) => {}
                ToHost::PutDone(result) => return result,
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub(crate) fn get(&mut self, get: Get) -> Given {
        self.send(FILES, ToAgent::Get(get));
        let mut window = ReceiveWindow::default();
        let mut given = Given::default();
        let mut kept = 0;
        loop {
            let Frame { stream, message } = self.receive();
            assert_eq!(stream, FILES);
            match message {
                ToHost::Entry(entry) => {
                    given.files.push((String::from_utf8_lossy(&entry.path).into_owned(), Vec::new()));
                }
                ToHost::Data(bytes) => {
                    window.receive(bytes.len()).expect("within the credit");
                    kept += bytes.len() as u64;
                    assert!(kept <= MAX_GIVEN, "the agent gives more than was asked for");
                    given.files.last_mut().expect("an entry").1.extend_from_slice(&bytes);
                    if let Some(grant) = window.release(bytes.len()) {
                        self.send(FILES, ToAgent::Credit(grant));
                    }
                }
                ToHost::EntryDone(Ok(())) => {}
                ToHost::EntryDone(Err(_)) => given.cut.push(given.files.last().expect("an entry").0.clone()),
                ToHost::Skipped(skipped) => given.skipped.push(skipped),
                ToHost::GetDone(done) => {
                    given.done = Some(done);
                    return given;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Closes the channel and returns how the agent ended.
    pub(crate) fn hang_up(&mut self) -> std::process::ExitStatus {
        self.socket = None;
        self.agent.wait().expect("the agent ends")
    }

    /// A line of the agent's `/proc/PID/status`.
    pub(crate) fn status(&self, key: &str) -> String {
        status_of(self.agent.id(), key).expect("the agent is there")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.agent.wait();
    }
}

/// A line of a process's `/proc/PID/status`, while the process is there.
pub(crate) fn status_of(pid: u32, key: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! One `mayfly` process: how it is started, watched, and ended whatever happens.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// No job of these tests needs so long. It is not what any of them measures.
const DEADLINE: Duration = Duration::from_secs(120);

/// A `mayfly` that is about to be started.
#[derive(Debug)]
pub(crate) struct Mayfly {
    command: Command,
    /// What goes before `--`, and what after.
    words: Vec<String>,
    job: Vec<String>,
    stdin: Option<Vec<u8>>,
    /// Where the session is noted, by which the processes that it leaves are known.
    sessions: Arc<Mutex<Vec<u32>>>,
    deadline: Duration,
}

impl Mayfly {
    pub(crate) fn new() -> Self {
        Self::program(env!("CARGO_BIN_EXE_mayfly"))
    }

    /// Another program, such as one that starts mayfly as somebody else.
    pub(crate) fn program(program: &str) -> Self {
        // A session of its own, which the spawner and the agents stay in.
        let mut command = Command::new("setsid");
        command.arg(program);
        // What a developer set for himself.
        command.env_remove("MAYFLY_LOG");
        let sessions = Arc::default();
        Self { command, words: Vec::new(), job: Vec::new(), stdin: None, sessions, deadline: DEADLINE }
    }

    /// It is killed only after this time.
    pub(crate) fn for_at_most(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub(crate) fn noted_in(mut self, sessions: &Arc<Mutex<Vec<u32>>>) -> Self {
        self.sessions = Arc::clone(sessions);
        self
    }

    pub(crate) fn args<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// What comes after `--`.
    pub(crate) fn job<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.job.extend(words.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn current_dir(mut self, directory: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Everything that it is to read. Without this its stdin is empty.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Starts it with pipes.
    pub(crate) fn start(mut self) -> Running {
        self.command.args(&self.words);
        if !self.job.is_empty() {
            self.command.arg("--").args(&self.job);
        }
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        self.sessions.lock().unwrap().push(child.id());
        let stdin = child.stdin.take().unwrap();
        let (stdin, feeder) = match self.stdin {
            None => (Some(stdin), None),
            Some(bytes) => (None, Some(std::thread::spawn(move || feed(stdin, &bytes)))),
        };
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let stdout = Some(BufReader::new(child.stdout.take().unwrap()));
        let group = Pid::from_child(&child);
        Running {
            guard: Guard::over(group, self.deadline),
            child,
            stdin,
            stdout,
            stderr: Some(stderr),
            feeder,
        }
    }

    /// Starts it, and waits until it has ended. Its stdin ends after what it was given.
    pub(crate) fn finish(mut self) -> Finished {
        self.stdin.get_or_insert_default();
        self.start().finish()
    }
}

/// Whoever closes his stdin early does not want the rest.
fn feed(mut stdin: ChildStdin, bytes: &[u8]) {
    let _ = stdin.write_all(bytes);
}

/// A `mayfly` that runs. It and its group are killed when this goes out of scope, or at the deadline.
#[derive(Debug)]
pub(crate) struct Running {
    guard: Guard,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<JoinHandle<String>>,
    feeder: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The next line of its output, without the newline.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        if !line.ends_with('\n') {
            let said = self.stderr.take().map(|said| said.join().unwrap());
            panic!("its output ended with {line:?}; {}; {said:?}", self.guard.note());
        }
        line.pop();
        line
    }

    /// Its output, to be read at the test's own pace.
    pub(crate) fn stdout(&mut self) -> &mut impl Read {
        self.stdout.as_mut().unwrap()
    }

    /// Nobody reads its output any more.
    pub(crate) fn close_stdout(&mut self) {
        self.stdout = None;
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// What a terminal does at Ctrl-C, and others like it: the signal goes to the group.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process_group(self.guard.group, signal).unwrap();
    }

    /// However long it might have lived, from now on it has the usual time, unless that is over already.
    pub(crate) fn end_soon(&mut self) {
        if !self.guard.disarm() {
            self.guard = Guard::over(self.guard.group, DEADLINE);
        }
    }

    /// Waits until it has ended. Its stdin ends now, if it is still open.
    pub(crate) fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let mut stdout = Vec::new();
        if let Some(mut rest) = self.stdout.take() {
            rest.read_to_end(&mut stdout).unwrap();
        }
        let status = self.child.wait().unwrap();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        assert!(!self.guard.disarm(), "it was killed at its deadline; its stderr: {stderr}");
        if let Some(feeder) = self.feeder.take() {
            feeder.join().unwrap();
        }
        Finished { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process_group(self.guard.group, Signal::KILL);
            let _ = self.child.wait();
        }
        self.guard.disarm();
    }
}

/// Kills a group at the deadline, so that every wait of a test has an end.
#[derive(Debug)]
struct Guard {
    group: Pid,
    ended: Option<Sender<()>>,
    expired: Arc<AtomicBool>,
}

impl Guard {
    fn over(group: Pid, deadline: Duration) -> Self {
        let (ended, end) = mpsc::channel::<()>();
        let expired = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&expired);
        std::thread::spawn(move || {
            if end.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
                note.store(true, Ordering::SeqCst);
                let _ = kill_process_group(group, Signal::KILL);
            }
        });
        Self { group, ended: Some(ended), expired }
    }

    /// Stands down. Says whether it had to kill.
    fn disarm(&mut self) -> bool {
        self.ended = None;
        self.expired.load(Ordering::SeqCst)
    }

    fn note(&self) -> &'static str {
        if self.expired.load(Ordering::SeqCst) { "it was killed at the deadline of the test" } else { "" }
    }
}

/// A `mayfly` that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    /// Checks its exit code, and goes on with it.
    #[track_caller]
    pub(crate) fn code(self, expected: i32) -> Self {
        let Self { status, stdout, stderr } = &self;
        let out = String::from_utf8_lossy(&stdout[..stdout.len().min(4000)]);
        assert_eq!(status.code(), Some(expected), "{status}\nstdout: {out}\nstderr: {stderr}");
        self
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.status.success()
    }

    pub(crate) fn stderr(&self) -> &str {
        &self.stderr
    }

    /// Checks that its output has all of these words.
    #[track_caller]
    pub(crate) fn prints(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.text().contains(word), "no {word:?} in its output: {}", self.text());
        }
        self
    }

    pub(crate) fn ended_by(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Its output as text, without spaces around it.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim()
    }

    /// Its output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}{}", String::from_utf8_lossy(&self.stdout), self.stderr)
        })
    }

    /// Checks that its stderr has all of these words.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in its stderr: {}", self.stderr);
        }
        self
    }
}

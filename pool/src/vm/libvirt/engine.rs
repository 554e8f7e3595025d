//! The conversation with the libvirt engine, a program of its own: every question has a deadline, and a call that does not
//! come back is ended with the program. The next question starts another.

use std::{
    collections::HashMap,
    fs, io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use libvirt_protocol::{Answer, Ask, Greeting, Question, Reply, VERSION};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    sync::{Mutex as AsyncMutex, oneshot},
    time::timeout,
};

use super::{error::LibvirtError, uri};
use crate::vm::settings::Libvirt as Settings;

/// The engine's file, beside mayfly's own.
const PROGRAM: &str = "mayfly-libvirt";

/// How long the program may take to say its first word.
const GREETING: Duration = Duration::from_secs(10);

/// The engine, started when it is wanted.
#[derive(Debug)]
pub(crate) struct Engine {
    program: PathBuf,
    uri: String,
    running: AsyncMutex<Option<Arc<Running>>>,
    numbers: AtomicU64,
}

/// One process of it.
#[derive(Debug)]
struct Running {
    writer: AsyncMutex<OwnedWriteHalf>,
    open: Arc<Open>,
    /// Killed when nobody has a question any more.
    _child: Child,
}

/// Whoever waits for an answer, by its number. Nobody any more once the process has ended.
#[derive(Debug)]
struct Open(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Engine {
    pub(super) fn new(settings: &Settings) -> Result<Self, LibvirtError> {
        uri::check_local(&settings.uri)?;
        let program = match &settings.program {
            Some(program) => program.clone(),
            None => beside_mayfly().ok_or_else(|| LibvirtError::NoEngine(PROGRAM.into()))?,
        };
        if !program.is_file() {
            return Err(LibvirtError::NoEngine(program));
        }
        let (running, numbers) = (AsyncMutex::default(), AtomicU64::default());
        Ok(Self { program, uri: settings.uri.clone(), running, numbers })
    }

    /// What whoever finds this process dead has to know.
    pub(super) fn settings(&self) -> Settings {
        Settings { uri: self.uri.clone(), program: Some(self.program.clone()) }
    }

    /// Asks one thing. When `patience` is over, the engine's process is, too.
    pub(super) async fn ask(&self, ask: Ask, patience: Duration) -> Result<Answer, LibvirtError> {
        let running = self.running().await?;
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let answer = match timeout(patience, running.ask(Question { id, ask })).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.end(&running).await;
                return Err(LibvirtError::Died);
            }
            Err(_) => {
                self.end(&running).await;
                return Err(LibvirtError::Hangs(patience));
            }
        };
        match answer {
            Answer::Refused { step, why } => Err(LibvirtError::Refused { step, why }),
            answer => Ok(answer),
        }
    }

    async fn running(&self) -> Result<Arc<Running>, LibvirtError> {
        let mut running = self.running.lock().await;
        if let Some(running) = running.as_ref().filter(|running| running.open.is_open()) {
            return Ok(Arc::clone(running));
        }
        let started = timeout(GREETING, self.start()).await;
        let started = Arc::new(started.unwrap_or(Err(LibvirtError::Hangs(GREETING)))?);
        *running = Some(Arc::clone(&started));
        Ok(started)
    }

    async fn start(&self) -> Result<Running, LibvirtError> {
        let failed = |error| LibvirtError::Start { path: self.program.clone(), error };
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        let theirs = OwnedFd::from(theirs);
        let child = Command::new(&self.program)
            .arg(&self.uri)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::from(theirs.try_clone().map_err(failed)?))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let (reader, writer) = UnixStream::from_std(ours).map_err(failed)?.into_split();
        let mut lines = BufReader::new(reader).lines();
        let greeting = lines.next_line().await.ok().flatten();
        let greeting = greeting.and_then(|line| serde_json::from_str::<Greeting>(&line).ok());
        if greeting != Some(Greeting { protocol: VERSION }) {
            return Err(LibvirtError::OtherBuild(self.program.clone()));
        }
        let open = Arc::new(Open(Mutex::new(Some(HashMap::new()))));
        tokio::spawn(listen(lines, Arc::clone(&open)));
        Ok(Running { writer: AsyncMutex::new(writer), open, _child: child })
    }

    /// Ends a process of the engine's, and with it all that it was asked.
    async fn end(&self, ended: &Arc<Running>) {
        ended.open.close();
        let mut running = self.running.lock().await;
        // Somebody may have started another meanwhile.
        if running.as_ref().is_some_and(|running| Arc::ptr_eq(running, ended)) {
            *running = None;
        }
    }
}

impl Running {
    async fn ask(&self, question: Question) -> Option<Answer> {
        let (teller, told) = oneshot::channel();
        self.open.wait(question.id, teller)?;
        let mut line = serde_json::to_vec(&question).ok()?;
        line.push(b'\n');
        self.writer.lock().await.write_all(&line).await.ok()?;
        told.await.ok()
    }
}

impl Open {
    fn with<T>(&self, look: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Answer>>>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_open(&self) -> bool {
        self.with(|open| open.is_some())
    }

    fn wait(&self, id: u64, teller: oneshot::Sender<Answer>) -> Option<()> {
        self.with(|open| open.as_mut().map(|open| drop(open.insert(id, teller))))
    }

    fn tell(&self, reply: Reply) {
        if let Some(teller) = self.with(|open| open.as_mut()?.remove(&reply.id)) {
            // Who asked may have gone away.
            let _ = teller.send(reply.answer);
        }
    }

    fn close(&self) {
        self.with(|open| drop(open.take()));
    }
}

async fn listen(mut lines: Lines<BufReader<OwnedReadHalf>>, open: Arc<Open>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(reply) = serde_json::from_str::<Reply>(&line) else { break };
        open.tell(reply);
    }
    open.close();
}

/// Where mayfly's own program is.
fn beside_mayfly() -> Option<PathBuf> {
    let own: io::Result<PathBuf> = fs::read_link("/proc/self/exe");
    own.ok().as_deref().and_then(Path::parent).map(|folder| folder.join(PROGRAM))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GREET: &str = r#"echo '{"protocol":2}'"#;

    fn engine(folder: &Path, script: &str) -> Engine {
        let program = folder.join("engine");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Engine::new(&Settings { program: Some(program), ..Settings::default() }).unwrap()
    }

    #[tokio::test]
    async fn a_call_that_hangs_ends_with_the_engine_and_the_next_question_starts_another() {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("first");
        // The first of them waits for ever; those after it answer.
        let script = format!(
            "{GREET}\nread line\nif mkdir {first}; then echo $$ > {first}/pid; exec sleep 1000; fi\n\
             echo '{{\"id\":1,\"answer\":\"done\"}}'\nread line",
            first = first.display()
        );
        let engine = engine(folder.path(), &script);
        let hung = engine.ask(Ask::Host, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(hung, LibvirtError::Hangs(_)), "{hung}");
        assert_eq!(engine.ask(Ask::Host, Duration::from_secs(20)).await.unwrap(), Answer::Done);
        let pid = fs::read_to_string(first.join("pid")).unwrap();
        while fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|words| !words.is_empty())
        {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_engine_that_ends_or_talks_nonsense_fails_who_asked_and_nobody_after() {
        let folder = tempfile::tempdir().unwrap();
        for last in ["exit 0", "echo nonsense; exec sleep 1000"] {
            let engine = engine(folder.path(), &format!("{GREET}\nread line\n{last}"));
            for _ in 0..2 {
                let died = engine.ask(Ask::Host, Duration::from_secs(20)).await.unwrap_err();
                assert!(matches!(died, LibvirtError::Died), "{died}");
            }
        }
    }

    #[tokio::test]
    async fn an_engine_of_another_build_is_not_talked_to() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path(), "echo '{\"protocol\":0}'; exec sleep 1000");
        let refused = engine.ask(Ask::Host, Duration::from_secs(20)).await.unwrap_err();
        assert!(matches!(refused, LibvirtError::OtherBuild(_)), "{refused}");
    }

    #[tokio::test]
    async fn what_libvirt_refuses_is_said_in_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"read line; echo '{"id":0,"answer":{"refused":{"step":"reach libvirt","why":"no socket"}}}'; read line"#;
        let engine = engine(folder.path(), &format!("{GREET}\n{script}"));
        let refused = engine.ask(Ask::Host, Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(refused.to_string(), "libvirt cannot reach libvirt: no socket");
        assert!(refused.fix().unwrap().contains("libvirt-daemon-system"));
    }
}

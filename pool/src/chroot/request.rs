//! The pool's side of the spawner: starts it, asks it for sandboxes, ends it, and starts another if it dies.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    sync::Mutex,
};

use super::{
    SPAWNER_ARG,
    plan::{Answer, MAX_ANSWER, Task},
    spawner::{receive_with_fds, send_with_fds},
};
use crate::{watch::watch, workshop::MakeError};

/// A spawner at work.
#[derive(Debug)]
pub(crate) struct Spawner {
    program: PathBuf,
    /// One question at a time: answers come in order and carry no name.
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    socket: AsyncFd<OwnedFd>,
    /// Questions whose asker went away before the answer. Their answers come first.
    owed: usize,
}

impl Spawner {
    pub(crate) fn start(program: &Path) -> io::Result<Self> {
        Ok(Self { program: program.to_owned(), running: Mutex::new(Running::start(program)?) })
    }

    /// Has a task done and gives the descriptors that come of it.
    pub(crate) async fn ask(&self, task: &Task, fds: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, MakeError> {
        let bytes = postcard::to_stdvec(task).map_err(|error| MakeError::Spawner(io::Error::other(error)))?;
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut running = self.running.lock().await;
        let answer = match running.ask(&bytes, &fds).await {
            Ok(answer) => answer,
            Err(error) => {
                // Its sandboxes died with it, and the pool must not: this one fails, the next has a new spawner.
                tracing::error!(%error, "the process that clones sandboxes failed; starting another");
                *running = Running::start(&self.program).map_err(MakeError::Spawner)?;
                return Err(MakeError::Spawner(error));
            }
        };
        match answer {
            (Answer::Done, fds) => Ok(fds),
            (Answer::Failed { step, errno }, _) => {
                Err(MakeError::Step { step, error: io::Error::from_raw_os_error(errno) })
            }
        }
    }

    pub(crate) async fn stop(self) {
        let Running { mut process, socket, .. } = self.running.into_inner();
        // The end of its socket is the spawner's order to go.
        drop(socket);
        if let Err(error) = process.wait().await {
            tracing::warn!(%error, "cannot wait for the spawner's end");
        }
    }
}

impl Running {
    fn start(program: &Path) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        // The spawner has nothing else to do than to wait, and does so in the kernel.
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let process = Command::new(program)
            .arg(SPAWNER_ARG)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // A Ctrl-C on the terminal is mayfly's to handle; it would take the sandboxes away at once.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { process, socket: watch(ours, Interest::READABLE | Interest::WRITABLE)?, owed: 0 })
    }

    async fn ask(&mut self, task: &[u8], fds: &[i32]) -> io::Result<(Answer, Vec<OwnedFd>)> {
        while self.owed > 0 {
            // An abandoned sandbox ends by itself: nobody holds the other end of its stream.
            self.answer().await?;
            self.owed -= 1;
        }
        self.socket.async_io(Interest::WRITABLE, |socket| send_with_fds(socket.as_fd(), task, fds)).await?;
        self.owed += 1;
        let answer = self.answer().await?;
        self.owed -= 1;
        Ok(answer)
    }

    async fn answer(&self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let mut buffer = [0; MAX_ANSWER];
        let receive = |socket: &OwnedFd| receive_with_fds(socket.as_fd(), &mut buffer);
        let (length, fds) = self.socket.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = postcard::from_bytes(&buffer[..length]).map_err(io::Error::other)?;
        Ok((answer, fds))
    }
}

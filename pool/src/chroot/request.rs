//! The pool's side of the spawner: starts it, asks it for sandboxes, ends it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    process::Stdio,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    sync::Mutex,
};

use super::{
    MakeError, SPAWNER_ARG,
    plan::{Answer, MAX_PLAN, Plan},
    spawner::{receive_with_fds, send_with_fds},
};
use crate::watch::watch;

/// A running spawner.
#[derive(Debug)]
pub(super) struct Spawner {
    /// One question at a time: answers come in order and carry no name.
    socket: Mutex<Socket>,
    process: Child,
}

#[derive(Debug)]
struct Socket {
    fd: AsyncFd<OwnedFd>,
    /// Questions whose asker went away before the answer. Their answers come first.
    owed: usize,
}

impl Spawner {
    pub(super) fn start(program: &Path) -> io::Result<Self> {
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
            .spawn()?;
        Ok(Self { socket: Mutex::new(Socket { fd: watch(ours, Interest::READABLE | Interest::WRITABLE)?, owed: 0 }), process })
    }

    /// Has one sandbox cloned and gives its first process.
    pub(super) async fn spawn(&self, plan: &Plan, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, MakeError> {
        let bytes = postcard::to_stdvec(plan).map_err(|error| MakeError::Spawner(io::Error::other(error)))?;
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut socket = self.socket.lock().await;
        match socket.ask(&bytes, &fds).await.map_err(MakeError::Spawner)? {
            (Answer::Spawned, Some(pidfd)) => Ok(pidfd),
            (Answer::Spawned, None) => Err(MakeError::Spawner(io::ErrorKind::InvalidData.into())),
            (Answer::Failed { step, errno }, _) => {
                Err(MakeError::Step { step, error: io::Error::from_raw_os_error(errno) })
            }
        }
    }

    pub(super) async fn stop(mut self) {
        // The end of its socket is the spawner's order to go.
        drop(self.socket);
        if let Err(error) = self.process.wait().await {
            tracing::warn!(%error, "cannot wait for the spawner's end");
        }
    }
}

impl Socket {
    async fn ask(&mut self, plan: &[u8], fds: &[i32]) -> io::Result<(Answer, Option<OwnedFd>)> {
        while self.owed > 0 {
            // An abandoned sandbox ends by itself: nobody holds the other end of its stream.
            self.answer().await?;
            self.owed -= 1;
        }
        self.fd.async_io(Interest::WRITABLE, |socket| send_with_fds(borrow(socket), plan, fds)).await?;
        self.owed += 1;
        let answer = self.answer().await?;
        self.owed -= 1;
        Ok(answer)
    }

    async fn answer(&self) -> io::Result<(Answer, Option<OwnedFd>)> {
        let mut buffer = [0; MAX_PLAN];
        let (length, fds) =
            self.fd.async_io(Interest::READABLE, |socket| receive_with_fds(borrow(socket), &mut buffer)).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = postcard::from_bytes(&buffer[..length]).map_err(io::Error::other)?;
        Ok((answer, fds.into_iter().next()))
    }
}

fn borrow(socket: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(socket)
}

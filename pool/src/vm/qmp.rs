//! QEMU's monitor: one question at a time, one answer. It stays on the host's side of the machine: no guest reaches it.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::net::UnixStream as StdStream,
    },
};

use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest, Take},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::chroot::spawner::send_with_fds;

/// The longest conversation, in bytes. QEMU is not trusted more than the guest in it.
const MOST: u64 = 1024 * 1024;

/// QEMU's monitor does not do what it is asked.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The conversation is over.
    #[error("QEMU ended, or closed its monitor")]
    Closed,
    /// The socket.
    #[error("the socket to QEMU's monitor failed")]
    Io(#[source] io::Error),
    /// It refuses.
    #[error("QEMU refuses {command}: {why}")]
    Refused {
        /// What it was asked.
        command: &'static str,
        /// Its own words.
        why: String,
    },
    /// What it says is not what a monitor says.
    #[error("QEMU's monitor said something that is no answer")]
    Unexpected,
    /// Nobody had asked for that.
    #[error("QEMU stopped the guest, which it cannot run")]
    Stopped,
    /// A machine's state could not be taken over.
    #[error("QEMU could not {0}")]
    Migration(&'static str),
}

/// A conversation with one QEMU.
pub(super) struct Monitor {
    reader: BufReader<Take<OwnedReadHalf>>,
    /// What has come of a line, which outlives whoever waited for it.
    line: Vec<u8>,
    writer: OwnedWriteHalf,
}

impl Monitor {
    /// Opens the conversation.
    pub(super) async fn open(stream: StdStream) -> Result<Self, QmpError> {
        stream.set_nonblocking(true).map_err(QmpError::Io)?;
        let (reader, writer) = UnixStream::from_std(stream).map_err(QmpError::Io)?.into_split();
        let mut monitor = Self { reader: BufReader::new(reader.take(MOST)), line: Vec::new(), writer };
        let greeting = monitor.read().await?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Unexpected);
        }
        monitor.ask("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// Asks one thing and waits for the answer.
    pub(super) async fn ask(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let question = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.writer.write_all(question.as_bytes()).await.map_err(QmpError::Io)?;
        self.answer(command).await
    }

    /// Gives QEMU a descriptor by a name.
    pub(super) async fn give(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        let question = format!("{}\n", json!({ "execute": "getfd", "arguments": { "fdname": name } }));
        let stream = self.writer.as_ref();
        let sent = stream.async_io(Interest::WRITABLE, || {
            send_with_fds(std::os::fd::AsFd::as_fd(stream), question.as_bytes(), &[fd.as_raw_fd()])
        });
        sent.await.map_err(QmpError::Io)?;
        self.answer("getfd").await.map(drop)
    }

    /// Waits until QEMU says that the guest does not run any more, and gives why. May be given up at any time.
    pub(super) async fn stopped(&mut self) -> QmpError {
        loop {
            match self.read().await {
                Ok(said) if said["event"] == "STOP" => return QmpError::Stopped,
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    async fn answer(&mut self, command: &'static str) -> Result<Value, QmpError> {
        loop {
            let mut said = self.read().await?;
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get("error") {
                let why = error["desc"].as_str().unwrap_or_default().to_owned();
                return Err(QmpError::Refused { command, why });
            }
            // An event: what is asked for is asked for.
        }
    }

    async fn read(&mut self) -> Result<Value, QmpError> {
        match self.reader.read_until(b'\n', &mut self.line).await {
            Ok(0) => Err(QmpError::Closed),
            Ok(_) => {
                serde_json::from_slice(&std::mem::take(&mut self.line)).map_err(|_| QmpError::Unexpected)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(QmpError::Closed),
            Err(error) => Err(QmpError::Io(error)),
        }
    }
}

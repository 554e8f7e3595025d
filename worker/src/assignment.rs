//! What a worker carries out: an admitted job with every default filled in and nothing left to decide.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use egress::Plan;
use pool::{JobRef, Want};
use tokio::io::AsyncRead;

/// An admitted job. It can be carried out more than once: another attempt starts from the same assignment.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The job's id.
    pub id: String,
    /// Whose job it is.
    pub tenant: String,
    /// Which start of the job this is, from 1.
    pub attempt: u32,
    /// How long it waited in a queue.
    pub queued: Duration,
    /// The sandbox that it needs.
    pub want: Want,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment of the job's own.
    pub env: BTreeMap<String, String>,
    /// Where the command starts, if not where the image says.
    pub workdir: Option<String>,
    /// What the command reads, if it is known beforehand.
    pub stdin: Option<Content>,
    /// What is put in before the command starts, in this order.
    pub files: Vec<StagedFile>,
    /// What it may reach, and the secrets that it gets, if it asked for any.
    pub egress: Option<Arc<Plan>>,
    /// How long the command may run.
    pub timeout: Duration,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes that it may write to stdout and stderr together.
    pub output_limit: u64,
    /// Paths and globs of the files to keep.
    pub artifacts: Vec<String>,
}

impl Assignment {
    /// This attempt, as the ledger names it.
    pub(crate) fn reference(&self) -> JobRef {
        JobRef { id: self.id.clone(), tenant: self.tenant.clone(), attempt: self.attempt }
    }
}

/// A file to put in.
#[derive(Debug, Clone)]
pub struct StagedFile {
    /// Where it goes: absolute, in the sandbox.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it holds.
    pub content: Content,
}

/// Bytes that can be read as often as there are attempts.
#[derive(Debug, Clone)]
pub enum Content {
    /// The bytes themselves.
    Bytes(Vec<u8>),
    /// A file on this host, named by whoever runs mayfly; never by a job that came from elsewhere.
    LocalFile(PathBuf),
}

/// Bytes being read.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

impl Content {
    pub(crate) async fn open(&self) -> io::Result<Reader> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Self::LocalFile(path) => Box::new(tokio::fs::File::open(path).await?),
        })
    }
}

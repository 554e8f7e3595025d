//! The node's record of every sandbox's life: append-only, segments of its own for each process.
//!
//! ```text
//! <data dir>/ledger/<instance>-<number>.log
//! ```
//!
//! A generation is written here as consumed *before* the first byte of its job reaches the sandbox. Written
//! means handed to the kernel, so that `kill -9` cannot lose it; a thread makes it durable in groups soon
//! after. A power loss may tear the tail, which [`recover`] cuts and records; reuse is impossible all the
//! same, because no sandbox of an earlier boot is ever clean. Damage anywhere else is refused.

mod audit;
mod record;
mod recover;
mod segment;
mod writer;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use thiserror::Error;

pub(crate) use self::recover::recover;
use self::writer::Writer;
pub use self::{
    audit::{Audit, Finding, Story, Unproved, audit, story},
    record::{Ended, Event, JobRef},
};
use crate::instance::Instance;

/// How long a record may wait for others before it is made durable together with them.
const GROUP: Duration = Duration::from_millis(20);

/// How long closed segments are kept. Lives are over in hours; what was proved of them is kept for a month.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The ledger cannot be written, so no job may start.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The disk is full.
    #[error("no space for the ledger at {0}: no job is started that could not be recorded; free some space")]
    Full(PathBuf),
    /// Anything else.
    #[error("cannot write the ledger at {path}")]
    Write {
        /// The segment.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A segment cannot be read.
    #[error("cannot read the ledger at {path}")]
    Read {
        /// The segment or its directory.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A segment is damaged where no crash can have damaged it.
    #[error(
        "the ledger is damaged: {path}, line {line}: {what}; `mayfly audit verify` shows all, move the file away to go on"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Its first bad line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// This process's segment.
#[derive(Debug)]
pub(crate) struct Ledger {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    writer: Writer,
    dirty: bool,
    closing: bool,
}

impl Ledger {
    /// Starts this process's first segment.
    pub(crate) fn open(data_dir: &Path, instance: &Instance) -> Result<Self, LedgerError> {
        let directory = directory(data_dir);
        let failed = |error| LedgerError::from_write(directory.clone(), error);
        let writer =
            Writer::open(directory.clone(), instance.id(), instance.boot().to_owned()).map_err(failed)?;
        let state = State { writer, dirty: true, closing: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() });
        let flushed = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("ledger".to_owned()).spawn(move || flushed.flush_in_groups());
        Ok(Self { shared, flusher: Some(thread.map_err(failed)?) })
    }

    /// Hands a record to the kernel. When this returns, `kill -9` cannot lose it.
    pub(crate) fn append(&self, event: Event) -> Result<(), LedgerError> {
        let mut state = self.shared.lock();
        let result = state.writer.append(event);
        if result.is_ok() && !state.dirty {
            state.dirty = true;
            self.shared.wake.notify_one();
        }
        result.map_err(|error| LedgerError::from_write(state.writer.path(), error))
    }

    /// Ends the record of this process in order.
    pub(crate) fn close(self) -> Result<(), LedgerError> {
        let mut state = self.shared.lock();
        state.writer.close().map_err(|error| LedgerError::from_write(state.writer.path(), error))
        // Dropped, the ledger is made durable.
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(flusher) = self.flusher.take() {
            let _ = flusher.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at every point where its holder could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush_in_groups(&self) {
        let mut state = self.lock();
        loop {
            while !state.dirty && !state.closing {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.closing {
                // Records of the next moments ride along.
                state = self.wake.wait_timeout(state, GROUP).unwrap_or_else(PoisonError::into_inner).0;
            }
            state.dirty = false;
            let closing = state.closing;
            let (file, path) = (state.writer.file(), state.writer.path());
            // Appends go on while the disk works.
            drop(state);
            if let Err(error) = file.and_then(|file| file.sync_data()) {
                tracing::error!(path = %path.display(), %error, "cannot make the ledger durable");
            }
            if closing {
                return;
            }
            state = self.lock();
        }
    }
}

impl LedgerError {
    fn from_write(path: PathBuf, error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::Full(path)
        } else {
            Self::Write { path, error }
        }
    }
}

/// Where a node's segments are.
pub(crate) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger")
}

/// Removes segments that nobody has written to for longer than they are kept.
pub(crate) fn forget_old(data_dir: &Path) -> io::Result<()> {
    for (_, path) in segment::segments(&directory(data_dir))? {
        let age = fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default();
        if age > KEPT {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

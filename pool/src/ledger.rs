//! The node's record of every sandbox's life: append-only, one segment for each process.
//!
//! ```text
//! <data dir>/ledger/<instance>.log
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

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use thiserror::Error;

pub use self::{
    audit::{Audit, Finding, Story, Unproved, audit, story},
    record::{Ended, Event, JobRef},
};
pub(crate) use self::recover::recover;
use self::{
    record::{Chain, Entry},
    segment::segment_path,
};
use crate::instance::Instance;

/// How long a record may wait for others before it is made durable together with them.
const GROUP: Duration = Duration::from_millis(20);

/// Disk space that is reserved ahead, so that a full disk is known before work is taken and never when a
/// life's end must be written.
const RESERVE: u64 = 256 * 1024;

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
    #[error("the ledger is damaged: {path}, line {line}: {what}; `mayfly audit verify` shows all, move the file away to go on")]
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
    path: PathBuf,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    file: File,
    chain: Chain,
    length: u64,
    reserved: u64,
    dirty: bool,
    closing: bool,
}

impl Ledger {
    /// Starts this process's segment.
    pub(crate) fn open(data_dir: &Path, instance: &Instance) -> Result<Self, LedgerError> {
        let directory = directory(data_dir);
        let path = segment_path(&directory, instance.id());
        let file = fs::create_dir_all(&directory)
            .and_then(|()| File::options().append(true).create_new(true).open(&path))
            .map_err(|error| LedgerError::Write { path: path.clone(), error })?;
        let state = State { file, chain: Chain::default(), length: 0, reserved: 0, dirty: false, closing: false };
        let shared = Arc::new(Shared { path, state: Mutex::new(state), wake: Condvar::new() });
        let mut ledger = Self { shared: Arc::clone(&shared), flusher: None };
        ledger.append(Event::Opened { instance: instance.id(), boot: instance.boot().to_owned() })?;
        let flusher = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || shared.flush_in_groups())
            .map_err(|error| LedgerError::Write { path: ledger.shared.path.clone(), error })?;
        ledger.flusher = Some(flusher);
        Ok(ledger)
    }

    /// Hands a record to the kernel. When this returns, `kill -9` cannot lose it.
    pub(crate) fn append(&self, event: Event) -> Result<(), LedgerError> {
        let mut state = self.shared.lock();
        let result = state.append(&Entry::now(event));
        if result.is_ok() && !state.dirty {
            state.dirty = true;
            self.shared.wake.notify_one();
        }
        result.map_err(|error| self.shared.error(error))
    }

    /// Ends the segment in order: from now on any damage to it is damage.
    pub(crate) fn close(mut self) -> Result<(), LedgerError> {
        self.append(Event::Closed)?;
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(flusher) = self.flusher.take() {
            let _ = flusher.join();
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at every point where its holder could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, error: io::Error) -> LedgerError {
        let path = self.path.clone();
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            LedgerError::Full(path)
        } else {
            LedgerError::Write { path, error }
        }
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
            let file = state.file.try_clone();
            // Appends go on while the disk works.
            drop(state);
            if let Err(error) = file.and_then(|file| file.sync_data()) {
                tracing::error!(path = %self.path.display(), %error, "cannot make the ledger durable");
            }
            if closing {
                return;
            }
            state = self.lock();
        }
    }
}

impl State {
    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let (line, next) = self.chain.line(entry);
        self.reserve(line.len() as u64)?;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line in the middle would be damage: take it back, so that the chain can go on.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += line.len() as u64;
        self.chain = next;
        Ok(())
    }

    fn reserve(&mut self, need: u64) -> io::Result<()> {
        // Half of the reserve stays for the ends of the lives that are consumed already.
        if self.length + need + RESERVE / 2 > self.reserved {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.file, flags, self.length, RESERVE) {
                // Not every file system can reserve; a full disk then shows at the write.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => self.reserved = self.length + RESERVE,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Some(flusher) = self.flusher.take() {
            self.shared.lock().closing = true;
            self.shared.wake.notify_one();
            let _ = flusher.join();
        }
    }
}

/// Where a node's segments are.
pub(crate) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger")
}

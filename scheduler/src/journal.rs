//! The state of one batch, in a folder beside its results: what both the embedded queue and the embedded store
//! stand on.
//!
//! ```text
//! RESULTS.jsonl                  a line for each job that has ended
//! RESULTS.jsonl.mayfly/state     redb: which lines of the jobs file are left, what is known of each job
//! RESULTS.jsonl.mayfly/starts    a line for each start, in the kernel before the job's first byte is sent
//! ```
//!
//! **What a crash can and cannot undo.** A result is written to the results file and flushed, then the job is
//! marked as over: a crash in between leaves a line that the next process finds and marks. A start is a plain
//! `write`, which `kill -9` cannot undo, and costs no flush. A power loss can undo it; so a durable horizon goes
//! ahead of what is pulled, and after another boot everything up to it counts as started.

mod recover;
mod starts;
mod tables;
mod writer;

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTableMetadata};
use thiserror::Error;

use self::{
    recover::{Recovery, recover},
    starts::Starts,
};
pub(crate) use self::{
    tables::{Fact, IDS, JOBS, KINDS, LINES, Line, Record, fact, set_fact, set_text, text},
    writer::Change,
};
use crate::{
    key::JobKey,
    results::{Place, ResultsError, ResultsFile, Seen},
    store::Attempt,
};

/// redb's cache: enough for the inner pages of a million jobs, little beside a sandbox.
const CACHE: usize = 8 << 20;

/// A batch's state cannot be kept.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A live process has it.
    #[error("the batch of {0} is being run by another process")]
    InUse(PathBuf),
    /// Written by another version of mayfly.
    #[error("{path} was written by another version of mayfly (format {found})")]
    Version {
        /// The state's folder.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A file of it cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The database fails.
    #[error("the state of the batch at {path} fails")]
    Database {
        /// The state's folder.
        path: PathBuf,
        /// How.
        #[source]
        error: redb::Error,
    },
    /// The results file fails.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// An earlier write failed: what is known may be less than what is so.
    #[error("the state of the batch is not written any more: {0}")]
    Given(String),
}

/// The state of a batch, open in this process and no other.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    db: Arc<Database>,
    under_way: Arc<Mutex<UnderWay>>,
    results: Arc<File>,
    epochs: AtomicU64,
    changes: mpsc::Sender<Change>,
    writer: JoinHandle<()>,
}

/// The attempts of this process that have not ended, and where starts are written.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pub(crate) attempts: HashMap<JobKey, Begun>,
    /// What jobs fell back to whose start was taken back.
    released: HashMap<JobKey, u32>,
    starts: Starts,
}

/// An attempt that has not ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) epoch: u64,
    pub(crate) number: u32,
}

/// Where the state of the batch with these results is kept.
pub(crate) fn folder(results: &Path) -> PathBuf {
    let mut name = results.as_os_str().to_owned();
    name.push(".mayfly");
    name.into()
}

impl Journal {
    /// Opens the state or makes it, and brings it up to date with what a crash left. `boot` names this boot of the
    /// machine; `each` sees every result that there is.
    pub(crate) fn open(
        results: &Path,
        boot: &str,
        each: impl FnMut(&Seen<'_>),
    ) -> Result<Self, JournalError> {
        let folder = folder(results);
        let made = match fs::create_dir(&folder) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(io_error("make", &folder, error)),
        };
        let opened = Self::open_in(folder.clone(), results, boot, each);
        if opened.is_err() && made {
            // Nothing was begun, so nothing is left to be taken up.
            let _ = fs::remove_dir_all(&folder);
        }
        opened
    }

    fn open_in(
        folder: PathBuf,
        results: &Path,
        boot: &str,
        mut each: impl FnMut(&Seen<'_>),
    ) -> Result<Self, JournalError> {
        let db = database(&folder, results)?;
        let database_error = |error| JournalError::Database { path: folder.clone(), error };

        let starts_path = folder.join("starts");
        let (mut starts, started) =
            Starts::open(&starts_path).map_err(|error| io_error("open", &starts_path, error))?;
        let mut results = ResultsFile::open(results)?;
        let facts = recover(&db, &mut results, &started, boot, &mut each).map_err(|error| match error {
            Recovery::Database(error) => database_error(error),
            Recovery::Results(error) => error.into(),
            Recovery::Version(found) => JournalError::Version { path: folder.clone(), found },
        })?;
        // Only now is what it says also in the database.
        starts.clear().map_err(|error| io_error("cut", &starts_path, error))?;
        sync_folders(&folder)?;

        let under_way =
            Arc::new(Mutex::new(UnderWay { attempts: HashMap::new(), released: HashMap::new(), starts }));
        let reader = results.reader();
        let (changes, received) = mpsc::channel();
        let writer = writer::Writer::new(folder.clone(), Arc::clone(&db), Arc::clone(&under_way), results);
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(|error| io_error("start the writer of", &folder, error))?;
        // Each opening has epochs of its own, above all before it.
        let epochs = AtomicU64::new(facts.openings << 32);
        Ok(Self { folder, db, under_way, results: reader, epochs, changes, writer })
    }

    /// Asks the writer for a change. What it answers comes through the change itself.
    pub(crate) fn ask(&self, change: Change) {
        // A writer that is gone has said why; whoever waits for an answer sees its end.
        let _ = self.changes.send(change);
    }

    /// Notes a start: in the kernel when this returns.
    pub(crate) fn begin(&self, job: &JobKey) -> Result<Option<Attempt>, JournalError> {
        let mut under_way = self.under_way();
        let record = self.record(job)?;
        let (before, cancelled) = match record {
            Some(Record::Over { .. }) => return Ok(None),
            Some(Record::Begun { number, cancelled }) => (number, cancelled),
            None => (0, false),
        };
        let before = under_way.released.remove(job).unwrap_or(before);
        // An attempt of this process that has not ended is taken over.
        let before = under_way.attempts.get(job).map_or(before, |begun| begun.number);
        let number = before + 1;
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join("starts");
        under_way.starts.begun(job, number).map_err(|error| io_error("write to", &path, error))?;
        under_way.attempts.insert(job.clone(), Begun { epoch, number });
        Ok(Some(Attempt { job: job.clone(), number, epoch, interrupted: before > 0, cancelled }))
    }

    /// Takes a start back.
    pub(crate) fn release(&self, attempt: &Attempt) -> Result<(), JournalError> {
        let mut under_way = self.under_way();
        if under_way.attempts.get(&attempt.job).is_none_or(|begun| begun.epoch != attempt.epoch) {
            return Ok(());
        }
        let path = self.folder.join("starts");
        under_way
            .starts
            .released(&attempt.job, attempt.number)
            .map_err(|error| io_error("write to", &path, error))?;
        under_way.attempts.remove(&attempt.job);
        under_way.released.insert(attempt.job.clone(), attempt.number - 1);
        Ok(())
    }

    /// What is known of a job.
    pub(crate) fn record(&self, job: &JobKey) -> Result<Option<Record>, JournalError> {
        self.read(|read| {
            let jobs = read.open_table(JOBS)?;
            Ok(jobs.get(job.to_string().as_str())?.map(|row| Record::from_row(row.value())))
        })
    }

    /// Asks the database something.
    pub(crate) fn read<T>(
        &self,
        ask: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, JournalError> {
        let read = self.db.begin_read().map_err(|error| self.database_error(error.into()))?;
        ask(&read).map_err(|error| self.database_error(error))
    }

    /// Changes the database at once, flushing nothing else: for filling it before jobs run.
    pub(crate) fn fill<T>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, JournalError> {
        let filled = || -> Result<T, redb::Error> {
            let write = self.db.begin_write()?;
            let filled = change(&write)?;
            write.commit()?;
            Ok(filled)
        };
        filled().map_err(|error| self.database_error(error))
    }

    /// A line of the results file.
    pub(crate) fn result_line(&self, place: Place) -> Result<Vec<u8>, JournalError> {
        let mut line = vec![0; place.length as usize];
        let read = self.results.read_exact_at(&mut line, place.offset);
        read.map_err(|error| io_error("read a result of", &self.folder, error))?;
        Ok(line)
    }

    pub(crate) fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // Nothing panics between two halves of a change.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is still asked for and lets go. Once no line is left, the state goes too.
    pub(crate) fn close(self) -> Result<(), JournalError> {
        let Self { folder, db, changes, writer, .. } = self;
        drop(changes);
        if writer.join().is_err() {
            return Err(JournalError::Given("its writer failed".to_owned()));
        }
        let left = || -> Result<bool, redb::Error> { Ok(!db.begin_read()?.open_table(LINES)?.is_empty()?) };
        let left = left().map_err(|error| JournalError::Database { path: folder.clone(), error })?;
        drop(db);
        if !left {
            fs::remove_dir_all(&folder).map_err(|error| io_error("remove", &folder, error))?;
        }
        Ok(())
    }

    fn database_error(&self, error: redb::Error) -> JournalError {
        JournalError::Database { path: self.folder.clone(), error }
    }
}

fn database(folder: &Path, results: &Path) -> Result<Arc<Database>, JournalError> {
    match Builder::new().set_cache_size(CACHE).create(folder.join("state")) {
        Ok(db) => Ok(Arc::new(db)),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(JournalError::InUse(results.to_owned())),
        Err(error) => Err(JournalError::Database { path: folder.to_owned(), error: error.into() }),
    }
}

/// The names of new files are durable too.
fn sync_folders(folder: &Path) -> Result<(), JournalError> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for folder in [folder, parent] {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| io_error("flush", folder, error))?;
    }
    Ok(())
}

fn io_error(what: &'static str, path: &Path, error: io::Error) -> JournalError {
    JournalError::Io { what, path: path.to_owned(), error }
}

//! A batch: one file of jobs, run to its end on this machine, with no server. Killed half-way, it is taken up again
//! where it was.

mod afar;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use worker::Worker;

pub use self::afar::Afar;
use crate::{
    board::Board,
    broker::BrokerError,
    control::Control,
    dispatch::{DispatchError, Dispatcher},
    intake::{Defaults, IntakeError, JobsFile},
    journal::{self, Journal, JournalError},
    live::{Form, Look, Pane, Sight},
    metrics::{Metered, Metrics},
    policy::Policies,
    queue::embedded::EmbeddedQueue,
    runner::Runner,
    stop::{Stop, Stopper},
    store::embedded::EmbeddedStore,
    tally::Tally,
    web::{Place, Web},
};

/// What to run, and where its results go.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The file of jobs, one a line.
    pub jobs: PathBuf,
    /// The file of results.
    pub results: PathBuf,
    /// Whether to go on with a batch that was begun.
    pub resume: bool,
    /// What jobs get that do not say.
    pub defaults: Defaults,
    /// What jobs may have.
    pub policies: Policies,
    /// How many run at once.
    pub slots: usize,
}

/// A batch cannot be run, or not to its end.
#[derive(Debug, Error)]
pub enum BatchError {
    /// There are results, and nobody said that the batch goes on.
    #[error("{0} is there already")]
    ResultsExist(PathBuf),
    /// This boot of the machine has no name.
    #[error("cannot read the kernel's boot id")]
    Boot(#[source] io::Error),
    /// The jobs file.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The batch's state.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The broker of a batch that others run.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It could not go on.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
}

impl BatchError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::ResultsExist(_) => "go on with that batch by --resume, or name another file with -o",
            Self::Boot(_) => "see that /proc is mounted",
            Self::Intake(IntakeError::Read { .. }) => "name a file with one job a line (`mayfly schema job`)",
            Self::Intake(IntakeError::Changed(_)) => {
                "bring the former file back, or begin a new batch with other results (-o)"
            }
            Self::Intake(IntakeError::Elsewhere(_)) => {
                "go on with the same --remote and --tenant, or begin a new batch with other results (-o)"
            }
            Self::Broker(_) => {
                "see that the broker runs and `mayfly setup` was run; then go on with --resume"
            }
            Self::Journal(JournalError::InUse(_)) => {
                "`mayfly status` shows it; wait for it, or stop it by Ctrl-C"
            }
            Self::Journal(JournalError::Version { .. }) => "finish the batch with the mayfly that began it",
            Self::Journal(JournalError::Io { what: "make", .. }) => {
                "see that the folder of the results is there and can be written to"
            }
            Self::Journal(JournalError::Results(_)) => {
                "bring the results file back as it was, or begin anew with -o"
            }
            Self::Intake(IntakeError::Journal(_))
            | Self::Journal(_)
            | Self::Dispatch(DispatchError::Store(_)) => {
                "see that the disk of the results has space and works; then go on with --resume"
            }
            Self::Dispatch(DispatchError::Queue(_)) => {
                "see that the jobs file can be read; then go on with --resume"
            }
            Self::Dispatch(DispatchError::Infrastructure { .. }) => {
                "`mayfly doctor` says what is wrong with this host; then go on with --resume"
            }
        }
    }
}

type Engine<R> = Dispatcher<Metered<Arc<EmbeddedQueue>>, Metered<EmbeddedStore>, Metered<R>>;

/// A batch that can be run: everything but its sandboxes is there.
#[derive(Debug)]
pub struct Batch {
    journal: Arc<Journal>,
    queue: EmbeddedQueue,
    policies: Policies,
    slots: usize,
    total: u64,
    left: u64,
    before: Tally,
}

/// A batch with what runs its jobs.
#[derive(Debug)]
pub struct Running<R = Worker> {
    engine: Arc<Engine<R>>,
    journal: Arc<Journal>,
    total: u64,
    left: u64,
}

impl Batch {
    /// Takes the jobs in, or takes the batch up again.
    pub fn open(plan: Plan) -> Result<Self, BatchError> {
        let Plan { jobs, results, resume, defaults, policies, slots } = plan;
        let mut file = JobsFile::open(&jobs, defaults)?;
        if !resume && (holds_something(&results) || journal::folder(&results).exists()) {
            return Err(BatchError::ResultsExist(results));
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(BatchError::Boot)?;
        let mut before = Tally::default();
        let journal =
            Journal::open(&results, boot.trim(), |seen| before.add(seen.outcome, &seen.phases, seen.source))?;
        let journal = Arc::new(journal);
        file.name_for(&journal)?;
        let left = file.take_in(&journal, &policies)?;
        let waiting = left.waiting.values().sum();
        let queue = EmbeddedQueue::new(Arc::clone(&journal), file, left.kinds, left.waiting);
        Ok(Self { journal, queue, policies, slots: slots.max(1), total: left.total, left: waiting, before })
    }

    /// Jobs in the file.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Jobs in the file that have no result.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Puts the batch to work.
    #[must_use]
    pub fn with<R: Runner>(self, runner: R) -> Running<R> {
        self.with_metrics(runner, None)
    }

    /// The same, and counts.
    #[must_use]
    pub fn with_metrics<R: Runner>(self, runner: R, metrics: Option<Arc<Metrics>>) -> Running<R> {
        let Self { journal, queue, policies, slots, total, left, before } = self;
        let store = EmbeddedStore::new(Arc::clone(&journal));
        let queue = Metered::new(Arc::new(queue), metrics.clone());
        let (store, runner) = (Metered::new(store, metrics.clone()), Metered::new(runner, metrics));
        let engine = Dispatcher::new(queue, store, runner, policies, slots);
        engine.board().preset(before);
        Running { engine: Arc::new(engine), journal, total, left }
    }

    /// Lets go without running anything.
    pub async fn close(self) -> Result<Tally, BatchError> {
        let Self { journal, queue, before, .. } = self;
        drop(queue);
        alone(journal).await.close()?;
        Ok(before)
    }
}

impl<R: Runner> Running<R> {
    /// Runs until all jobs have their results or `stop` says so.
    pub async fn run(&self, stopper: &Stopper, stop: &Stop) -> Result<(), BatchError> {
        Ok(self.engine.run(stopper, stop).await?)
    }

    /// What is going on.
    #[must_use]
    pub fn board(&self) -> &Board {
        self.engine.board()
    }

    /// Lets other processes ask what goes on, and cancel jobs.
    pub fn listen(&self, run_dir: &Path, sight: &Sight, stop: &Stop) -> io::Result<Control> {
        Control::listen(run_dir, sight.who.clone(), &self.engine, self.look(sight, stop))
    }

    /// Shows from now on what goes on.
    #[must_use]
    pub fn expose(&self, place: Place, metrics: Arc<Metrics>, sight: &Sight, stop: &Stop) -> Web {
        place.answer(metrics, self.look(sight, stop))
    }

    fn look(&self, sight: &Sight, stop: &Stop) -> Look {
        // What its jobs write is in their results and nowhere before.
        let form = Form { servers: |_| None, follow: |_, _| None, why: |_, _, _| None };
        Arc::new(Pane::new(&self.engine, form, sight, stop))
    }

    /// Jobs in the file.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Jobs that had no result when this process began.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Writes what is still to be written, and gives the runner back with what became of the jobs.
    pub async fn close(self) -> Result<(R, Tally), (R, BatchError)> {
        let Self { engine, journal, .. } = self;
        let tally = engine.board().tally();
        let (queue, store, runner) = alone(engine).await.into_parts();
        drop((queue, store));
        let runner = runner.into_inner();
        match alone(journal).await.close() {
            Ok(()) => Ok((runner, tally)),
            Err(error) => Err((runner, error.into())),
        }
    }
}

/// Waits until nobody else holds it: an answer that is being given, a flush that is under way.
async fn alone<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(alone) => return alone,
            Err(still) => shared = still,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn holds_something(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file() || meta.len() > 0)
}

#[cfg(test)]
mod tests;

//! The one thread that writes a batch's results and state, in groups: one flush of each file serves all that
//! ended meanwhile.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use redb::{Database, ReadableTable};
use tokio::sync::oneshot;
use worker::Outcome;

use super::{
    JournalError, UnderWay, io_error,
    tables::{Fact, JOBS, LINES, Record, set_fact},
};
use crate::{
    failpoint,
    key::JobKey,
    results::{Place, ResultsFile},
    store::{Attempt, Cancelling, Finished},
};

/// How long the first of a group waits for others. Nobody's slot waits for it.
const LINGER: Duration = Duration::from_millis(20);
/// Bytes of results in one group.
const GROUP: usize = 8 << 20;
/// The starts are moved into the database when their file is longer.
const STARTS: u64 = 1 << 20;

type Answer<T> = oneshot::Sender<Result<T, Arc<JournalError>>>;

/// Something to be made durable.
#[derive(Debug)]
pub(crate) enum Change {
    /// A job's result, with the line that says it.
    Finish {
        /// Whose.
        attempt: Attempt,
        /// How the job ended.
        outcome: Outcome,
        /// The result, with the end of its line.
        line: Vec<u8>,
        /// Hears of it.
        told: Answer<Finished>,
    },
    /// A line of the jobs file that is done with. Nobody waits for it.
    Ack(u64),
    /// Lines up to this one may be given away.
    Reserve {
        /// The last one.
        upto: u64,
        /// Hears of it.
        told: Answer<()>,
    },
    /// A job that is not wanted any more.
    Cancel {
        /// Which.
        job: JobKey,
        /// Hears of it.
        told: Answer<Cancelling>,
    },
}

pub(super) struct Writer {
    folder: PathBuf,
    db: Arc<Database>,
    under_way: Arc<Mutex<UnderWay>>,
    results: ResultsFile,
    /// Why nothing is written any more.
    failed: Option<Arc<JournalError>>,
}

impl Writer {
    pub(super) fn new(
        folder: PathBuf,
        db: Arc<Database>,
        under_way: Arc<Mutex<UnderWay>>,
        results: ResultsFile,
    ) -> Self {
        Self { folder, db, under_way, results, failed: None }
    }

    /// Writes until nobody can ask for anything any more.
    pub(super) fn run(mut self, changes: &mpsc::Receiver<Change>) {
        // What is started at the end stays in its own file: whoever opens the batch next reads it.
        while let Ok(first) = changes.recv() {
            let group = gather(first, changes);
            if let Some(error) = &self.failed {
                let error = Arc::clone(error);
                refuse(group, &error);
                continue;
            }
            match self.write(&group) {
                Ok(answers) => {
                    failpoint::pass("committed");
                    group.into_iter().zip(answers).for_each(|(change, answer)| change.answer(answer));
                }
                Err(error) => {
                    tracing::error!(%error, "the state of the batch cannot be written");
                    let error = Arc::new(error);
                    self.failed = Some(Arc::new(JournalError::Given(error.to_string())));
                    refuse(group, &error);
                }
            }
        }
    }

    /// Results first, then what is known of them: a crash in between loses no result and repeats none.
    fn write(&mut self, group: &[Change]) -> Result<Vec<Done>, JournalError> {
        let (places, accepted) = self.place(group)?;
        if accepted > 0 {
            failpoint::pass("result-written");
            self.results.sync()?;
            failpoint::pass("result-durable");
        }
        let answers = self.commit(group, &places).map_err(|error| self.trouble(error))?;
        self.forget(group);
        if self.under_way().starts.length() > STARTS {
            self.keep_starts()?;
        }
        Ok(answers)
    }

    /// Appends the results that count. `None` for changes that are no result, or one that is stale.
    fn place(&mut self, group: &[Change]) -> Result<(Vec<Option<Place>>, usize), JournalError> {
        let mut lines = Vec::new();
        let mut places = Vec::with_capacity(group.len());
        let mut taken = HashSet::new();
        for change in group {
            let place = match change {
                Change::Finish { attempt, line, .. }
                    if self.is_newest(attempt)? && taken.insert(&attempt.job) =>
                {
                    let place = Place { offset: lines.len() as u64, length: line.len() as u64 };
                    lines.extend_from_slice(line);
                    Some(place)
                }
                _ => None,
            };
            places.push(place);
        }
        if lines.is_empty() {
            return Ok((places, 0));
        }
        let offset = self.results.append(&lines)?;
        places.iter_mut().flatten().for_each(|place| place.offset += offset);
        Ok((places, taken.len()))
    }

    fn is_newest(&self, attempt: &Attempt) -> Result<bool, JournalError> {
        let newest =
            self.under_way().attempts.get(&attempt.job).is_some_and(|begun| begun.epoch == attempt.epoch);
        if !newest {
            return Ok(false);
        }
        let over = || -> Result<bool, redb::Error> {
            let read = redb::ReadableDatabase::begin_read(&*self.db)?;
            let jobs = read.open_table(JOBS)?;
            let row = jobs.get(attempt.job.to_string().as_str())?.map(|row| Record::from_row(row.value()));
            Ok(matches!(row, Some(Record::Over { .. })))
        };
        over().map(|over| !over).map_err(|error| self.trouble(error))
    }

    fn commit(&self, group: &[Change], places: &[Option<Place>]) -> Result<Vec<Done>, redb::Error> {
        let write = self.db.begin_write()?;
        let mut answers = Vec::with_capacity(group.len());
        {
            let mut jobs = write.open_table(JOBS)?;
            let mut lines = write.open_table(LINES)?;
            for (change, place) in group.iter().zip(places) {
                answers.push(match (change, place) {
                    (Change::Finish { attempt, outcome, .. }, Some(place)) => {
                        let over = Record::Over { number: attempt.number, outcome: *outcome, place: *place };
                        jobs.insert(attempt.job.to_string().as_str(), over.to_row())?;
                        Done::Finished(Finished::Stored)
                    }
                    (Change::Finish { .. }, None) => Done::Finished(Finished::Stale),
                    (Change::Ack(line), _) => {
                        lines.remove(line)?;
                        Done::Noted
                    }
                    (Change::Reserve { upto, .. }, _) => {
                        set_fact(&write, Fact::Horizon, *upto)?;
                        Done::Noted
                    }
                    (Change::Cancel { job, .. }, _) => {
                        let key = job.to_string();
                        let known = jobs.get(key.as_str())?.map(|row| Record::from_row(row.value()));
                        let number = match known {
                            Some(Record::Over { .. }) => {
                                answers.push(Done::Cancelled(Cancelling::Over));
                                continue;
                            }
                            Some(Record::Begun { number, .. }) => number,
                            None => 0,
                        };
                        jobs.insert(key.as_str(), Record::Begun { number, cancelled: true }.to_row())?;
                        Done::Cancelled(Cancelling::Noted)
                    }
                });
            }
        }
        set_fact(&write, Fact::Durable, self.results.length())?;
        write.commit()?;
        Ok(answers)
    }

    /// The attempts that have ended, whether they counted or not.
    fn forget(&self, group: &[Change]) {
        let mut under_way = self.under_way();
        for change in group {
            if let Change::Finish { attempt, .. } = change
                && under_way.attempts.get(&attempt.job).is_some_and(|begun| begun.epoch == attempt.epoch)
            {
                under_way.attempts.remove(&attempt.job);
            }
        }
    }

    /// Moves the starts of attempts that have not ended into the database.
    fn keep_starts(&self) -> Result<(), JournalError> {
        // Held until the file is empty: a start in between would be lost.
        let mut under_way = self.under_way();
        let keep = || -> Result<(), redb::Error> {
            let write = self.db.begin_write()?;
            {
                let mut jobs = write.open_table(JOBS)?;
                let begun = under_way.attempts.iter().map(|(job, begun)| (job, begun.number));
                let released = under_way.released.iter().map(|(job, number)| (job, *number));
                for (job, number) in begun.chain(released) {
                    Record::begin(&mut jobs, &job.to_string(), number)?;
                }
            }
            write.commit()?;
            Ok(())
        };
        keep().map_err(|error| self.trouble(error))?;
        let cleared = under_way.starts.clear();
        cleared.map_err(|error| io_error("cut the starts of", &self.folder, error))
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self, error: redb::Error) -> JournalError {
        JournalError::Database { path: self.folder.clone(), error }
    }
}

/// What has become of a change.
enum Done {
    Finished(Finished),
    Cancelled(Cancelling),
    Noted,
}

impl Change {
    /// Whether somebody's slot waits for it.
    fn is_urgent(&self) -> bool {
        matches!(self, Self::Reserve { .. } | Self::Cancel { .. })
    }

    fn weight(&self) -> usize {
        match self {
            Self::Finish { line, .. } => line.len(),
            _ => 0,
        }
    }

    // Whoever does not listen any more has no use for an answer.
    fn answer(self, done: Done) {
        match (self, done) {
            (Self::Finish { told, .. }, Done::Finished(finished)) => drop(told.send(Ok(finished))),
            (Self::Cancel { told, .. }, Done::Cancelled(cancelling)) => drop(told.send(Ok(cancelling))),
            (Self::Reserve { told, .. }, _) => drop(told.send(Ok(()))),
            _ => {}
        }
    }

    fn refuse(self, error: &Arc<JournalError>) {
        let error = Arc::clone(error);
        match self {
            Self::Finish { told, .. } => drop(told.send(Err(error))),
            Self::Cancel { told, .. } => drop(told.send(Err(error))),
            Self::Reserve { told, .. } => drop(told.send(Err(error))),
            Self::Ack(_) => {}
        }
    }
}

fn refuse(group: Vec<Change>, error: &Arc<JournalError>) {
    for change in group {
        change.refuse(error);
    }
}

/// Waits a little for others, unless somebody's slot waits or there is enough.
fn gather(first: Change, changes: &mpsc::Receiver<Change>) -> Vec<Change> {
    let until = Instant::now() + LINGER;
    let mut weight = first.weight();
    let mut urgent = first.is_urgent();
    let mut group = vec![first];
    while weight < GROUP {
        let wait = if urgent { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
        // At the end of the last sender nothing more is waited for either.
        let Ok(next) = changes.recv_timeout(wait) else { break };
        weight += next.weight();
        urgent |= next.is_urgent();
        group.push(next);
    }
    group
}

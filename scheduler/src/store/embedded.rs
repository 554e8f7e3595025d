//! The store of one batch: the results file holds the results, the journal knows where.

use std::sync::Arc;

use redb::ReadableTable;
use tokio::sync::oneshot;
use worker::JobResult;

use super::{Attempt, Begun, Cancelling, Ended, Finished, JobState, Store, StoreError};
use crate::{
    failpoint,
    journal::{Change, IDS, JOBS, Journal, JournalError, Record},
    key::{BodyDigest, JobKey},
};

/// The embedded store.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddedStore {
    journal: Arc<Journal>,
}

impl EmbeddedStore {
    pub(crate) fn new(journal: Arc<Journal>) -> Self {
        Self { journal }
    }

    /// Asks the writer and waits until the answer is durable.
    async fn ask<T>(
        &self,
        change: impl FnOnce(oneshot::Sender<Result<T, Arc<JournalError>>>) -> Change,
    ) -> Result<T, StoreError> {
        let (told, answer) = oneshot::channel();
        self.journal.ask(change(told));
        match answer.await {
            Ok(answer) => answer.map_err(|error| StoreError(Box::new(error))),
            Err(_) => Err(failed(JournalError::Given("its writer has ended".to_owned()))),
        }
    }
}

impl Store for EmbeddedStore {
    /// One process has the journal, and its intake gives each line an id of its own: a job is never busy or taken.
    async fn begin(&self, job: &JobKey, _: &BodyDigest) -> Result<Begun, StoreError> {
        let begun = self.journal.begin(job).map_err(failed)?;
        failpoint::pass("begun");
        Ok(begun.map_or(Begun::Over, Begun::Attempt))
    }

    async fn release(&self, attempt: Attempt) -> Result<(), StoreError> {
        self.journal.release(&attempt).map_err(failed)
    }

    async fn finish(&self, attempt: Attempt, result: &JobResult) -> Result<Finished, StoreError> {
        let mut line = serde_json::to_vec(result).map_err(|error| StoreError(Box::new(error)))?;
        line.push(b'\n');
        let outcome = result.outcome;
        self.ask(|told| Change::Finish { attempt, outcome, line, told }).await
    }

    async fn cancel(&self, job: &JobKey) -> Result<Cancelling, StoreError> {
        let job = job.clone();
        self.ask(|told| Change::Cancel { job, told }).await
    }

    async fn state(&self, job: &JobKey) -> Result<Option<JobState>, StoreError> {
        // The lock first: what has ended leaves it only after its record is there.
        let begun = self.journal.under_way().attempts.get(job).copied();
        let cancelled = match self.journal.record(job).map_err(failed)? {
            Some(Record::Over { outcome, .. }) => return Ok(Some(JobState::Over { outcome })),
            Some(Record::Begun { cancelled, .. }) => cancelled,
            None => false,
        };
        if let Some(begun) = begun {
            return Ok(Some(JobState::Begun { attempt: begun.number }));
        }
        let key = job.to_string();
        let known = self.journal.read(|read| Ok(read.open_table(IDS)?.get(key.as_str())?.is_some()));
        Ok(known.map_err(failed)?.then_some(JobState::Waiting { cancelled }))
    }

    async fn result(&self, job: &JobKey) -> Result<Option<JobResult>, StoreError> {
        let Some(Record::Over { place, .. }) = self.journal.record(job).map_err(failed)? else {
            return Ok(None);
        };
        let line = self.journal.result_line(place).map_err(failed)?;
        serde_json::from_slice(&line).map(Some).map_err(|error| StoreError(Box::new(error)))
    }

    /// Results here have no time to pass, and one process has no need of epochs to tell them apart.
    async fn ended(&self, job: &JobKey) -> Result<Option<Ended>, StoreError> {
        let result = self.result(job).await?;
        let ended = |result: JobResult| Ended {
            epoch: u64::from(result.attempt),
            attempt: result.attempt,
            outcome: result.outcome,
            result: Some(result),
        };
        Ok(result.map(ended))
    }

    async fn unfinished(&self, most: usize) -> Result<Vec<JobKey>, StoreError> {
        let mut unfinished: Vec<JobKey> =
            self.journal.under_way().attempts.keys().take(most).cloned().collect();
        let former = self.journal.read(|read| {
            let jobs = read.open_table(JOBS)?;
            let mut former = Vec::new();
            for row in jobs.iter()? {
                let (key, row) = row?;
                if let Record::Begun { number: 1.., .. } = Record::from_row(row.value())
                    && let Ok(key) = key.value().parse()
                {
                    former.push(key);
                }
                if former.len() == most {
                    break;
                }
            }
            Ok(former)
        });
        for job in former.map_err(failed)? {
            if unfinished.len() < most && !unfinished.contains(&job) {
                unfinished.push(job);
            }
        }
        Ok(unfinished)
    }
}

fn failed(error: JournalError) -> StoreError {
    StoreError(Box::new(error))
}

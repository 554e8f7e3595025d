//! Where a job's state and its one result are kept.
//!
//! Each start of a job is an [`Attempt`] with an epoch of its own. Only the newest attempt can give the job its
//! result, and only once: whoever comes later, or from an older attempt, is told so and changes nothing.

pub(crate) mod embedded;
pub mod redis;

use std::{error::Error, future::Future, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use worker::{ErrorReport, JobResult, Outcome};

use crate::key::{BodyDigest, JobKey};

/// A keeper of job states.
pub trait Store: Send + Sync + 'static {
    /// Notes that the job is about to be started. When this returns, no crash of this process can hide that
    /// it may have started. Takes the job over from an attempt that has not ended and whose process is dead.
    fn begin(
        &self,
        job: &JobKey,
        body: &BodyDigest,
    ) -> impl Future<Output = Result<Begun, StoreError>> + Send;

    /// Takes [`Store::begin`] back: the job is as if this attempt had never been. For a job that did not start, or
    /// that may run again from its beginning.
    fn release(&self, attempt: Attempt) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the job its one result, durably, if this attempt is the newest and the job has none.
    fn finish(
        &self,
        attempt: Attempt,
        result: &JobResult,
    ) -> impl Future<Output = Result<Finished, StoreError>> + Send;

    /// Notes that the job is not wanted any more. A job that has begun already is told by who runs it.
    fn cancel(&self, job: &JobKey) -> impl Future<Output = Result<Cancelling, StoreError>> + Send;

    /// What is known of a job; `None` if it is not known here.
    fn state(&self, job: &JobKey) -> impl Future<Output = Result<Option<JobState>, StoreError>> + Send;

    /// The job's result, if it has one.
    fn result(&self, job: &JobKey) -> impl Future<Output = Result<Option<JobResult>, StoreError>> + Send;

    /// How the job ended, if it has, and what is left of its result.
    fn ended(&self, job: &JobKey) -> impl Future<Output = Result<Option<Ended>, StoreError>> + Send;

    /// Jobs that have begun and have no result, `most` at most.
    fn unfinished(&self, most: usize) -> impl Future<Output = Result<Vec<JobKey>, StoreError>> + Send;
}

/// One start of one job. It is used up by telling how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which job.
    pub job: JobKey,
    /// Which start of it, from 1. Attempts that were released do not count.
    pub number: u32,
    /// Fences this attempt against all others of the job.
    pub epoch: u64,
    /// Whether an earlier attempt may have started and never told its end.
    pub interrupted: bool,
    /// Whether somebody cancelled the job.
    pub cancelled: bool,
}

/// A job that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// That of the attempt which gave it its result.
    pub epoch: u64,
    /// Which attempt that was.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Its result; `None` once that has passed its time.
    pub result: Option<JobResult>,
}

impl Ended {
    /// What is told of it: its result, or, once that is not kept any more, how it ended and that this is all.
    pub(crate) fn told(self, key: &JobKey) -> JobResult {
        if let Some(result) = self.result {
            return result;
        }
        let outcome = self.outcome.name();
        let report = ErrorReport::new(
            "the result is no longer kept",
            format!("this job was sent before and ended ({outcome}); its result has passed its time"),
            "send it under another id to run it again; store.result_ttl says for how long results are kept",
        );
        let mut result = JobResult::never_started(&key.id, &key.tenant, self.outcome, report);
        result.attempt = self.attempt;
        (result.stdout.truncated, result.stderr.truncated) = (true, true);
        result
    }
}

/// How beginning a job went.
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// It may be started.
    Attempt(Attempt),
    /// It has its result already.
    Over,
    /// Another attempt, whose process lives as far as is known, has it. Ask again after this time.
    Busy(Duration),
    /// The id belongs to a job with another body.
    Taken,
}

/// How finishing a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// This is the job's result now.
    Stored,
    /// The job has a result, or a newer attempt. Nothing was changed.
    Stale,
}

/// How cancelling a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// Whoever begins it next is told.
    Noted,
    /// It has its result already.
    Over,
}

/// What is known of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// It has not begun.
    Waiting {
        /// Whether somebody cancelled it.
        cancelled: bool,
    },
    /// It has begun and has no result.
    Begun {
        /// Which attempt, from 1.
        attempt: u32,
    },
    /// It has its result.
    Over {
        /// How it ended.
        outcome: Outcome,
    },
}

/// The store does not do what it is asked.
#[derive(Debug, Error)]
#[error("the store failed")]
pub struct StoreError(#[source] pub Box<dyn Error + Send + Sync>);

//! A queue, a store and a runner that answer what a test told them to.

use std::{sync::Mutex, time::Duration};

use pool::{KindStatus, Tier, Want};
use worker::{Assignment, Cancelled, Ended as EndedJob, ErrorReport, Job, JobResult, Progress};

use crate::{
    key::{BodyDigest, JobKey},
    queue::{Backlog, Keeping, Pulled, Queue, QueueError, Requeue},
    runner::Runner,
    store::{Attempt, Begun, Cancelling, Ended, Finished, JobState, Store, StoreError},
};

/// Answers what it was told to.
#[derive(Debug, Default)]
pub(super) struct Puppet {
    pub(super) fails: bool,
    pub(super) stale: bool,
    pub(super) result: Mutex<Option<JobResult>>,
}

pub(super) fn job() -> Job {
    let text = r#"{ "schema_version": 1, "image": "base", "tier": "docker", "command": ["true"] }"#;
    serde_json::from_str(text).unwrap()
}

pub(super) fn key() -> JobKey {
    JobKey::new("acme", "one")
}

pub(super) fn attempt() -> Attempt {
    Attempt { job: key(), number: 1, epoch: 1, interrupted: false, cancelled: false }
}

impl Queue for Puppet {
    type Delivery = ();

    async fn pull(&self) -> Result<Option<Pulled<()>>, QueueError> {
        let (key, body) = (key(), BodyDigest::of(&[]));
        let queued = Duration::from_secs(90);
        Ok(Some(Pulled { delivery: (), key, body, job: Ok(job()), tier: Some(Tier::Docker), queued }))
    }

    async fn keep(&self, (): &mut (), _: Duration) -> Keeping {
        Keeping::Kept
    }

    async fn answer(&self, (): &(), _: &JobResult, _: u64) -> Result<(), QueueError> {
        if self.fails { Err(QueueError::Stale(key())) } else { Ok(()) }
    }

    async fn ack(&self, (): ()) -> Result<(), QueueError> {
        Ok(())
    }

    async fn requeue(&self, (): (), _: Requeue) -> Result<(), QueueError> {
        Ok(())
    }

    fn rest(&self, _: Tier, _: bool) {}

    fn backlog(&self) -> Backlog {
        Backlog::default()
    }
}

impl Store for Puppet {
    async fn begin(&self, _: &JobKey, _: &BodyDigest) -> Result<Begun, StoreError> {
        if self.fails { Err(StoreError("down".into())) } else { Ok(Begun::Attempt(attempt())) }
    }

    async fn release(&self, _: Attempt) -> Result<(), StoreError> {
        Ok(())
    }

    async fn finish(&self, _: Attempt, _: &JobResult) -> Result<Finished, StoreError> {
        Ok(if self.stale { Finished::Stale } else { Finished::Stored })
    }

    async fn cancel(&self, _: &JobKey) -> Result<Cancelling, StoreError> {
        Ok(Cancelling::Noted)
    }

    async fn state(&self, _: &JobKey) -> Result<Option<JobState>, StoreError> {
        Ok(None)
    }

    async fn result(&self, _: &JobKey) -> Result<Option<JobResult>, StoreError> {
        Ok(None)
    }

    async fn ended(&self, _: &JobKey) -> Result<Option<Ended>, StoreError> {
        Ok(None)
    }

    async fn unfinished(&self, _: usize) -> Result<Vec<JobKey>, StoreError> {
        Ok(Vec::new())
    }
}

impl Runner for Puppet {
    async fn work(&self, _: &Assignment, _: Progress, _: Cancelled) -> EndedJob {
        EndedJob::without_sandbox(self.result.lock().unwrap().clone().unwrap())
    }

    async fn try_one(&self, _: &Want) -> Result<(), ErrorReport> {
        Ok(())
    }

    fn expect(&self, _: &Want, _: usize) {}

    fn standing(&self) -> Vec<KindStatus> {
        Vec::new()
    }
}

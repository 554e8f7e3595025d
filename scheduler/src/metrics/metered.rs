//! A queue, a store and a runner that count what goes through them, and change nothing of it.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use pool::{KindStatus, Tier, Want};
use worker::{Assignment, Cancelled, Ended as EndedJob, ErrorReport, JobResult, Progress};

use super::{Metrics, answer_of};
use crate::{
    key::{BodyDigest, JobKey},
    queue::{Backlog, Keeping, Pulled, Queue, QueueError, Requeue, Waiting},
    runner::Runner,
    store::{Attempt, Begun, Cancelling, Ended, Finished, JobState, Store, StoreError},
    traces::TraceParent,
};

const NONE: &[&str] = &[];

/// Counts what goes through, where somebody asked for that.
#[derive(Debug, Clone)]
pub struct Metered<T> {
    inner: T,
    metrics: Option<Arc<Metrics>>,
}

impl<T> Metered<T> {
    /// Counts in `metrics`, if there are any.
    pub fn new(inner: T, metrics: Option<Arc<Metrics>>) -> Self {
        Self { inner, metrics }
    }

    /// What it counts for.
    pub fn into_inner(self) -> T {
        self.inner
    }

    fn queue_call<R>(&self, operation: &str, answer: &Result<R, QueueError>) {
        if let Some(metrics) = &self.metrics {
            metrics.families.queue_calls.with_label_values(&[operation, answer_of(answer)]).inc();
        }
    }

    fn store_call<R>(&self, operation: &str, answer: &Result<R, StoreError>, since: Instant) {
        if let Some(metrics) = &self.metrics {
            let own = &metrics.families;
            own.store_calls.with_label_values(&[operation, answer_of(answer)]).inc();
            own.store_call.with_label_values(NONE).observe(since.elapsed().as_secs_f64());
        }
    }
}

impl<T> Deref for Metered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<Q: Queue> Queue for Metered<Q> {
    type Delivery = Q::Delivery;

    async fn pull(&self) -> Result<Option<Pulled<Q::Delivery>>, QueueError> {
        let pulled = self.inner.pull().await;
        self.queue_call("pull", &pulled);
        if let (Some(metrics), Ok(Some(pulled))) = (&self.metrics, &pulled) {
            let tier = pulled.tier.or_else(|| pulled.job.as_ref().ok().and_then(|job| job.tier));
            metrics.pulled(&pulled.key.tenant, tier, pulled.queued);
        }
        pulled
    }

    fn traceparent(&self, delivery: &Q::Delivery) -> Option<TraceParent> {
        self.inner.traceparent(delivery)
    }

    async fn keep(&self, delivery: &mut Q::Delivery, run: Duration) -> Keeping {
        self.inner.keep(delivery, run).await
    }

    fn answer(
        &self,
        delivery: &Q::Delivery,
        result: &JobResult,
        epoch: u64,
    ) -> impl Future<Output = Result<(), QueueError>> + Send {
        // Not an `async fn`: that would hold the delivery, which need not be shared between threads.
        let answering = self.inner.answer(delivery, result, epoch);
        async move {
            let since = Instant::now();
            let answered = answering.await;
            self.queue_call("answer", &answered);
            if let Some(metrics) = &self.metrics {
                metrics.families.answer.with_label_values(NONE).observe(since.elapsed().as_secs_f64());
            }
            answered
        }
    }

    async fn ack(&self, delivery: Q::Delivery) -> Result<(), QueueError> {
        let acked = self.inner.ack(delivery).await;
        self.queue_call("ack", &acked);
        acked
    }

    async fn requeue(&self, delivery: Q::Delivery, why: Requeue) -> Result<(), QueueError> {
        let requeued = self.inner.requeue(delivery, why).await;
        self.queue_call("requeue", &requeued);
        if let Some(metrics) = &self.metrics {
            let why = match why {
                Requeue::Unable => "unable",
                Requeue::Stopping => "stopping",
                Requeue::Later(_) => "later",
                Requeue::Elsewhere(_) => "elsewhere",
            };
            metrics.families.requeued_jobs.with_label_values(&[why]).inc();
        }
        requeued
    }

    fn rest(&self, tier: Tier, resting: bool) {
        self.inner.rest(tier, resting);
    }

    fn backlog(&self) -> Backlog {
        self.inner.backlog()
    }

    fn waiting(&self) -> Vec<Waiting> {
        self.inner.waiting()
    }

    fn parked(&self) -> Vec<(Tier, u64)> {
        self.inner.parked()
    }
}

impl<S: Store> Store for Metered<S> {
    async fn begin(&self, job: &JobKey, body: &BodyDigest) -> Result<Begun, StoreError> {
        let since = Instant::now();
        let begun = self.inner.begin(job, body).await;
        self.store_call("begin", &begun, since);
        begun
    }

    async fn release(&self, attempt: Attempt) -> Result<(), StoreError> {
        let since = Instant::now();
        let released = self.inner.release(attempt).await;
        self.store_call("release", &released, since);
        released
    }

    async fn finish(&self, attempt: Attempt, result: &JobResult) -> Result<Finished, StoreError> {
        let since = Instant::now();
        let finished = self.inner.finish(attempt, result).await;
        self.store_call("finish", &finished, since);
        match (&self.metrics, &finished) {
            (Some(metrics), Ok(Finished::Stored)) => metrics.completed(result),
            (Some(metrics), Ok(Finished::Stale)) => {
                metrics.families.stale_results.with_label_values(NONE).inc();
            }
            _ => {}
        }
        finished
    }

    async fn cancel(&self, job: &JobKey) -> Result<Cancelling, StoreError> {
        self.inner.cancel(job).await
    }

    async fn state(&self, job: &JobKey) -> Result<Option<JobState>, StoreError> {
        self.inner.state(job).await
    }

    async fn result(&self, job: &JobKey) -> Result<Option<JobResult>, StoreError> {
        self.inner.result(job).await
    }

    async fn ended(&self, job: &JobKey) -> Result<Option<Ended>, StoreError> {
        self.inner.ended(job).await
    }

    async fn unfinished(&self, most: usize) -> Result<Vec<JobKey>, StoreError> {
        self.inner.unfinished(most).await
    }
}

impl<R: Runner> Runner for Metered<R> {
    async fn work(&self, job: &Assignment, progress: Progress, cancelled: Cancelled) -> EndedJob {
        if let Some(metrics) = &self.metrics {
            metrics.started(job);
        }
        let ended = self.inner.work(job, progress, cancelled).await;
        if let Some(metrics) = &self.metrics {
            metrics.ran(ended.result());
        }
        ended
    }

    async fn try_one(&self, want: &Want) -> Result<(), ErrorReport> {
        self.inner.try_one(want).await
    }

    fn expect(&self, want: &Want, jobs: usize) {
        self.inner.expect(want, jobs);
    }

    fn standing(&self) -> Vec<KindStatus> {
        self.inner.standing()
    }
}

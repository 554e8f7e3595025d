//! A queue and a runner that take the times of what goes through them, and change nothing of it.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pool::{KindStatus, Tier, Want};
use worker::{Assignment, Cancelled, Ended, ErrorReport, JobResult, Progress};

use super::{Traces, Try, context::Context, spans};
use crate::{
    key::JobKey,
    queue::{Backlog, Keeping, Pulled, Queue, QueueError, Requeue, Waiting},
    runner::Runner,
};

/// Takes times, where somebody asked for that.
#[derive(Debug, Clone)]
pub struct Traced<T> {
    inner: T,
    traces: Option<Arc<Traces>>,
}

impl<T> Traced<T> {
    /// Takes times for `traces`, if there are any.
    pub fn new(inner: T, traces: Option<Arc<Traces>>) -> Self {
        Self { inner, traces }
    }

    /// What it takes the times of.
    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<T> Deref for Traced<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

/// A delivery, and the trace that its job is in.
#[derive(Debug)]
pub struct Followed<D> {
    inner: D,
    trail: Option<Trail>,
}

#[derive(Debug)]
struct Trail {
    context: Context,
    sent: SystemTime,
    pulled: SystemTime,
    key: JobKey,
    kept: Option<Kept>,
}

/// The place for what its runs were like, from before the first of them until the delivery is given back or lost.
#[derive(Debug)]
struct Kept {
    key: JobKey,
    traces: Arc<Traces>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.traces.with_tries(|tries| tries.remove(&self.key));
    }
}

impl<Q: Queue> Queue for Traced<Q> {
    type Delivery = Followed<Q::Delivery>;

    async fn pull(&self) -> Result<Option<Pulled<Self::Delivery>>, QueueError> {
        let Some(pulled) = self.inner.pull().await? else { return Ok(None) };
        let Pulled { delivery, key, body, job, tier, queued } = pulled;
        let trail = self.traces.as_ref().and_then(|traces| {
            let context = Context::of(self.inner.traceparent(&delivery), traces.share)?;
            let pulled = SystemTime::now();
            let sent = pulled.checked_sub(queued).unwrap_or(pulled);
            Some(Trail { context, sent, pulled, key: key.clone(), kept: None })
        });
        Ok(Some(Pulled { delivery: Followed { inner: delivery, trail }, key, body, job, tier, queued }))
    }

    async fn keep(&self, delivery: &mut Self::Delivery, run: Duration) -> Keeping {
        if let (Some(traces), Some(trail)) = (&self.traces, &mut delivery.trail) {
            traces.with_tries(|tries| tries.insert(trail.key.clone(), Vec::new()));
            trail.kept = Some(Kept { key: trail.key.clone(), traces: Arc::clone(traces) });
        }
        self.inner.keep(&mut delivery.inner, run).await
    }

    fn answer(
        &self,
        delivery: &Self::Delivery,
        result: &JobResult,
        epoch: u64,
    ) -> impl Future<Output = Result<(), QueueError>> + Send {
        // Not an `async fn`: that would hold the delivery, which need not be shared between threads.
        let since = SystemTime::now();
        let trail = self.traces.as_ref().zip(delivery.trail.as_ref());
        let trail = trail.map(|(traces, trail)| {
            let tries = traces.with_tries(|tries| tries.get_mut(&trail.key).map(std::mem::take));
            (traces, trail.context.clone(), (trail.sent, trail.pulled), tries.unwrap_or_default())
        });
        let answering = self.inner.answer(&delivery.inner, result, epoch);
        async move {
            let answered = answering.await;
            if let Some((traces, context, waited, tries)) = trail {
                let told = (since, SystemTime::now());
                traces.send(spans(&context, waited, &tries, told, (result, answered.is_ok())));
            }
            answered
        }
    }

    async fn ack(&self, delivery: Self::Delivery) -> Result<(), QueueError> {
        self.inner.ack(delivery.inner).await
    }

    async fn requeue(&self, delivery: Self::Delivery, why: Requeue) -> Result<(), QueueError> {
        self.inner.requeue(delivery.inner, why).await
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

impl<R: Runner> Runner for Traced<R> {
    async fn work(&self, job: &Assignment, progress: Progress, cancelled: Cancelled) -> Ended {
        let began = SystemTime::now();
        let ended = self.inner.work(job, progress, cancelled).await;
        if let Some(traces) = &self.traces {
            let key = JobKey::new(job.tenant.as_str(), job.id.as_str());
            traces.with_tries(|tries| {
                // Only of a job that is recorded.
                if let Some(tries) = tries.get_mut(&key) {
                    tries.push(Try::new(began, ended.result()));
                }
            });
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

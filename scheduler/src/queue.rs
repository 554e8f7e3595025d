//! Where jobs come from, and who is told when one is done with.
//!
//! A delivery is a token: whoever pulled it gives it back exactly once, to [`Queue::ack`] or to
//! [`Queue::requeue`]. One that is dropped, or whose process dies, is delivered again to whoever pulls next,
//! so a job is started at least once; that it has one result is the store's to see to.

pub(crate) mod amqp;
pub(crate) mod embedded;
mod fair;

pub use self::amqp::{AmqpDelivery, AmqpOptions, AmqpQueue, AmqpTenant, Counts, Neighbours};

use std::{error::Error, fmt, future::Future, time::Duration};

use pool::{Tier, Want};
use thiserror::Error;
use worker::{ErrorReport, Job, JobResult, Outcome};

use crate::{
    key::{BodyDigest, JobKey},
    traces::TraceParent,
};

/// A source of jobs.
pub trait Queue: Send + Sync + 'static {
    /// One job in the hands of who pulled it.
    type Delivery: fmt::Debug + Send + 'static;

    /// The next job, for a slot that is free now. Waits while there is none and more may come. `None`: none will
    /// come any more. Cancel safe.
    fn pull(&self) -> impl Future<Output = Result<Option<Pulled<Self::Delivery>>, QueueError>> + Send;

    /// The trace of which the job is a part, by what its sender said.
    fn traceparent(&self, _: &Self::Delivery) -> Option<TraceParent> {
        None
    }

    /// The job is about to run, for so long at most. Until it is given back, it must come back if this process dies and
    /// must not if it lives.
    fn keep(&self, delivery: &mut Self::Delivery, run: Duration) -> impl Future<Output = Keeping> + Send;

    /// Tells who sent the job how it ended, durably where the queue can. Comes before [`Queue::ack`], so a crash in
    /// between says it twice and never not at all. `epoch` is that of the attempt which ended so: what is said twice bears
    /// it twice.
    fn answer(
        &self,
        delivery: &Self::Delivery,
        result: &JobResult,
        epoch: u64,
    ) -> impl Future<Output = Result<(), QueueError>> + Send;

    /// The job has its result and is never delivered again.
    fn ack(&self, delivery: Self::Delivery) -> impl Future<Output = Result<(), QueueError>> + Send;

    /// The job is to be delivered again, here or elsewhere.
    fn requeue(
        &self,
        delivery: Self::Delivery,
        why: Requeue,
    ) -> impl Future<Output = Result<(), QueueError>> + Send;

    /// Whether jobs of a tier are left to others for now.
    fn rest(&self, tier: Tier, resting: bool);

    /// What waits, as far as the queue knows without asking every job.
    fn backlog(&self) -> Backlog;

    /// The same, told apart by what it waits for.
    fn waiting(&self) -> Vec<Waiting> {
        let Backlog { jobs, kinds } = self.backlog();
        let known: u64 = kinds.iter().map(|(_, jobs)| jobs).sum();
        let mut waiting: Vec<Waiting> = Vec::new();
        let of_kinds = kinds.iter().map(|(want, jobs)| (Some(want.tier), *jobs));
        for (tier, jobs) in of_kinds.chain([(None, jobs.saturating_sub(known))]) {
            match waiting.iter_mut().find(|lane| lane.tier == tier) {
                Some(lane) => lane.jobs += jobs,
                None => waiting.push(Waiting { tier, jobs, ..Waiting::default() }),
            }
        }
        waiting
    }

    /// Jobs that wait because no host offers their tier.
    fn parked(&self) -> Vec<(Tier, u64)> {
        Vec::new()
    }
}

/// A job that was pulled.
#[derive(Debug)]
pub struct Pulled<D> {
    /// To be given back once.
    pub delivery: D,
    /// What the job is called: decided by the way that it came.
    pub key: JobKey,
    /// What came, byte for byte: the same job sent twice has the same.
    pub body: BodyDigest,
    /// The job, or how it ends without being run.
    pub job: Result<Job, NoJob>,
    /// The tier whose jobs come this way, where ways differ by tier.
    pub tier: Option<Tier>,
    /// How long it waited here.
    pub queued: Duration,
}

/// What came is nothing that could be run: what its sender is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoJob {
    /// How it ends.
    pub outcome: Outcome,
    /// Why.
    pub report: ErrorReport,
}

impl From<ErrorReport> for NoJob {
    /// What is malformed is rejected.
    fn from(report: ErrorReport) -> Self {
        Self { outcome: Outcome::Rejected, report }
    }
}

/// Whether a job can be run for as long as it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeping {
    /// It can.
    Kept,
    /// Not now: the same job is being kept by another way. It is to be tried again after this time.
    NotNow(Duration),
    /// It cannot, here or anywhere; for this reason.
    Refused(ErrorReport),
}

/// Why a job goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    /// This host can make no sandbox for it; another may.
    Unable,
    /// This process takes no more jobs.
    Stopping,
    /// It cannot be started now; try again later.
    Later(Duration),
    /// It came the way of a weaker tier than it needs.
    Elsewhere(Tier),
}

/// What waits in a queue.
#[derive(Debug, Clone, Default)]
pub struct Backlog {
    /// Jobs that were not yet delivered.
    pub jobs: u64,
    /// How many of them need which kind of sandbox, as far as that is known.
    pub kinds: Vec<(Want, u64)>,
}

/// Jobs that wait for the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Whose they are, where that is known.
    pub tenant: Option<String>,
    /// The tier that they need, where that is known.
    pub tier: Option<Tier>,
    /// Whether they go before others of their tenant's.
    pub high: bool,
    /// How many.
    pub jobs: u64,
    /// How many jobs of the same tenant run here.
    pub running: u32,
    /// How many of them may.
    pub most: Option<u32>,
}

/// The queue does not do what it is asked.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The delivery was made in another life of the queue's connection: the job is somebody else's by now.
    #[error("the delivery of {0} is stale: the job has been given to somebody else")]
    Stale(JobKey),
    /// The queue itself fails.
    #[error("the queue failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

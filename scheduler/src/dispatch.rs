//! The engine: a few slots that pull, admit, run, store and acknowledge, one job each at a time.
//!
//! It talks to a queue, a store and a runner, and knows none of them by name. The order in which a job ends is the
//! order of promises: its result is durable before its delivery is acknowledged, so a crash repeats work and never
//! loses a result.

mod unable;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU32},
    time::Duration,
};

use egress::Egress;
use pool::Tier;
use thiserror::Error;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use worker::{Assignment, Ended, ErrorReport, Job, JobResult, Outcome, Progress, Remains, cancellation};

use crate::{
    admit::{Origin, admit},
    board::{Board, Entry},
    failpoint,
    key::JobKey,
    policy::Policies,
    queue::{Keeping, NoJob, Pulled, Queue, QueueError, Requeue},
    retry::{self, Next},
    runner::Runner,
    stop::{Stage, Stop, Stopper},
    store::{Attempt, Begun, Finished, Store, StoreError},
    ward::{Resting, Ward},
};

/// When a job is looked at again whose end was known and is not any more.
const FORGOTTEN: Duration = Duration::from_millis(100);
/// How often the runner hears what is still to come.
const FORECAST: Duration = Duration::from_millis(500);
/// Results of one slot that may be under way to the store. Nobody waits for them, so they must be few.
const UNDER_WAY: usize = 8;

/// Why no more jobs are run although there are some.
#[derive(Debug, Error)]
pub enum DispatchError {
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One job after the other gets no sandbox. Going on would spend them all.
    #[error("{jobs} jobs in a row got no sandbox; the last: {}: {}", last.what, last.why)]
    Infrastructure {
        /// How many.
        jobs: u32,
        /// What the last one was told.
        last: ErrorReport,
    },
}

/// Carries jobs from a queue through a runner into a store.
#[derive(Debug)]
pub struct Dispatcher<Q, S, R> {
    queue: Q,
    store: S,
    runner: R,
    policies: RwLock<Arc<Policies>>,
    slots: usize,
    board: Board,
    /// Whether a tier that makes no sandboxes rests. Otherwise the whole ends.
    rests: bool,
    /// Whether a result is told before its sandbox is gone, and so does not say how that went.
    tells_first: bool,
    ward: Ward,
    /// Jobs in a row that got no sandbox.
    in_vain: AtomicU32,
    halted: Mutex<Option<DispatchError>>,
}

impl<Q: Queue, S: Store, R: Runner> Dispatcher<Q, S, R> {
    /// A dispatcher with `slots` jobs at once.
    #[must_use]
    pub fn new(queue: Q, store: S, runner: R, policies: Policies, slots: usize) -> Self {
        Self {
            queue,
            store,
            runner,
            policies: RwLock::new(Arc::new(policies)),
            slots,
            board: Board::default(),
            rests: false,
            tells_first: false,
            ward: Ward::default(),
            in_vain: AtomicU32::new(0),
            halted: Mutex::new(None),
        }
    }

    /// Where there are others who can run the jobs: a tier on which no sandbox can be made rests, and is tried again.
    #[must_use]
    pub fn that_rests(self) -> Self {
        Self { rests: true, ..self }
    }

    /// Where somebody waits for each result: it is told while its sandbox ends.
    #[must_use]
    pub fn that_tells_first(self) -> Self {
        Self { tells_first: true, ..self }
    }

    /// Runs until the queue ends, until `stop` says so, or until it cannot go on. When it returns no job runs.
    pub async fn run(self: &Arc<Self>, stopper: &Stopper, stop: &Stop) -> Result<(), DispatchError> {
        // Before the first job is pulled: what comes is all that there is.
        let told = self.forecast(HashMap::new());
        let forecaster = tokio::spawn(Arc::clone(self).keep_forecasting(told));
        let aborter = tokio::spawn(Arc::clone(self).abort(stop.clone()));
        let nurse = tokio::spawn(Arc::clone(self).nurse());
        let mut slots = JoinSet::new();
        for _ in 0..self.slots {
            slots.spawn(Arc::clone(self).slot(stopper.clone(), stop.clone()));
        }
        while let Some(ended) = slots.join_next().await {
            if let Err(error) = ended {
                // The job's delivery was not acknowledged: it is not lost.
                tracing::error!(%error, "a slot failed");
                stopper.drain();
            }
        }
        for task in [forecaster, aborter, nurse] {
            task.abort();
            // Until then it holds this dispatcher.
            let _ = task.await;
        }
        match self.halted.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What is going on.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The tiers on which no sandbox can be made for now.
    #[must_use]
    pub fn resting(&self) -> Vec<Resting> {
        self.ward.all()
    }

    /// Which they are, now and after each change.
    #[must_use]
    pub fn rest_changes(&self) -> watch::Receiver<Vec<Tier>> {
        self.ward.changes()
    }

    /// Where its jobs come from.
    #[must_use]
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// Where its results go.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// What runs its jobs.
    #[must_use]
    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// How many jobs run at once.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Changes what the jobs of each tenant may ask for, from the next job on.
    pub fn set_policies(&self, policies: Policies) {
        let mut running = self.policies.write().unwrap_or_else(PoisonError::into_inner);
        *running = Arc::new(policies.going_on_from(&running));
    }

    fn policies(&self) -> Arc<Policies> {
        Arc::clone(&self.policies.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the three back.
    #[must_use]
    pub fn into_parts(self) -> (Q, S, R) {
        (self.queue, self.store, self.runner)
    }

    /// One job after the other.
    async fn slot(self: Arc<Self>, stopper: Stopper, mut stop: Stop) {
        let mut settling = JoinSet::new();
        let ended = loop {
            while settling.len() >= UNDER_WAY {
                settling.join_next().await;
            }
            let pulled = tokio::select! {
                biased;
                () = stop.reached(Stage::Draining) => break Ok(()),
                pulled = self.queue.pull() => pulled,
            };
            match pulled {
                Ok(Some(pulled)) => match self.serve(pulled, &stop).await {
                    // A free slot does not wait for the disk.
                    Ok(Some((served, remains))) => {
                        drop(settling.spawn(Arc::clone(&self).settle(served, stopper.clone())));
                        // But for its sandbox: a slot is a place on this host.
                        if let Some(remains) = remains {
                            let _logged = remains.clean().await;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => break Err(error),
                },
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        if let Err(error) = ended {
            self.halt(error, &stopper);
        }
        while settling.join_next().await.is_some() {}
    }

    /// Takes one job to its result. `None`: it went back, or needs none.
    async fn serve(
        &self,
        pulled: Pulled<Q::Delivery>,
        stop: &Stop,
    ) -> Result<Option<(Served<Q::Delivery>, Option<Remains>)>, DispatchError> {
        let Pulled { mut delivery, key, body, job, tier, queued } = pulled;
        failpoint::pass("pulled");
        let attempt = match self.store.begin(&key, &body).await? {
            Begun::Attempt(attempt) => attempt,
            Begun::Over => return self.repeat(delivery, &key).await.map(|()| None),
            Begun::Busy(again) => {
                self.queue.requeue(delivery, Requeue::Later(again)).await?;
                return Ok(None);
            }
            Begun::Taken => return self.refuse_taken(delivery, &key).await.map(|()| None),
        };
        let came = Came { job, tier, queued };
        let end = self.carry_out(&attempt, &mut delivery, came, stop).await;
        failpoint::pass("ended");
        match end {
            Ok(ended) => {
                let (result, remains) =
                    if self.tells_first { ended.apart() } else { (ended.clean().await, None) };
                Ok(Some((Served { delivery, attempt, result }, remains)))
            }
            Err(why) => {
                self.store.release(attempt).await?;
                failpoint::pass("released");
                self.queue.requeue(delivery, why).await?;
                Ok(None)
            }
        }
    }

    /// Whoever sends a job again hears how it ended the first time.
    async fn repeat(&self, delivery: Q::Delivery, key: &JobKey) -> Result<(), DispatchError> {
        let Some(ended) = self.store.ended(key).await? else {
            // It was forgotten just now, or it is taken over and will be over again.
            return Ok(self.queue.requeue(delivery, Requeue::Later(FORGOTTEN)).await?);
        };
        let epoch = ended.epoch;
        self.queue.answer(&delivery, &ended.told(key), epoch).await?;
        self.give_back(delivery).await
    }

    /// Whoever uses the id of another job hears so; the other job is untouched.
    async fn refuse_taken(&self, delivery: Q::Delivery, key: &JobKey) -> Result<(), DispatchError> {
        let report = ErrorReport::new(
            "the job is refused",
            format!("id: a job {key} with another body was sent before"),
            "give each job an id of its own; send the same job again with the same body",
        );
        let result = JobResult::never_started(&key.id, &key.tenant, Outcome::Rejected, report);
        self.queue.answer(&delivery, &result, 0).await?;
        self.give_back(delivery).await
    }

    /// The job is over. A delivery that is stale by now comes again, to whoever then finds the job over.
    async fn give_back(&self, delivery: Q::Delivery) -> Result<(), DispatchError> {
        match self.queue.ack(delivery).await {
            Err(QueueError::Stale(job)) => {
                tracing::info!(%job, "its delivery went stale while it ran");
                Ok(())
            }
            acked => Ok(acked?),
        }
    }

    /// What is decided without a sandbox, and else the job's run. `Err`: it goes back as if it had never begun.
    async fn carry_out(
        &self,
        attempt: &Attempt,
        delivery: &mut Q::Delivery,
        came: Came,
        stop: &Stop,
    ) -> Result<Ended, Requeue> {
        let Came { job, tier, queued } = came;
        let key = &attempt.job;
        let without_run = |outcome, report| {
            let result = JobResult::never_started(&key.id, &key.tenant, outcome, report);
            Ok(Ended::without_sandbox(result))
        };
        let mut job = match job {
            Ok(job) => job,
            Err(NoJob { outcome, report }) => return without_run(outcome, report),
        };
        if job.tier.is_none() && job.trust.is_none() {
            // Its author said it by the way that it was sent.
            job.tier = tier;
        }
        let (idempotent, max_attempts) = (job.idempotent, job.max_attempts.unwrap_or(retry::MAX_ATTEMPTS));
        let origin =
            Origin { id: key.id.clone(), tenant: key.tenant.clone(), attempt: attempt.number, queued };
        let assignment = match admit(job, origin, self.policies().of(&key.tenant)) {
            Ok(assignment) => assignment,
            Err(refusal) => return without_run(Outcome::Rejected, refusal.report()),
        };
        if tier.is_some_and(|tier| assignment.want.tier > tier) {
            return Err(Requeue::Elsewhere(assignment.want.tier));
        }
        if attempt.interrupted
            && let Some(report) = retry::interrupted(attempt.number, idempotent, max_attempts)
        {
            let lost = JobResult::never_started(&key.id, &key.tenant, Outcome::SandboxLost, report);
            return Ok(Ended::without_sandbox(JobResult { attempt: attempt.number - 1, ..lost }));
        }
        if attempt.cancelled {
            let report =
                ErrorReport::new("the job was cancelled", "somebody asked for it", "nothing was run");
            return without_run(Outcome::Cancelled, report);
        }
        match self.queue.keep(delivery, assignment.timeout).await {
            Keeping::Kept => {}
            Keeping::NotNow(again) => return Err(Requeue::Later(again)),
            Keeping::Refused(report) => return without_run(Outcome::Rejected, report),
        }
        self.try_out(attempt, &assignment, idempotent, stop).await
    }

    /// Runs the job, on one sandbox after the other while failures are ours. `Err`: as if it had never begun.
    async fn try_out(
        &self,
        attempt: &Attempt,
        assignment: &Assignment,
        idempotent: bool,
        stop: &Stop,
    ) -> Result<Ended, Requeue> {
        let key = &attempt.job;
        let (canceller, cancelled) = cancellation();
        let progress = Progress::default();
        let kind = (assignment.want.tier, assignment.want.image.to_string());
        let posted = Entry::new(kind, attempt.number, progress.clone(), canceller.clone());
        let _posted = self.board.post(key, posted);
        if stop.stage() == Stage::Aborting {
            // It was posted after all others were told.
            canceller.at_once();
        }
        let mut tried = 1;
        // What it reached counts, whatever became of its sandbox.
        let mut reached: Option<Egress> = None;
        loop {
            if self.ward.rests(assignment.want.tier) {
                return Err(Requeue::Unable);
            }
            let mut ended = self.runner.work(assignment, progress.clone(), cancelled.clone()).await;
            let result = ended.result();
            let never_ran = result.phases.run_us == 0;
            if result.outcome == Outcome::Cancelled
                && !self.board.is_cancelled(key)
                && (never_ran || idempotent)
            {
                ended.clean().await;
                return Err(Requeue::Stopping);
            }
            let no_sandbox = result.outcome == Outcome::InfraError && never_ran;
            match retry::next(result, idempotent, tried) {
                Next::Keep => {
                    if no_sandbox && self.is_unable(&assignment.want).await {
                        return Err(Requeue::Unable);
                    }
                    if tried > 1 {
                        let note = format!("this was sandbox {tried}: the ones before failed, not the job");
                        ended.result_mut().notes.push(note);
                    }
                    let result = ended.result_mut();
                    result.egress = of_all_tries(reached, result.egress.take());
                    return Ok(ended);
                }
                Next::Again(pause) => {
                    self.board.retried();
                    let outcome = result.outcome.name();
                    if no_sandbox {
                        // Whoever handles it tells it once: the tier that rests, or the job's result.
                        tracing::info!(job = %key, tried, outcome, "another sandbox is tried");
                    } else {
                        tracing::warn!(job = %key, tried, outcome, "another sandbox is tried");
                    }
                    reached = of_all_tries(reached, ended.clean().await.egress);
                    sleep(pause).await;
                }
            }
            tried += 1;
        }
    }

    /// Stores a result and acknowledges its delivery.
    async fn settle(self: Arc<Self>, served: Served<Q::Delivery>, stopper: Stopper) {
        let Served { delivery, attempt, result } = served;
        let settled = async {
            let (key, epoch) = (attempt.job.clone(), attempt.epoch);
            match self.store.finish(attempt, &result).await? {
                Finished::Stored => {
                    self.board.count(&result);
                    failpoint::pass("stored");
                    self.queue.answer(&delivery, &result, epoch).await?;
                    failpoint::pass("answered");
                    self.give_back(delivery).await
                }
                Finished::Stale => {
                    self.board.refused_late();
                    self.repeat(delivery, &key).await
                }
            }
        };
        match settled.await {
            Ok(()) => self.watch_infrastructure(result, &stopper),
            Err(error) => self.halt(error, &stopper),
        }
    }

    /// The first reason counts; the others follow from it.
    fn halt(&self, error: DispatchError, stopper: &Stopper) {
        self.halted.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        stopper.drain();
    }

    async fn abort(self: Arc<Self>, mut stop: Stop) {
        stop.reached(Stage::Aborting).await;
        self.board.cancel_all(true);
    }

    async fn keep_forecasting(self: Arc<Self>, mut told: Forecast) {
        loop {
            sleep(FORECAST).await;
            told = self.forecast(told);
        }
    }

    /// Tells the runner what is still to come, so that sandboxes are made ahead and none too many. `told` is what it
    /// was told before.
    fn forecast(&self, mut told: Forecast) -> Forecast {
        for (want, jobs) in self.queue.backlog().kinds {
            let kind = format!("{} {} {:?}", want.tier, want.image, want.limits);
            if told.insert(kind, jobs) != Some(jobs) {
                self.runner.expect(&want, jobs as usize);
            }
        }
        told
    }
}

/// What a job reached in its last try, and in those before.
fn of_all_tries(before: Option<Egress>, last: Option<Egress>) -> Option<Egress> {
    match (before, last) {
        (Some(before), Some(last)) => Some(last.after(before)),
        (before, last) => before.or(last),
    }
}

/// How many jobs of each kind are still to come.
type Forecast = HashMap<String, u64>;

/// A job as it came.
struct Came {
    job: Result<Job, NoJob>,
    tier: Option<Tier>,
    queued: Duration,
}

/// A job that has its result, which is not yet stored.
struct Served<D> {
    delivery: D,
    attempt: Attempt,
    result: JobResult,
}

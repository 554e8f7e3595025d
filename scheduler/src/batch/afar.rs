//! A batch whose jobs the hosts of a service run: each line is sent to the broker, and its result is waited for.
//!
//! The journal is that of any batch. What makes it safe to be killed is the service's: a job that is sent again, under the
//! same name and with the same body, runs once, and whoever sends it hears the first result. So whatever is in doubt (a
//! connection that broke, a process that died) is simply sent again.

use std::{
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex, task::JoinSet, time::sleep};
use worker::{Job, JobResult, Progress, cancellation, causes};

use super::{Batch, BatchError, alone};
use crate::{
    board::{Board, Entry},
    broker::{BrokerError, Producer, ReplyBy, Settings, Submission, routing_key},
    dispatch::DispatchError,
    failpoint,
    journal::Journal,
    key::JobKey,
    policy::Policy,
    queue::{Pulled, Queue, Requeue, embedded::EmbeddedQueue},
    stop::{Stage, Stop, Stopper},
    store::{Begun, Store, embedded::EmbeddedStore},
    tally::Tally,
};

/// How long after a failure the broker is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// A broker that has never taken a job is not asked more often.
const PATIENCE: u32 = 5;

/// A batch that others run.
#[derive(Debug)]
pub struct Afar {
    journal: Arc<Journal>,
    queue: Arc<EmbeddedQueue>,
    store: EmbeddedStore,
    board: Board,
    line: Line,
    slots: usize,
    total: u64,
    left: u64,
    failed: StdMutex<Option<BatchError>>,
}

/// The connection by which jobs go and results come, made anew when it breaks.
#[derive(Debug)]
struct Line {
    settings: Settings,
    tenant: String,
    current: Mutex<Option<Arc<Producer>>>,
    /// Failures before the first job was taken; `None` once one was.
    in_vain: StdMutex<Option<u32>>,
}

impl Line {
    async fn producer(&self) -> Result<Arc<Producer>, BrokerError> {
        let mut current = self.current.lock().await;
        if let Some(producer) = &*current {
            return Ok(Arc::clone(producer));
        }
        let producer = Arc::new(Producer::connect(&self.settings, &self.tenant, ReplyBy::Direct).await?);
        *current = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// Leaves a connection, unless somebody else has done so already.
    async fn give_up(&self, producer: &Arc<Producer>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, producer)) {
            *current = None;
        }
    }

    fn taken(&self) {
        *self.in_vain.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether there is no hope that it will be better.
    fn is_hopeless(&self) -> bool {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(times) = in_vain.as_mut() else { return false };
        *times += 1;
        *times > PATIENCE
    }

    /// Sends a job and waits for its result, for as long as that takes. `Err` if the broker has taken no job yet.
    async fn carry_out(&self, key: &JobKey, job: &Job) -> Result<JobResult, BrokerError> {
        let body = serde_json::to_vec(job).map_err(|error| BrokerError::NotTaken {
            what: format!("the job {key}"),
            why: error.to_string(),
        })?;
        let submission = Submission {
            body,
            key: routing_key(job),
            id: Some(key.id.clone()),
            expires: None,
            traceparent: None,
        };
        loop {
            match self.try_once(submission.clone()).await {
                Ok(result) => return Ok(result),
                Err(error) if self.is_hopeless() => return Err(error),
                Err(error) => {
                    tracing::info!(job = %key, error = %causes(&error), "it is sent once more");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn try_once(&self, submission: Submission) -> Result<JobResult, BrokerError> {
        let producer = self.producer().await?;
        let answered = async {
            let sent = producer.submit(submission).await?;
            self.taken();
            failpoint::pass("sent");
            sent.result().await
        };
        let unreadable = |why| BrokerError::NotTaken {
            what: "a result".to_owned(),
            why: format!("it cannot be read: {why}"),
        };
        match answered.await {
            Ok(answered) => answered.result.map_err(unreadable),
            Err(error) => {
                self.give_up(&producer).await;
                Err(error)
            }
        }
    }
}

impl Batch {
    /// Has the hosts of a service run the batch, as jobs of a tenant.
    pub async fn afar(self, broker: Settings, tenant: String) -> Result<Afar, BatchError> {
        let Self { journal, queue, slots, total, left, before, .. } = self;
        let (current, in_vain) = (Mutex::new(None), StdMutex::new(Some(0)));
        let line = Line { settings: broker, tenant, current, in_vain };
        line.producer().await?;
        let store = EmbeddedStore::new(Arc::clone(&journal));
        let board = Board::default();
        board.preset(before);
        let failed = StdMutex::new(None);
        Ok(Afar { journal, queue: Arc::new(queue), store, board, line, slots, total, left, failed })
    }
}

impl Afar {
    /// Runs until all jobs have their results or `stop` says so. At the first word no more jobs are sent; at the second,
    /// results are waited for no longer: who takes the batch up again hears them.
    pub async fn run(self: &Arc<Self>, stopper: &Stopper, stop: &Stop) -> Result<(), BatchError> {
        let mut slots = JoinSet::new();
        for _ in 0..self.slots {
            let (this, stopper, stop) = (Arc::clone(self), stopper.clone(), stop.clone());
            slots.spawn(async move {
                if let Err(error) = this.slot(stop).await {
                    // The first reason counts; the others follow from it.
                    this.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    // Twice: no other result comes either.
                    let _ = (stopper.more(), stopper.more());
                }
            });
        }
        while let Some(ended) = slots.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a slot failed");
                stopper.drain();
            }
        }
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    async fn slot(&self, mut stop: Stop) -> Result<(), BatchError> {
        loop {
            let pulled = tokio::select! {
                biased;
                () = stop.reached(Stage::Draining) => return Ok(()),
                pulled = self.queue.pull() => pulled.map_err(DispatchError::from)?,
            };
            match pulled {
                Some(pulled) => self.serve(pulled, &mut stop).await?,
                None => return Ok(()),
            }
        }
    }

    async fn serve(
        &self,
        pulled: Pulled<<Arc<EmbeddedQueue> as Queue>::Delivery>,
        stop: &mut Stop,
    ) -> Result<(), BatchError> {
        let Pulled { delivery, key, body, job, .. } = pulled;
        let begun = self.store.begin(&key, &body).await.map_err(DispatchError::from)?;
        let Begun::Attempt(attempt) = begun else {
            return Ok(self.queue.ack(delivery).await.map_err(DispatchError::from)?);
        };
        let result = match job {
            Err(no_job) => JobResult::never_started(&key.id, &key.tenant, no_job.outcome, no_job.report),
            Ok(job) => {
                let tier = Policy::default().tier(job.tier, job.trust);
                let (canceller, _cancelled) = cancellation();
                let entry =
                    Entry::new((tier, job.image.clone()), attempt.number, Progress::default(), canceller);
                let _posted = self.board.post(&key, entry);
                tokio::select! {
                    result = self.line.carry_out(&key, &job) => result?,
                    () = stop.reached(Stage::Aborting) => {
                        self.store.release(attempt).await.map_err(DispatchError::from)?;
                        let requeued = self.queue.requeue(delivery, Requeue::Stopping).await;
                        return Ok(requeued.map_err(DispatchError::from)?);
                    }
                }
            }
        };
        // The line is known by this, whatever tenant its job wished for.
        let result = JobResult { id: key.id.clone(), tenant: key.tenant.clone(), ..result };
        self.store.finish(attempt, &result).await.map_err(DispatchError::from)?;
        self.board.count(&result);
        Ok(self.queue.ack(delivery).await.map_err(DispatchError::from)?)
    }

    /// What is going on.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
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

    /// Writes what is still to be written, and gives what became of the jobs.
    pub async fn close(self: Arc<Self>) -> Result<Tally, BatchError> {
        let Self { journal, queue, store, board, .. } = alone(self).await;
        drop((queue, store));
        alone(journal).await.close()?;
        Ok(board.tally())
    }
}

//! One host of the service: jobs come from a queue that all hosts pull from, and end in the store that all hosts share.
//!
//! The dispatcher does the work. Around it, this lets whoever follows a job read along, hears of cancellations from other
//! hosts, says with each heartbeat what this host does, and tells the store which processes of this node are dead
//! for certain, so that nobody waits for their leases.

use std::{io, path::Path, sync::Arc, time::Duration};

use pool::{KindStatus, Want};
use tokio::{task::JoinSet, time::sleep};
use worker::{Assignment, Cancelled, Company, Discard, JobResult, Progress, Worker};

use crate::{
    board::Board,
    control::{Control, Identity},
    dispatch::{DispatchError, Dispatcher, Runner},
    key::JobKey,
    policy::Policies,
    queue::Queue,
    stop::{Stop, Stopper},
    store::redis::{HostFacts, RedisStore},
};

/// How often it is looked whether processes of this node have died.
const BURIALS: Duration = Duration::from_secs(1);

/// A host at work.
#[derive(Debug)]
pub struct Service<Q> {
    engine: Arc<Dispatcher<Q, RedisStore, Shown>>,
}

/// Runs jobs, and shows what they write to whoever follows them.
#[derive(Debug)]
pub struct Shown {
    worker: Worker,
    store: RedisStore,
}

impl Runner for Shown {
    async fn work(&self, job: &Assignment, progress: Progress, cancelled: Cancelled) -> JobResult {
        let key = JobKey::new(job.tenant.as_str(), job.id.as_str());
        let live = self.store.live_output(&key, job.attempt);
        let company = Company {
            stdout: Some(live.stdout()),
            stderr: Some(live.stderr()),
            progress,
            ..Company::default()
        };
        self.worker.work(job, company, &mut Discard, cancelled).await
    }

    fn expect(&self, want: &Want, jobs: usize) {
        Runner::expect(&self.worker, want, jobs);
    }

    fn standing(&self) -> Vec<KindStatus> {
        self.worker.pool().status()
    }
}

impl<Q: Queue> Service<Q> {
    /// A host with `slots` jobs at once. The store is that of the worker's pool's instance.
    #[must_use]
    pub fn new(queue: Q, store: RedisStore, worker: Worker, policies: Policies, slots: usize) -> Self {
        let shown = Shown { worker, store: store.clone() };
        Self { engine: Arc::new(Dispatcher::new(queue, store, shown, policies, slots)) }
    }

    /// Runs until the queue ends, until `stop` says so, or until it cannot go on. When it returns no job runs.
    pub async fn run(&self, stopper: &Stopper, stop: &Stop) -> Result<(), DispatchError> {
        let mut beside = JoinSet::new();
        beside.spawn(hear_cancellations(Arc::clone(&self.engine)));
        beside.spawn(bury_the_dead(Arc::clone(&self.engine)));
        let ran = self.engine.run(stopper, stop).await;
        beside.shutdown().await;
        ran
    }

    /// Changes what the jobs of each tenant may ask for, from the next job on.
    pub fn set_policies(&self, policies: Policies) {
        self.engine.set_policies(policies);
    }

    /// Changes what other hosts hear of this one.
    pub fn tell(&self, facts: HostFacts) {
        self.engine.store().set_facts(facts);
    }

    /// Lets other processes ask what goes on, and cancel jobs.
    pub fn listen(&self, run_dir: &Path, who: Identity, stop: Stop) -> io::Result<Control> {
        Control::listen(run_dir, who, &self.engine, stop)
    }

    /// What is going on.
    #[must_use]
    pub fn board(&self) -> &Board {
        self.engine.board()
    }

    /// Where its jobs come from.
    #[must_use]
    pub fn queue(&self) -> &Q {
        self.engine.queue()
    }

    /// Takes this host off the list, and gives back what ran the jobs. No job may run any more. `None` if somebody else
    /// still asks it something.
    pub async fn close(self) -> Option<(Q, Worker)> {
        self.engine.store().close().await;
        let (queue, store, shown) = Arc::into_inner(self.engine)?.into_parts();
        drop(store);
        Some((queue, shown.worker))
    }
}

async fn hear_cancellations<Q: Queue>(engine: Arc<Dispatcher<Q, RedisStore, Shown>>) {
    let mut cancellations = engine.store().cancellations();
    while let Some(job) = cancellations.next().await {
        if engine.board().cancel(&job) {
            tracing::info!(%job, "cancelled");
        }
    }
}

async fn bury_the_dead<Q: Queue>(engine: Arc<Dispatcher<Q, RedisStore, Shown>>) {
    loop {
        for instance in engine.runner().worker.pool().dead() {
            if let Err(error) = engine.store().bury(&instance.to_string()).await {
                // Their leases run out by themselves.
                tracing::warn!(%instance, %error, "cannot tell the store that a mayfly of this node is dead");
            }
        }
        sleep(BURIALS).await;
    }
}

//! One host of the service: jobs come from a queue that all hosts pull from, and end in the store that all hosts share.
//!
//! The dispatcher does the work. Around it, this lets whoever follows a job read along, hears of cancellations from other
//! hosts, says with each heartbeat what this host does, and tells the store which processes of this node are dead
//! for certain, so that nobody waits for their leases.

use std::{io, path::Path, sync::Arc, time::Duration};

use futures_util::future::FutureExt;
use pool::{KindStatus, Tier, Want};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use worker::{Assignment, Cancelled, Company, Discard, Ended, ErrorReport, Progress, Worker, causes};

use crate::{
    artifacts::ArtifactStore,
    board::Board,
    control::Control,
    dispatch::{DispatchError, Dispatcher},
    key::JobKey,
    live::{Form, Look, Pane, Sight, why_it_waits},
    metrics::{Metered, Metrics, Servers},
    policy::Policies,
    queue::{AmqpQueue, Queue},
    runner::Runner,
    stop::{Stop, Stopper},
    store::redis::{HostFacts, RedisStore},
    traces::{Traced, Traces},
    ward::{Resting, Tested},
    web::{Place, Web},
};

/// How often it is looked whether processes of this node have died.
const BURIALS: Duration = Duration::from_secs(1);

/// How often artifacts that are past their time are looked for.
const SWEEPS: Duration = Duration::from_secs(60 * 60);

type Engine<Q> = Dispatcher<Metered<Traced<Q>>, Metered<RedisStore>, Metered<Traced<Shown>>>;

/// A host at work.
#[derive(Debug)]
pub struct Service<Q> {
    engine: Arc<Engine<Q>>,
}

/// Runs jobs, shows what they write to whoever follows them, and keeps the files that they leave.
#[derive(Debug)]
pub struct Shown {
    worker: Worker,
    store: RedisStore,
    artifacts: Option<ArtifactStore>,
}

impl Runner for Shown {
    async fn work(&self, job: &Assignment, progress: Progress, cancelled: Cancelled) -> Ended {
        let key = JobKey::new(job.tenant.as_str(), job.id.as_str());
        let live = self.store.live_output(&key, job.attempt);
        let company = Company {
            stdout: Some(live.stdout()),
            stderr: Some(live.stderr()),
            progress,
            ..Company::default()
        };
        let Some(artifacts) = self.artifacts.as_ref().filter(|_| !job.artifacts.is_empty()) else {
            return self.worker.run(job, company, &mut Discard, cancelled).await;
        };
        match artifacts.of_job(&key, job.attempt) {
            Ok(mut kept) => {
                let mut ended = self.worker.run(job, company, &mut kept, cancelled).await;
                if let Err(error) = kept.seal().await {
                    ended
                        .result_mut()
                        .notes
                        .push(format!("the artifacts could not be kept: {}", causes(&error)));
                }
                ended
            }
            Err(error) => {
                let mut ended = self.worker.run(job, company, &mut Discard, cancelled).await;
                ended.result_mut().notes.push(format!("the artifacts could not be kept: {}", causes(&error)));
                ended
            }
        }
    }

    async fn try_one(&self, want: &Want) -> Result<(), ErrorReport> {
        self.worker.try_one(want).await
    }

    fn expect(&self, want: &Want, jobs: usize) {
        Runner::expect(&self.worker, want, jobs);
    }

    fn standing(&self) -> Vec<KindStatus> {
        self.worker.pool().status()
    }
}

impl<Q: Queue> Service<Q> {
    /// A host with `slots` jobs at once. The store is that of the worker's pool's instance. Without an artifact store the
    /// files that jobs leave are listed and not kept; without metrics nothing is counted, without traces nothing is
    /// traced.
    #[must_use]
    pub fn new(
        queue: Q,
        (store, artifacts): (RedisStore, Option<ArtifactStore>),
        worker: Worker,
        (policies, slots): (Policies, usize),
        (metrics, traces): (Option<Arc<Metrics>>, Option<Arc<Traces>>),
    ) -> Self {
        let shown = Shown { worker, store: store.clone(), artifacts };
        let (queue, shown) = (Traced::new(queue, traces.clone()), Traced::new(shown, traces));
        let queue = Metered::new(queue, metrics.clone());
        let (store, shown) = (Metered::new(store, metrics.clone()), Metered::new(shown, metrics));
        let engine = Dispatcher::new(queue, store, shown, policies, slots).that_rests().that_tells_first();
        Self { engine: Arc::new(engine) }
    }

    /// Runs until the queue ends, until `stop` says so, or until it cannot go on. When it returns no job runs.
    pub async fn run(&self, stopper: &Stopper, stop: &Stop) -> Result<(), DispatchError> {
        let mut beside = JoinSet::new();
        beside.spawn(hear_cancellations(Arc::clone(&self.engine)));
        beside.spawn(bury_the_dead(Arc::clone(&self.engine)));
        beside.spawn(tell_who_rests(Arc::clone(&self.engine)));
        beside.spawn(sweep_artifacts(Arc::clone(&self.engine)));
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

    /// The tiers on which this host can make no sandbox for now.
    #[must_use]
    pub fn resting(&self) -> Vec<Resting> {
        self.engine.resting()
    }

    /// Takes no job of a tier any more, as a selftest found it exposed; `None`: takes them again.
    pub fn refuse(&self, tier: Tier, why: Option<String>) {
        self.engine.refuse(tier, why);
    }

    /// Shows from now on what a selftest said of a tier.
    pub fn tested(&self, what: Tested) {
        self.engine.tested(what);
    }

    /// Which they are, now and after each change.
    #[must_use]
    pub fn rest_changes(&self) -> watch::Receiver<Vec<Tier>> {
        self.engine.rest_changes()
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
        Some((queue.into_inner().into_inner(), shown.into_inner().into_inner().worker))
    }
}

impl Service<AmqpQueue> {
    /// Lets other processes ask what goes on, and cancel jobs.
    pub fn listen(&self, run_dir: &Path, sight: &Sight, stop: &Stop) -> io::Result<Control> {
        Control::listen(run_dir, sight.who.clone(), &self.engine, self.look(sight, stop))
    }

    /// Shows from now on what goes on.
    #[must_use]
    pub fn expose(&self, place: Place, metrics: Arc<Metrics>, sight: &Sight, stop: &Stop) -> Web {
        place.answer(metrics, self.look(sight, stop))
    }

    fn look(&self, sight: &Sight, stop: &Stop) -> Look {
        let form = Form {
            servers: |engine: &Engine<AmqpQueue>| {
                let queue = engine.queue();
                let broker = queue.health().borrow().clone();
                let store = engine.store().health().borrow().clone();
                Some(Servers { broker, counts: queue.counts(), store })
            },
            follow: |engine, job| Some(engine.store().follow(job)),
            why: |engine, job, most| {
                let (store, job) = (RedisStore::clone(engine.store()), job.clone());
                Some(
                    async move { why_it_waits(&store, &job, most).await.map_err(|error| causes(&error)) }
                        .boxed(),
                )
            },
        };
        Arc::new(Pane::new(&self.engine, form, sight, stop))
    }
}

async fn hear_cancellations<Q: Queue>(engine: Arc<Engine<Q>>) {
    let mut cancellations = engine.store().cancellations();
    while let Some(job) = cancellations.next().await {
        if engine.board().cancel(&job) {
            tracing::info!(%job, "cancelled");
        }
    }
}

/// So that jobs of a tier which nobody offers for now are known to wait for one.
async fn tell_who_rests<Q: Queue>(engine: Arc<Engine<Q>>) {
    let mut changes = engine.rest_changes();
    loop {
        let tiers = changes.borrow_and_update().clone();
        engine.store().set_resting(&tiers);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn bury_the_dead<Q: Queue>(engine: Arc<Engine<Q>>) {
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

async fn sweep_artifacts<Q: Queue>(engine: Arc<Engine<Q>>) {
    let Some(artifacts) = engine.runner().artifacts.clone() else { return };
    loop {
        sleep(SWEEPS).await;
        match artifacts.sweep().await {
            Ok(swept) => tracing::info!(?swept, "artifacts that were past their time are gone"),
            Err(error) => tracing::warn!(%error, "cannot look for artifacts that are past their time"),
        }
    }
}

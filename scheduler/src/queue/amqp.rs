//! The queue of the service form: many tenants' jobs on RabbitMQ, pulled one at a time as slots become free.
//!
//! Two connections: by the *intake* jobs come and are acknowledged, by the *outlet* results go. One that is blocked by
//! an alarm of the broker cannot hold up the other. Each delivery has a channel of its own, so that what the broker
//! does to one (a job held longer than it allows) does nothing to the others.
//!
//! - `puller`: decides whose job is next ([`Fair`]) and gets it. It alone gets, so nothing is held that nobody asked for.
//! - `attend`: hears the bell that every new job rings, and looks now and then how much waits.
//! - `outlet`: results, replies, dead letters, jobs that go to another tier.
//!
//! - `claims`: jobs that run for longer than the broker lets them be held.
//! - `strays`: jobs of tiers that no host offers.
//!
//! The last two know the store, and for nothing else: that a job has one result is not seen to here.

mod answer;
mod attend;
mod claims;
mod counts;
mod decode;
mod delivery;
mod direct;
mod intake;
mod outlet;
mod puller;
mod state;
mod strays;
mod twins;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pool::Tier;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use worker::JobResult;

pub use self::{counts::Counts, delivery::AmqpDelivery};
pub(crate) use self::{decode::SENT, intake::unique};
use self::{outlet::Outlet, puller::Asked, state::State, strays::Sweeper};
use super::{Backlog, Keeping, Pulled, Queue, QueueError, Requeue, Waiting};
use crate::{
    broker::{Health, Settings, TenantLanes, Topology, link::Link},
    failpoint,
    store::redis::RedisStore,
    traces::TraceParent,
};

/// What a host takes from the broker.
#[derive(Debug, Clone)]
pub struct AmqpOptions {
    /// Whose jobs.
    pub tenants: Vec<AmqpTenant>,
    /// The tiers that this host offers. Queues of others are not touched.
    pub tiers: Vec<Tier>,
    /// The most bytes that the body of a job may have.
    pub largest_body: usize,
    /// The most bytes that a message with a result may have; a larger one goes without its output.
    pub largest_result: usize,
    /// How many jobs may be held here that cannot be started yet.
    pub held_most: usize,
    /// Whether it ends when nothing waits and nothing of it is in work. Otherwise it never ends.
    pub until_empty: bool,
}

/// What this host shares with the others beside the broker.
#[derive(Debug, Clone)]
pub struct Neighbours {
    /// Where hosts say what they offer, and where long jobs are claimed.
    pub store: RedisStore,
    /// What may take longer than this to run is claimed. What else a job is held for is in the rest of the broker's time.
    pub longest_held: Duration,
    /// How long a job without a deadline waits for a host that offers its tier.
    pub tier_wait: Duration,
}

/// One tenant, as far as the queue is concerned.
#[derive(Debug, Clone)]
pub struct AmqpTenant {
    /// Its name.
    pub name: String,
    /// The weakest tier on which its jobs run.
    pub floor: Tier,
    /// Its share of the slots against other tenants'; 1 or more.
    pub weight: u32,
    /// How many of its jobs may run on this host at once.
    pub max_running: Option<u32>,
}

impl AmqpOptions {
    /// Options for these tenants and tiers, with the usual limits.
    #[must_use]
    pub fn new(tenants: Vec<AmqpTenant>, tiers: Vec<Tier>) -> Self {
        Self {
            tenants,
            tiers,
            // 32 MiB of files and stdin, in base64, and the rest of the job.
            largest_body: 45 << 20,
            // Below what RabbitMQ 4 takes.
            largest_result: 8 << 20,
            held_most: 64,
            until_empty: false,
        }
    }

    /// What must be on the broker for these tenants.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let tenants: Vec<_> = self
            .tenants
            .iter()
            .map(|tenant| TenantLanes { name: tenant.name.clone(), floor: tenant.floor })
            .collect();
        Topology::new(&tenants)
    }
}

/// Jobs from RabbitMQ.
#[derive(Debug)]
pub struct AmqpQueue {
    state: Arc<State>,
    outlet: Arc<Link<Outlet>>,
    asks: mpsc::UnboundedSender<Asked>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for AmqpQueue {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl AmqpQueue {
    /// Begins. A broker that cannot be reached, or is not set up, is tried again and again: [`Self::health`] says why.
    /// Without `neighbours` no job must run for longer than the broker lets it be held, and jobs of tiers that nobody offers
    /// wait for ever. To be called inside a tokio runtime.
    #[must_use]
    pub fn open(settings: &Settings, options: AmqpOptions, neighbours: Option<Neighbours>) -> Self {
        let topology = options.topology();
        let state = Arc::new(State::new(settings, options, neighbours));
        let swept = topology.clone();
        let intake = Arc::new(intake::link(settings.clone(), topology, &state));
        let outlet = Arc::new(outlet::link(settings.clone(), &state));
        let (asks, asked) = mpsc::unbounded_channel();
        let mut tasks = vec![
            tokio::spawn(attend::attend(Arc::clone(&state), Arc::clone(&intake))),
            tokio::spawn(puller::serve(Arc::clone(&state), Arc::clone(&intake), Arc::clone(&outlet), asked)),
        ];
        if let Some(neighbours) = state.neighbours.clone() {
            tasks.push(tokio::spawn(claims::watch(neighbours.clone(), Arc::clone(&state))));
            let (outlet, state) = (Arc::clone(&outlet), Arc::clone(&state));
            let sweeper = Sweeper { neighbours, topology: swept, intake, outlet, state };
            tasks.push(tokio::spawn(sweeper.sweep_forever()));
        }
        Self { state, outlet, asks, tasks }
    }

    /// Waits until it is connected and has seen what waits.
    pub async fn ready(&self) {
        let mut swept = self.state.swept.subscribe();
        // The sender is our own.
        let _ = swept.wait_for(|epoch| *epoch > 0).await;
        self.outlet.session().await;
    }

    /// How its connections are, now and after each change.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.state.health.subscribe()
    }

    /// What it has done since it began.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state.tally.counts()
    }

    /// Whether it takes no more jobs for now. Those that are in work go on.
    pub fn pause(&self, paused: bool) {
        self.state.paused.store(paused, Ordering::Relaxed);
        self.state.changed.notify_one();
    }
}

impl Queue for AmqpQueue {
    type Delivery = AmqpDelivery;

    async fn pull(&self) -> Result<Option<Pulled<AmqpDelivery>>, QueueError> {
        let (tell, told) = oneshot::channel();
        // Whoever drops this future drops `told`, and a job that was found for it goes to the next who asks.
        let ended = || QueueError::Failed("the queue was closed".into());
        self.asks.send(tell).map_err(|_| ended())?;
        told.await.map_err(|_| ended())
    }

    fn traceparent(&self, delivery: &AmqpDelivery) -> Option<TraceParent> {
        decode::trace(&delivery.message.properties)
    }

    async fn keep(&self, delivery: &mut AmqpDelivery, run: Duration) -> Keeping {
        match &self.state.neighbours {
            Some(neighbours) => claims::keep(neighbours, delivery, run).await,
            None => Keeping::Kept,
        }
    }

    async fn answer(
        &self,
        delivery: &AmqpDelivery,
        result: &JobResult,
        epoch: u64,
    ) -> Result<(), QueueError> {
        answer::answer(&self.state, &self.outlet, delivery, (result, epoch)).await.map_err(QueueError::Failed)
    }

    async fn ack(&self, delivery: AmqpDelivery) -> Result<(), QueueError> {
        let acked = delivery.ack().await;
        self.state.tally.acked(acked.is_ok());
        failpoint::pass("acked");
        acked
    }

    async fn requeue(&self, delivery: AmqpDelivery, why: Requeue) -> Result<(), QueueError> {
        match why {
            Requeue::Stopping | Requeue::Unable => self.put_back(delivery).await,
            Requeue::Later(pause) if delivery.is_claimed() => delivery.put_back(pause).await,
            Requeue::Later(pause) => match self.state.hold(delivery, pause) {
                None => Ok(()),
                Some(too_many) => self.put_back(too_many).await,
            },
            Requeue::Elsewhere(tier) => self.send_on(delivery, tier).await,
        }
    }

    fn rest(&self, tier: Tier, resting: bool) {
        self.state.rest(tier, resting);
    }

    fn backlog(&self) -> Backlog {
        Backlog { jobs: self.state.fair().waiting(), kinds: Vec::new() }
    }

    fn waiting(&self) -> Vec<Waiting> {
        self.state.waiting()
    }

    fn parked(&self) -> Vec<(Tier, u64)> {
        self.state.parked()
    }
}

impl AmqpQueue {
    async fn put_back(&self, delivery: AmqpDelivery) -> Result<(), QueueError> {
        puller::put_back(&self.state, &self.outlet, delivery).await
    }

    async fn send_on(&self, delivery: AmqpDelivery, tier: Tier) -> Result<(), QueueError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| QueueError::Failed(error);
        let Some(lane) = delivery.lane_on(tier) else {
            return Err(failed(format!("{:?} came by no tenant's lane", delivery.key()).into()));
        };
        outlet::send_on(&self.outlet, &delivery, &lane.queue()).await.map_err(failed)?;
        self.state.tally.moved.fetch_add(1, Ordering::Relaxed);
        failpoint::pass("moved");
        delivery.ack().await?;
        if let Some(outlet) = self.outlet.now() {
            outlet.ring(&lane.queue()).await;
        }
        Ok(())
    }
}

/// How long whoever waits for nothing in particular waits before looking again.
const LOOK: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;

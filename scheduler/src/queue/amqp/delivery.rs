//! One job in the hands of who pulled it.

use std::{
    fmt, mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use pool::Tier;

use super::{
    decode::{Message, Way},
    intake::Intake,
    state::State,
};
use crate::{
    broker::{Lane, link::Session},
    key::JobKey,
    queue::{QueueError, fair::LaneNumber},
    store::redis::{Claim, RedisStore},
};

/// A job, to be given back once. Dropped without a word it is delivered again.
pub struct AmqpDelivery {
    key: JobKey,
    lane: LaneNumber,
    pub(super) message: Message,
    held: Held,
    state: Arc<State>,
    running: Option<Running>,
}

/// What brings the job back if this process dies.
enum Held {
    /// The broker, which has not heard that it is done with.
    Unacked(Unacked),
    /// The store. Boxed, as few are.
    Claimed(Box<(Claim, RedisStore)>),
}

/// A message that the broker waits to hear of.
struct Unacked {
    acker: Acker,
    /// Its own: when it closes, the broker takes back this job and no other.
    channel: Channel,
    session: Arc<Session<Intake>>,
}

/// One place of a tenant's, free again when this is dropped.
struct Running {
    state: Arc<State>,
    lane: LaneNumber,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.fair().done(self.lane);
        self.state.out.fetch_sub(1, Ordering::Relaxed);
        self.state.changed.notify_one();
    }
}

impl fmt::Debug for AmqpDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds may be secret.
        match &self.held {
            Held::Unacked(unacked) => write!(f, "{} of {:?}", self.key, unacked.session),
            Held::Claimed(_) => write!(f, "{}, claimed", self.key),
        }
    }
}

impl Unacked {
    /// Whether it is still ours.
    fn lives(&self) -> bool {
        self.session.lives() && self.acker.usable() && self.channel.status().connected()
    }

    /// Says that it is done with. `false`: it is somebody else's by now.
    async fn ack(self) -> bool {
        if !self.lives() {
            return false;
        }
        let acked = self.session.told(self.acker.ack(BasicAckOptions::default())).await;
        self.given_back(acked)
    }

    async fn put_back(self) {
        if !self.lives() {
            // The broker has taken it back already.
            return;
        }
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let put_back = self.session.told(self.acker.nack(requeue)).await;
        self.given_back(put_back);
    }

    fn given_back(self, done: bool) -> bool {
        if done {
            self.session.parts.reuse(self.channel);
        }
        done
    }
}

impl AmqpDelivery {
    /// A job that was got from a lane, which [`Fair`](crate::queue::fair::Fair) has counted as running.
    pub(super) fn new(
        state: &Arc<State>,
        session: Arc<Session<Intake>>,
        lane: LaneNumber,
        channel: Channel,
        acker: Acker,
        message: Message,
    ) -> Self {
        Self::running(state, lane, message, Held::Unacked(Unacked { acker, channel, session }))
    }

    /// A job of that lane that was claimed before, and is claimed by this process now.
    pub(super) fn of_claim(
        state: &Arc<State>,
        lane: LaneNumber,
        claim: Claim,
        store: RedisStore,
        message: Message,
    ) -> Self {
        Self::running(state, lane, message, Held::Claimed(Box::new((claim, store))))
    }

    fn running(state: &Arc<State>, lane: LaneNumber, message: Message, held: Held) -> Self {
        state.out.fetch_add(1, Ordering::Relaxed);
        let running = Some(Running { state: Arc::clone(state), lane });
        // Known when the message was read.
        let key = JobKey::new("", "");
        Self { key, lane, message, held, state: Arc::clone(state), running }
    }

    pub(super) fn named(&mut self, key: &JobKey) {
        self.key.clone_from(key);
    }

    pub(super) fn key(&self) -> &JobKey {
        &self.key
    }

    pub(super) fn lane(&self) -> LaneNumber {
        self.lane
    }

    /// The queue of its lane.
    pub(super) fn queue(&self) -> &str {
        self.state.queue_of(self.lane)
    }

    pub(super) fn way(&self) -> &Way {
        self.state.way_of(self.lane)
    }

    /// The lane of its tenant and class on another tier.
    pub(super) fn lane_on(&self, tier: Tier) -> Option<Lane> {
        match self.way() {
            Way::Lane(lane) => Some(Lane { tier, ..lane.clone() }),
            Way::Unroutable | Way::Returned => None,
        }
    }

    /// Whether it is still ours. Whether a claim is, shows when it is given back.
    pub(super) fn lives(&self) -> bool {
        match &self.held {
            Held::Unacked(unacked) => unacked.lives(),
            Held::Claimed(_) => true,
        }
    }

    pub(super) fn is_claimed(&self) -> bool {
        matches!(self.held, Held::Claimed(_))
    }

    /// From now on the claim brings it back, and the broker hears that it is done with. If the broker does not hear it, the
    /// message comes again, to somebody who finds the job begun.
    pub(super) async fn is_claimed_now(&mut self, claim: Claim, store: RedisStore) {
        let claimed = Held::Claimed(Box::new((claim, store)));
        if let Held::Unacked(unacked) = mem::replace(&mut self.held, claimed)
            && !unacked.ack().await
        {
            tracing::info!(job = %self.key, "it is claimed, and its message comes again");
        }
    }

    /// Waits until the connection by which it came has ended.
    pub(super) async fn session_ended(&self) {
        match &self.held {
            Held::Unacked(unacked) => unacked.session.ended().await,
            Held::Claimed(_) => std::future::pending().await,
        }
    }

    /// It does not run for now.
    pub(super) fn rest(&mut self) {
        self.running = None;
    }

    /// It is taken up again.
    pub(super) fn take_up(&mut self) {
        self.state.fair().again(self.lane);
        self.state.out.fetch_add(1, Ordering::Relaxed);
        self.running = Some(Running { state: Arc::clone(&self.state), lane: self.lane });
    }

    pub(super) async fn ack(self) -> Result<(), QueueError> {
        let in_time = match self.held {
            Held::Unacked(unacked) => unacked.ack().await,
            Held::Claimed(claimed) => {
                let (claim, store) = *claimed;
                store.forget(&claim).await.map_err(|error| QueueError::Failed(Box::new(error)))?
            }
        };
        if in_time { Ok(()) } else { Err(QueueError::Stale(self.key)) }
    }

    /// Whoever pulls next gets it; what is claimed, not before this time is over.
    pub(super) async fn put_back(self, after: Duration) -> Result<(), QueueError> {
        match self.held {
            Held::Unacked(unacked) => unacked.put_back().await,
            Held::Claimed(claimed) => {
                let (claim, store) = *claimed;
                // If another host has it, that is as good.
                store.hand_back(&claim, after).await.map_err(|error| QueueError::Failed(Box::new(error)))?;
            }
        }
        Ok(())
    }
}

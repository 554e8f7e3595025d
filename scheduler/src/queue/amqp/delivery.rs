//! One job in the hands of who pulled it.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
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
};

/// A job, to be given back once. Dropped without a word it is delivered again.
pub struct AmqpDelivery {
    key: JobKey,
    lane: LaneNumber,
    pub(super) message: Message,
    acker: Acker,
    /// Its own: when it closes, the broker takes back this job and no other.
    channel: Channel,
    session: Arc<Session<Intake>>,
    state: Arc<State>,
    running: Option<Running>,
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
        write!(f, "{} of {:?}", self.key, self.session)
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
        state.out.fetch_add(1, Ordering::Relaxed);
        let running = Some(Running { state: Arc::clone(state), lane });
        // Known when the message was read.
        let key = JobKey::new("", "");
        Self { key, lane, message, acker, channel, session, state: Arc::clone(state), running }
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

    /// Whether it is still ours.
    pub(super) fn lives(&self) -> bool {
        self.session.lives() && self.acker.usable() && self.channel.status().connected()
    }

    /// Waits until the connection by which it came has ended.
    pub(super) async fn session_ended(&self) {
        self.session.ended().await;
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
        if !self.lives() {
            return Err(QueueError::Stale(self.key));
        }
        let acked = self.acker.ack(BasicAckOptions::default()).await;
        self.given_back(matches!(acked, Ok(true)))
    }

    pub(super) async fn put_back(self) -> Result<(), QueueError> {
        if !self.lives() {
            // The broker has taken it back already.
            return Ok(());
        }
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let put_back = self.acker.nack(requeue).await;
        match self.given_back(matches!(put_back, Ok(true))) {
            Err(QueueError::Stale(_)) => Ok(()),
            done => done,
        }
    }

    fn given_back(self, done: bool) -> Result<(), QueueError> {
        if !done {
            return Err(QueueError::Stale(self.key));
        }
        self.session.parts.reuse(self.channel);
        Ok(())
    }
}

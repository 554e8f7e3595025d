//! Pulls one job after the other, each for somebody who asked for it.
//!
//! A request to the broker is never given up half-way: what it brings would be in nobody's hands until the connection
//! ends. So whoever asks is served by this task, and may go away at any time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};
use worker::causes;

use super::{
    LOOK, claims,
    counts::one,
    decode::{Message, Way, decode},
    delivery::AmqpDelivery,
    intake::{self, Intake},
    outlet::Outlet,
    state::State,
    strays::{self, Verdict},
};
use crate::{
    broker::link::{Link, Session},
    queue::{Pulled, QueueError, fair::LaneNumber},
};

/// Somebody who wants a job. `None` tells them that there will be none.
pub(super) type Asked = oneshot::Sender<Option<Pulled<AmqpDelivery>>>;

/// A copy of a job can be here before the job itself is where it can be got.
const SHORTLY: Duration = Duration::from_millis(20);

/// A host that is never idle hears the bell after so many pulls: who sends one job beside a flood waits for a number of
/// slots, however fast these are, and not for a look around.
const HEARD_EVERY: u64 = 8;

/// Serves those who ask, in their order.
pub(super) async fn serve(
    state: Arc<State>,
    intake: Arc<Link<Intake>>,
    outlet: Arc<Link<Outlet>>,
    mut asked: mpsc::UnboundedReceiver<Asked>,
) {
    let puller = Puller { state, intake, outlet };
    while let Some(mut who) = asked.recv().await {
        let Some(mut found) = puller.find(&mut who).await else { continue };
        // Who gave up meanwhile leaves it to the next.
        while let Err(unwanted) = who.send(found) {
            match (asked.try_recv(), unwanted) {
                (Ok(next), unwanted) => (who, found) = (next, unwanted),
                (Err(_), Some(unwanted)) => {
                    // If that fails, the broker has it already.
                    let _ = put_back(&puller.state, &puller.outlet, unwanted.delivery).await;
                    break;
                }
                (Err(_), None) => break,
            }
        }
    }
}

struct Puller {
    state: Arc<State>,
    intake: Arc<Link<Intake>>,
    outlet: Arc<Link<Outlet>>,
}

impl Puller {
    /// Finds a job, or that there will be none. Outer `None`: who asked has given up.
    async fn find(&self, who: &mut Asked) -> Option<Option<Pulled<AmqpDelivery>>> {
        loop {
            if who.is_closed() {
                return None;
            }
            let held_until = match self.state.take_held() {
                Ok(mut delivery) => {
                    delivery.take_up();
                    return Some(Some(self.read(delivery)));
                }
                Err(until) => until,
            };
            let Some(session) = self.may_pull() else {
                self.wait(who, Some(Instant::now() + LOOK)).await;
                continue;
            };
            let next = self.state.fair().next();
            match next {
                Some(lane) => {
                    if let Some(delivery) = self.get(&session, lane).await
                        && let Some(pulled) = self.look_into(delivery).await
                    {
                        return Some(Some(pulled));
                    }
                }
                None if self.state.options.until_empty && self.is_over().await => return Some(None),
                None => {
                    self.state.idle.notify_one();
                    self.wait(who, held_until).await;
                }
            }
        }
    }

    /// The session to pull by. None while a result could not be told: what runs then is enough.
    fn may_pull(&self) -> Option<Arc<Session<Intake>>> {
        let can_answer = self.outlet.now().is_some_and(|outlet| !outlet.blocked());
        if !can_answer || self.state.paused.load(Ordering::Relaxed) {
            return None;
        }
        self.intake.now()
    }

    async fn wait(&self, who: &mut Asked, until: Option<Instant>) {
        let later = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.state.changed.notified() => {}
            () = who.closed() => {}
            () = later => {}
        }
    }

    async fn get(&self, session: &Arc<Session<Intake>>, lane: LaneNumber) -> Option<AmqpDelivery> {
        if self.state.fair().orphans(lane) > 0
            && let Some(neighbours) = &self.state.neighbours
            && let Some(delivery) = claims::take(neighbours, &self.state, lane).await
        {
            return Some(delivery);
        }
        let version = self.state.fair().version(lane);
        let got = intake::get(session, self.state.queue_of(lane)).await;
        match got {
            Ok(Some((channel, got))) => {
                self.state.fair().found(lane, u64::from(got.message_count));
                one(&self.state.tally.pulled);
                if self.state.tally.pulled.load(Ordering::Relaxed).is_multiple_of(HEARD_EVERY) {
                    self.state.busy.notify_one();
                }
                let (message, acker) = Message::of(got.delivery);
                let session = Arc::clone(session);
                Some(AmqpDelivery::new(&self.state, session, lane, channel, acker, message))
            }
            Ok(None) => {
                self.state.fair().missed(lane, version);
                one(&self.state.tally.pulled_nothing);
                self.look_again_shortly(lane, version);
                None
            }
            Err(error) => {
                self.state.fair().missed(lane, version);
                session.fail(causes(&error));
                None
            }
        }
    }

    /// If it was a ring that led here, and not an old count.
    fn look_again_shortly(&self, lane: LaneNumber, version: u64) {
        if version == 0 {
            return;
        }
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            sleep(SHORTLY).await;
            let mut fair = state.fair();
            if fair.came_once_more(lane, version) {
                drop(fair);
                state.changed.notify_one();
            }
        });
    }

    /// What was got, unless it is one that the broker returned and that waits again.
    async fn look_into(&self, mut delivery: AmqpDelivery) -> Option<Pulled<AmqpDelivery>> {
        let Some(neighbours) = self.state.neighbours.as_ref().filter(|_| *delivery.way() == Way::Returned)
        else {
            return Some(self.read(delivery));
        };
        match strays::judge(neighbours, &mut delivery, &self.outlet).await {
            Ok(Verdict::AsItIs) => Some(self.read(delivery)),
            Ok(Verdict::GivenUp(no_job)) => Some(Pulled { job: Err(no_job), ..self.read(delivery) }),
            Ok(Verdict::Waits) => {
                // If the broker does not hear it, the job comes twice and is told apart by its id.
                let _ = delivery.ack().await;
                None
            }
            Err(error) => {
                tracing::warn!(error = %causes(&*error), "a job that was returned is looked at again");
                let _ = put_back(&self.state, &self.outlet, delivery).await;
                sleep(SHORTLY).await;
                None
            }
        }
    }

    fn read(&self, mut delivery: AmqpDelivery) -> Pulled<AmqpDelivery> {
        let largest = self.state.options.largest_body;
        let decoded = decode(&delivery.message, delivery.way(), largest, SystemTime::now());
        delivery.named(&decoded.key);
        let (key, body, job) = (decoded.key, decoded.body, decoded.job);
        Pulled { delivery, key, body, job, tier: decoded.tier, queued: decoded.queued }
    }

    /// Whether nothing waits and nothing may come back, by a fresh look at all lanes.
    async fn is_over(&self) -> bool {
        let busy = || self.state.out.load(Ordering::Relaxed) > 0 || !self.state.holds_none();
        if busy() {
            return false;
        }
        let mut swept = self.state.swept.subscribe();
        let times = *swept.borrow_and_update();
        self.state.sweep.notify_one();
        tokio::select! {
            // The first one that ends may have begun before we asked.
            _ = swept.wait_for(|now| *now > times + 1) => {}
            () = async { loop { sleep(SHORTLY).await; self.state.sweep.notify_one(); } } => {}
        }
        !busy() && self.state.fair().waiting() == 0
    }
}

/// Puts a job back, for whoever pulls next.
pub(super) async fn put_back(
    state: &State,
    outlet: &Link<Outlet>,
    delivery: AmqpDelivery,
) -> Result<(), QueueError> {
    let lane = delivery.lane();
    if delivery.is_claimed() {
        one(&state.tally.requeued);
        return delivery.put_back(Duration::ZERO).await;
    }
    state.fair().goes_back(lane, false);
    let done = delivery.put_back(Duration::ZERO).await;
    state.fair().goes_back(lane, true);
    state.changed.notify_one();
    one(&state.tally.requeued);
    // Nothing else tells other hosts that it is there again.
    if let Some(outlet) = outlet.now() {
        outlet.ring(state.queue_of(lane)).await;
    }
    done
}

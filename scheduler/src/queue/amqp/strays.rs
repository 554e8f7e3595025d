//! Jobs of tiers that no host offers.
//!
//! No host pulls their lanes, and whoever took one only to put it back would burn its deliveries. So one host, whose
//! turn it is by the store, *parks* them: each is published, confirmed, to the queue of parked jobs of its tier, and then
//! acknowledged where it was. There the broker counts the time, each job's own deadline or [`Neighbours::tier_wait`].
//! If a host with that tier comes meanwhile, the jobs go back to their lanes, by the same two steps. Whose time is over
//! the broker returns, and whoever gets it looks once more whether the tier is offered now ([`judge`]); if not, it is
//! answered, and dead-lettered. A crash between two steps leaves a job in two places, which the store tells apart by its
//! id; it is never in none.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{
    Acker, BasicProperties, Channel,
    options::BasicAckOptions,
    types::{AMQPValue, FieldTable},
};
use pool::Tier;
use tokio::time::sleep;
use worker::{ErrorReport, Outcome, causes};

use super::{
    Neighbours, claims,
    decode::{DEADLINE, Message, Way, deadline, decode},
    delivery::AmqpDelivery,
    intake::{self, Intake},
    outlet::{Outgoing, Outlet, Went},
    state::State,
};
use crate::{
    broker::{
        Lane, Topology,
        declare::depth,
        link::{Link, Session},
        names::{parked_queue, tier_of_parked},
        properties::{header, number, with_header, with_text},
    },
    policy::Policy,
    queue::NoJob,
};

/// The queue that a parked job goes back to.
const LANE: &str = "mayfly-lane";
/// Rounds in the time that a job waits, and how long one takes at most and at least.
const ROUNDS: u32 = 10;
const LONGEST_ROUND: Duration = Duration::from_secs(15);
const SHORTEST_ROUND: Duration = Duration::from_secs(1);
/// What one look costs in time.
const EACH: Duration = Duration::from_millis(5);

type Failed = Box<dyn Error + Send + Sync>;

/// Parks jobs, and brings them back.
pub(super) struct Sweeper {
    pub(super) neighbours: Neighbours,
    pub(super) topology: Topology,
    pub(super) intake: Arc<Link<Intake>>,
    pub(super) outlet: Arc<Link<Outlet>>,
    pub(super) state: Arc<State>,
}

/// Both connections, as they are now.
struct Hands {
    intake: Arc<Session<Intake>>,
    outlet: Arc<Session<Outlet>>,
}

impl Sweeper {
    /// Sweeps when it is this host's turn.
    pub(super) async fn sweep_forever(self) {
        let round = (self.neighbours.tier_wait / ROUNDS).clamp(SHORTEST_ROUND, LONGEST_ROUND);
        loop {
            // Not at once: this host has yet to be heard.
            sleep(round).await;
            if let Err(error) = self.sweep(round).await {
                tracing::warn!(error = %causes(&*error), "jobs of tiers that nobody offers cannot be looked after");
            }
            self.count().await;
        }
    }

    /// Sees how many are parked, whosever turn it was. Where the broker is away it is said otherwise.
    async fn count(&self) {
        let Some(intake) = self.intake.now() else { return };
        for tier in Tier::ALL {
            let queue = parked_queue(tier);
            let depth = depth(&intake.parts.looking, &queue);
            if let Ok(jobs) = intake.connected.in_time("counting jobs that nobody runs", depth).await {
                self.state.set_parked(tier, jobs);
            }
        }
    }

    async fn sweep(&self, round: Duration) -> Result<(), Failed> {
        let (Some(intake), Some(outlet)) = (self.intake.now(), self.outlet.now()) else { return Ok(()) };
        if outlet.blocked() || !self.neighbours.store.turn("strays", round).await? {
            return Ok(());
        }
        let hands = Hands { intake, outlet };
        let offered = self.neighbours.store.offered().await?;
        for tier in Tier::ALL {
            if offered.contains(&tier) {
                hands.bring_back(tier).await?;
            }
        }
        let wait = self.neighbours.tier_wait;
        for lane in self.topology.lanes().filter(|lane| !offered.contains(&lane.tier)) {
            let parked = hands.park_lane(&self.neighbours, &lane, wait).await?;
            if parked > 0 {
                tracing::info!(%lane, parked, "no host offers the tier of these jobs; they wait for one");
            }
            sleep(EACH).await;
        }
        self.park_orphans(&hands, &offered).await
    }

    /// Claims of jobs whose tier nobody offers any more: they are with the broker again, and then claimed no more.
    async fn park_orphans(&self, hands: &Hands, offered: &[Tier]) -> Result<(), Failed> {
        let store = &self.neighbours.store;
        for (queue, count) in store.orphans().await? {
            let Some(lane) = Lane::of_queue(&queue).filter(|lane| !offered.contains(&lane.tier)) else {
                continue;
            };
            for claim in store.take_expired(&queue, count as usize).await? {
                let Some(message) = claims::message(&claim.record) else { continue };
                hands.park(&message, &lane, self.neighbours.tier_wait).await?;
                store.forget(&claim).await?;
            }
        }
        Ok(())
    }
}

impl Hands {
    /// How many jobs are parked.
    async fn park_lane(&self, neighbours: &Neighbours, lane: &Lane, wait: Duration) -> Result<u64, Failed> {
        let queue = lane.queue();
        let waiting = self.waiting(&queue).await?;
        for parked in 0..waiting {
            let Some(got) = intake::get(&self.intake, &queue).await? else { return Ok(parked) };
            let (channel, (message, acker)) = (got.0, Message::of(got.1.delivery));
            let decoded = decode(&message, &Way::Lane(lane.clone()), usize::MAX, SystemTime::now());
            let needed = decoded.job.as_ref().map_or(lane.tier, |job| match (job.tier, job.trust) {
                (None, None) => lane.tier,
                (tier, trust) => Policy { floor: lane.tier, ..Policy::default() }.tier(tier, trust),
            });
            if needed == lane.tier {
                self.park(&message, lane, wait).await?;
            } else {
                // It came by the lane of a weaker tier than it needs.
                self.send(
                    &Lane { tier: needed, ..lane.clone() }.queue(),
                    &message,
                    message.properties.clone(),
                )
                .await?;
            }
            // Whoever asks where it stands hears what it waits for.
            neighbours.store.submitted(&decoded.key, Some(needed)).await?;
            self.done(channel, acker).await?;
        }
        Ok(waiting)
    }

    async fn bring_back(&self, tier: Tier) -> Result<(), Failed> {
        let queue = parked_queue(tier);
        let waiting = self.waiting(&queue).await?;
        for _ in 0..waiting {
            let Some(got) = intake::get(&self.intake, &queue).await? else { break };
            let (channel, (message, acker)) = (got.0, Message::of(got.1.delivery));
            if let Some(lane) = lane_of_parked(&message) {
                self.unpark(&message, &lane).await?;
            } else {
                // Nobody but mayfly can write there.
                tracing::error!(%queue, "a parked job does not say where it came from");
            }
            self.done(channel, acker).await?;
        }
        if waiting > 0 {
            tracing::info!(%tier, waiting, "the tier is offered again; its jobs go back to their lanes");
        }
        Ok(())
    }

    async fn park(&self, message: &Message, lane: &Lane, wait: Duration) -> Result<(), Failed> {
        let properties = parked(&message.properties, lane, wait, now());
        self.send(&parked_queue(lane.tier), message, properties).await
    }

    async fn unpark(&self, message: &Message, lane: &Lane) -> Result<(), Failed> {
        let queue = lane.queue();
        self.send(&queue, message, unparked(&message.properties, now())).await?;
        self.outlet.ring(&queue).await;
        Ok(())
    }

    async fn send(&self, queue: &str, message: &Message, properties: BasicProperties) -> Result<(), Failed> {
        let properties = properties.with_delivery_mode(2);
        let outgoing = Outgoing { exchange: "", key: queue, body: &message.body, properties };
        match self.outlet.publish_alone(&outgoing).await? {
            Went::Somewhere => Ok(()),
            Went::Nowhere => Err(format!("there is no queue {queue}; `mayfly setup` makes it").into()),
            Went::Refused => Err(format!("the queue {queue} is full").into()),
        }
    }

    async fn waiting(&self, queue: &str) -> Result<u64, Failed> {
        let depth = depth(&self.intake.parts.looking, queue);
        Ok(self.intake.connected.in_time("looking for jobs that nobody runs", depth).await?)
    }

    /// It is elsewhere now.
    async fn done(&self, channel: Channel, acker: Acker) -> Result<(), Failed> {
        if !self.intake.told(acker.ack(BasicAckOptions::default())).await {
            return Err("the connection was lost".into());
        }
        self.intake.parts.reuse(channel);
        Ok(())
    }
}

/// What becomes of a job that the broker returned.
pub(super) enum Verdict {
    /// It is read as it is.
    AsItIs,
    /// No host offers its tier, and its time is over.
    GivenUp(NoJob),
    /// It waits again, by another way, and is done with here.
    Waits,
}

/// Looks whether the time of a returned job ran out because nobody offers its tier. One that was parked is called by
/// its lane from here on.
pub(super) async fn judge(
    neighbours: &Neighbours,
    delivery: &mut AmqpDelivery,
    outlet: &Link<Outlet>,
) -> Result<Verdict, Failed> {
    let message = &mut delivery.message;
    let was_parked = tier_of_parked(&message.key).is_some();
    let lane = if was_parked { lane_of_parked(message) } else { Lane::of_queue(&message.key) };
    let Some(lane) = lane else { return Ok(Verdict::AsItIs) };
    if was_parked {
        message.key = lane.queue();
    } else if super::decode::death(&message.properties).as_deref() != Some("expired") {
        return Ok(Verdict::AsItIs);
    }
    let offered = neighbours.store.offered().await?.contains(&lane.tier);
    let own = number(&message.properties, DEADLINE).filter(|_| was_parked);
    let over = own.is_none_or(|deadline| deadline <= now());
    if was_parked && (offered || !over) {
        let Some(outlet) = outlet.now() else { return Err("the broker is away".into()) };
        let (queue, properties) = if offered {
            (lane.queue(), unparked(&message.properties, now()))
        } else {
            (parked_queue(lane.tier), parked(&message.properties, &lane, neighbours.tier_wait, now()))
        };
        let properties = properties.with_delivery_mode(2);
        let outgoing = Outgoing { exchange: "", key: &queue, body: &message.body, properties };
        if outlet.publish_alone(&outgoing).await? != Went::Somewhere {
            return Err(format!("the queue {queue} does not take it").into());
        }
        outlet.ring(&queue).await;
        return Ok(Verdict::Waits);
    }
    if offered {
        return Ok(Verdict::AsItIs);
    }
    let waited = if was_parked && own.is_none() {
        format!("it waited {} for one", humantime_serde::re::humantime::format_duration(neighbours.tier_wait))
    } else {
        "its deadline passed while it waited for one".to_owned()
    };
    let report = ErrorReport::new(
        "the job was given up",
        format!("no host offers tier {}, and {waited}", lane.tier),
        "start a host that offers it (`mayfly doctor` says what it needs), and send the job again with another id: \
         `mayfly dlq replay`",
    );
    Ok(Verdict::GivenUp(NoJob { outcome: Outcome::InfraError, report }))
}

fn lane_of_parked(message: &Message) -> Option<Lane> {
    Lane::of_queue(header(&message.properties, LANE)?)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// As it was sent, with the time that it has, and where it goes after.
fn parked(properties: &BasicProperties, lane: &Lane, wait: Duration, now: i64) -> BasicProperties {
    let counted_anew = || {
        let expiration: i64 = properties.expiration().as_ref()?.as_str().parse().ok()?;
        now.checked_add(expiration)
    };
    let own = deadline(properties).or_else(counted_anew);
    let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    // No job stays for longer than this at once: the broker lets them go in their order only.
    let left = own.map_or(wait, |deadline| (deadline - now).clamp(0, wait));
    let mut properties = with_text(without_the_brokers(properties), LANE, &lane.queue());
    if let Some(own) = own {
        properties = with_header(properties, DEADLINE, AMQPValue::LongLongInt(own));
    }
    properties.with_expiration(left.to_string().into())
}

/// With its own deadline only, if it has one.
fn unparked(properties: &BasicProperties, now: i64) -> BasicProperties {
    let own = number(properties, DEADLINE);
    let properties = without_the_brokers(properties);
    match own {
        Some(own) => properties.with_expiration((own - now).max(0).to_string().into()),
        None => without_expiration(&properties),
    }
}

/// What the broker wrote of the way so far is not for the next queue.
fn without_the_brokers(properties: &BasicProperties) -> BasicProperties {
    let mut kept = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if !name.as_str().starts_with(claims::BROKERS) && name.as_str() != LANE {
            kept.insert(name.clone(), value.clone());
        }
    }
    properties.clone().with_headers(kept)
}

/// A property that is set cannot be unset.
fn without_expiration(properties: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($get:ident $set:ident,)+) => {
            $(if let Some(value) = properties.$get().clone() { kept = kept.$set(value); })+
        };
    }
    keep! {
        content_type with_content_type,
        content_encoding with_content_encoding,
        headers with_headers,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        message_id with_message_id,
        timestamp with_timestamp,
        kind with_type,
        app_id with_app_id,
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(600);
    const NOW: i64 = 1_700_000_000_000;

    fn lane() -> Lane {
        Lane { tenant: "acme".into(), tier: Tier::Vm, high: true }
    }

    fn expiration(properties: &BasicProperties) -> Option<i64> {
        properties.expiration().as_ref().map(|text| text.as_str().parse().unwrap())
    }

    #[test]
    fn a_job_without_a_deadline_waits_for_the_time_that_is_set_and_goes_back_without_one() {
        let sent = BasicProperties::default().with_message_id("job".into());
        let parked = parked(&sent, &lane(), WAIT, NOW);
        assert_eq!((expiration(&parked), number(&parked, DEADLINE)), (Some(600_000), None));
        assert_eq!(header(&parked, LANE), Some("mayfly.jobs.acme.vm.high"));
        let back = unparked(&parked, NOW + 1000);
        assert_eq!((expiration(&back), header(&back, LANE)), (None, None));
        assert_eq!(back.message_id().as_ref().unwrap().as_str(), "job");
    }

    #[test]
    fn a_job_with_a_deadline_keeps_it_and_is_looked_at_in_between() {
        for (expires, first) in [(5_000, 5_000), (3_600_000, 600_000)] {
            // Who does not say when it was sent has the whole time from here on.
            let sent = BasicProperties::default().with_expiration(expires.to_string().into());
            let once = parked(&sent, &lane(), WAIT, NOW);
            assert_eq!((expiration(&once), number(&once, DEADLINE)), (Some(first), Some(NOW + expires)));
            let again = parked(&once, &lane(), WAIT, NOW + 600_000);
            assert_eq!(number(&again, DEADLINE), Some(NOW + expires), "it is not counted anew");
            assert_eq!(expiration(&unparked(&again, NOW + 4_000)), Some(expires - 4_000));
        }
    }

    #[test]
    fn what_the_broker_wrote_stays_behind() {
        let sent = with_text(with_text(BasicProperties::default(), "x-death", "?"), "traceparent", "1");
        let parked = parked(&sent, &lane(), WAIT, NOW);
        assert_eq!((header(&parked, "x-death"), header(&parked, "traceparent")), (None, Some("1")));
    }
}

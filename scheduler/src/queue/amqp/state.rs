//! What the queue knows, whichever connection it has.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use pool::Tier;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    AmqpOptions, Neighbours, counts::Tally, decode::Way, delivery::AmqpDelivery, direct::DirectReplies,
};
use crate::{
    broker::{
        Health, Lane, Settings,
        names::{BELL, RETURNED, UNROUTABLE, tenant_of_exchange},
    },
    queue::{
        Waiting,
        fair::{self, Fair, LaneNumber, Right},
    },
};

/// The state.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) options: AmqpOptions,
    /// `None`: no job is claimed, however long it runs, and none is parked.
    pub(super) neighbours: Option<Neighbours>,
    lanes: Vec<(Way, String)>,
    by_queue: HashMap<String, LaneNumber>,
    /// Where a routing key leads, by exchange.
    routes: HashMap<(String, String), LaneNumber>,
    fair: Mutex<Fair>,
    held: Mutex<Vec<Held>>,
    /// Deliveries in somebody's hands.
    pub(super) out: AtomicUsize,
    pub(super) paused: AtomicBool,
    /// There may be something to pull, or somebody who can take it.
    pub(super) changed: Notify,
    /// Nothing is known to wait, so the bell may ring again.
    pub(super) idle: Notify,
    /// Much waits, and it is time to hear what else came.
    pub(super) busy: Notify,
    /// Look at all lanes now.
    pub(super) sweep: Notify,
    /// The epoch in which all lanes were looked at last, and how often they were.
    pub(super) swept: watch::Sender<u64>,
    pub(super) health: watch::Sender<Health>,
    pub(super) tally: Tally,
    /// How many jobs were parked when it was last looked.
    parked: [AtomicU64; Tier::ALL.len()],
    pub(super) direct: DirectReplies,
}

/// A job that cannot be started yet.
#[derive(Debug)]
struct Held {
    until: Instant,
    delivery: AmqpDelivery,
}

impl State {
    pub(super) fn new(settings: &Settings, options: AmqpOptions, neighbours: Option<Neighbours>) -> Self {
        let topology = options.topology();
        let (mut lanes, mut ways, mut rights) = (Vec::new(), Vec::new(), Vec::new());
        for tenant in &options.tenants {
            let share = rights.len();
            rights.push(Right { weight: tenant.weight, most: tenant.max_running });
            let own = topology.lanes().filter(|lane| lane.tenant == tenant.name);
            for lane in own.filter(|lane| options.tiers.contains(&lane.tier)) {
                ways.push(fair::Way { share, high: lane.high });
                lanes.push((Way::Lane(lane.clone()), lane.queue()));
            }
        }
        // These need no sandbox, and are nobody's: a flood of them has the share of one tenant.
        for (way, queue) in [(Way::Unroutable, UNROUTABLE), (Way::Returned, RETURNED)] {
            ways.push(fair::Way { share: rights.len(), high: false });
            rights.push(Right { weight: 1, most: None });
            lanes.push((way, queue.to_owned()));
        }
        let by_queue: HashMap<_, _> =
            lanes.iter().enumerate().map(|(number, (_, queue))| (queue.clone(), number)).collect();
        let routes = topology
            .queue_bindings()
            .filter_map(|(exchange, key, queue)| {
                Some(((exchange.to_owned(), key.to_owned()), *by_queue.get(queue)?))
            })
            .collect();
        Self {
            options,
            neighbours,
            fair: Mutex::new(Fair::new(rights, &ways)),
            lanes,
            by_queue,
            routes,
            held: Mutex::default(),
            out: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            changed: Notify::new(),
            idle: Notify::new(),
            busy: Notify::new(),
            sweep: Notify::new(),
            swept: watch::Sender::new(0),
            health: watch::Sender::new(Health::default()),
            tally: Tally::default(),
            parked: Default::default(),
            direct: DirectReplies::new(settings.clone()),
        }
    }

    pub(super) fn fair(&self) -> MutexGuard<'_, Fair> {
        // Nothing panics between two halves of a change.
        self.fair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn queue_of(&self, lane: LaneNumber) -> &str {
        &self.lanes[lane].1
    }

    pub(super) fn way_of(&self, lane: LaneNumber) -> &Way {
        &self.lanes[lane].0
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let fair = self.fair();
        let lane = |(number, (way, _)): (usize, &(Way, String))| match way {
            Way::Lane(Lane { tenant, tier, high }) => {
                let (running, most) = fair.standing_of(number);
                let (tenant, tier, jobs) = (Some(tenant.clone()), Some(*tier), fair.waiting_in(number));
                Some(Waiting { tenant, tier, high: *high, jobs, running, most })
            }
            Way::Unroutable | Way::Returned => None,
        };
        self.lanes.iter().enumerate().filter_map(lane).collect()
    }

    pub(super) fn parked(&self) -> Vec<(Tier, u64)> {
        let jobs = self.parked.iter().map(|jobs| jobs.load(Ordering::Relaxed));
        Tier::ALL.into_iter().zip(jobs).collect()
    }

    pub(super) fn set_parked(&self, tier: Tier, jobs: u64) {
        for (_, number) in Tier::ALL.iter().zip(&self.parked).filter(|(it, _)| **it == tier) {
            number.store(jobs, Ordering::Relaxed);
        }
    }

    /// Whether the lanes of a tier are left to others.
    pub(super) fn rest(&self, tier: Tier, resting: bool) {
        let mut fair = self.fair();
        for (number, (way, _)) in self.lanes.iter().enumerate() {
            if matches!(way, Way::Lane(lane) if lane.tier == tier) {
                fair.rest(number, resting);
            }
        }
        drop(fair);
        self.changed.notify_one();
    }

    /// Takes note of how many claims of each lane nobody has. Whether there are any for this host.
    pub(super) fn count_orphans(&self, orphans: &[(String, u64)]) -> bool {
        let mut fair = self.fair();
        let mut any = false;
        for lane in 0..self.lanes.len() {
            let count = orphans.iter().find(|(queue, _)| *queue == self.lanes[lane].1).map_or(0, |(_, n)| *n);
            fair.orphaned(lane, count);
            any |= count > 0;
        }
        any
    }

    /// The lane that a ring means: of a job as it was sent, of one that was given up, or of one that was put back.
    pub(super) fn rung(&self, exchange: &str, key: &str) -> Option<LaneNumber> {
        if exchange == BELL {
            return self.by_queue.get(key).copied();
        }
        if exchange == RETURNED {
            return self.by_queue.get(RETURNED).copied();
        }
        let route = self.routes.get(&(exchange.to_owned(), key.to_owned())).copied();
        // A key that leads to a tier that is not ours is no key that leads nowhere; looking there does no harm.
        route.or_else(|| tenant_of_exchange(exchange).and_then(|_| self.by_queue.get(UNROUTABLE).copied()))
    }

    /// Keeps a job until it may be tried again. Gives it back if too many are kept.
    pub(super) fn hold(&self, mut delivery: AmqpDelivery, pause: Duration) -> Option<AmqpDelivery> {
        let mut held = self.held();
        if held.len() >= self.options.held_most {
            return Some(delivery);
        }
        // It runs no more, so another of its tenant's may.
        delivery.rest();
        held.push(Held { until: Instant::now() + pause, delivery });
        drop(held);
        self.changed.notify_one();
        None
    }

    /// A job whose time has come; else when the next one's does.
    pub(super) fn take_held(&self) -> Result<AmqpDelivery, Option<Instant>> {
        let mut held = self.held();
        // Those of a session that is over are somebody else's.
        held.retain(|held| held.delivery.lives());
        let next = held
            .iter()
            .enumerate()
            .min_by_key(|(_, held)| held.until)
            .map(|(place, held)| (place, held.until));
        match next {
            Some((place, until)) if until <= Instant::now() => Ok(held.swap_remove(place).delivery),
            next => Err(next.map(|(_, until)| until)),
        }
    }

    pub(super) fn holds_none(&self) -> bool {
        self.held().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{broker::Credential, queue::amqp::AmqpTenant};

    #[test]
    fn a_ring_means_the_lane_to_which_the_job_went() {
        let tenant = AmqpTenant { name: "acme".into(), floor: Tier::Nspawn, weight: 1, max_running: None };
        let options = AmqpOptions::new(vec![tenant], vec![Tier::Nspawn, Tier::Docker]);
        let settings = Settings::new("amqp://me@localhost/v", &Credential::new("x")).unwrap();
        let state = State::new(&settings, options, None);
        let lane = |exchange, key| state.rung(exchange, key).map(|lane| state.queue_of(lane));
        let nspawn = Some("mayfly.jobs.acme.nspawn.normal");
        for (exchange, key, expected) in [
            ("mayfly.submit.acme", "trusted", nspawn),
            ("mayfly.submit.acme", "docker.high", Some("mayfly.jobs.acme.docker.high")),
            ("mayfly.bell", "mayfly.jobs.acme.nspawn.normal", nspawn),
            ("mayfly.returned", "mayfly.jobs.acme.docker.normal", Some("mayfly.returned")),
            ("mayfly.submit.acme", "moon", Some("mayfly.unroutable")),
            // A tier that is not offered here, and a tenant that is not known here.
            ("mayfly.bell", "mayfly.jobs.acme.vm.normal", None),
            ("mayfly.bell", "mayfly.jobs.other.docker.normal", None),
            ("amq.topic", "docker", None),
        ] {
            assert_eq!(lane(exchange, key), expected, "{exchange} {key}");
        }
    }
}

//! What is now: looked at when somebody asks, from what the parts know of themselves anyway.

use std::collections::{BTreeMap, BTreeSet};

use pool::{KindStatus, Pressure, Tier};
use worker::Phase;

use super::{
    Metrics,
    labels::{OTHER, tier},
};
use crate::{
    board::RunningJob,
    broker::{self, LinkHealth},
    dispatch::Dispatcher,
    live::reasons,
    queue::{Counts, Queue, Waiting},
    runner::Runner,
    stop::{Stage, Stop},
    store::{Store, redis},
    ward::{Resting, Tested},
};

const NONE: &[&str] = &[];

/// Images that are told apart at most, beside those that are always kept ready.
const IMAGES: usize = 64;

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Jobs that run at once, at most.
    pub slots: usize,
    /// Those that run.
    pub running: Vec<RunningJob>,
    /// Those that wait.
    pub waiting: Vec<Waiting>,
    /// Those of them that wait because no host offers their tier.
    pub parked: Vec<(Tier, u64)>,
    /// How often a job was given another sandbox.
    pub retries: u64,
    /// How the sandboxes stand.
    pub kinds: Vec<KindStatus>,
    /// Tiers of which no sandbox can be made for now.
    pub resting: Vec<Resting>,
    /// What the last selftest said of tiers.
    pub tested: Vec<Tested>,
    /// Tiers of which jobs are run.
    pub tiers: Vec<Tier>,
    /// Whether no more jobs are taken.
    pub stopping: bool,
    /// The servers of the service form.
    pub servers: Option<Servers>,
}

/// How the servers are.
#[derive(Debug, Clone)]
pub struct Servers {
    /// The two connections to the broker.
    pub broker: broker::Health,
    /// What has happened on them.
    pub counts: Counts,
    /// The store.
    pub store: redis::Health,
}

impl View {
    /// What a dispatcher knows of itself.
    #[must_use]
    pub fn of<Q: Queue, S: Store, R: Runner>(
        engine: &Dispatcher<Q, S, R>,
        tiers: &[Tier],
        stop: &Stop,
    ) -> Self {
        let (board, kinds) = (engine.board(), engine.runner().standing());
        let mut running = board.jobs();
        for job in &mut running {
            job.waits_for = reasons::of_sandbox(job, &kinds);
        }
        Self {
            slots: engine.slots(),
            running,
            waiting: engine.queue().waiting(),
            parked: engine.queue().parked(),
            retries: board.retries(),
            kinds,
            resting: engine.resting(),
            tested: engine.tests(),
            tiers: tiers.to_vec(),
            stopping: stop.stage() != Stage::Running,
            servers: None,
        }
    }

    /// What is wrong with the servers.
    pub(crate) fn trouble(&self) -> Vec<String> {
        let Some(servers) = &self.servers else { return Vec::new() };
        let links = [(&servers.broker.intake, "jobs"), (&servers.broker.outlet, "results")];
        let mut why: Vec<_> = links.iter().filter_map(|(link, what)| broken(link, what)).collect();
        match &servers.store {
            redis::Health::Connected => {}
            redis::Health::Unknown => why.push("the store has not answered yet".to_owned()),
            redis::Health::Down { reason, .. } => why.push(format!("the store is away: {reason}")),
        }
        why
    }

    /// Why no job would be run now; empty if one would.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.stopping {
            why.push("it is stopping and takes no more jobs".to_owned());
        }
        why.extend(self.trouble());
        let rests = |tier: &Tier| self.resting.iter().find(|resting| resting.tier == *tier);
        if !self.tiers.is_empty() && self.tiers.iter().all(|tier| rests(tier).is_some()) {
            let of = |it: &Resting| format!("tier {} {}: {}", it.tier, it.state(), it.why);
            let tiers = self.tiers.iter().filter_map(rests).map(of);
            why.extend(tiers);
        }
        why
    }
}

fn broken(link: &LinkHealth, what: &str) -> Option<String> {
    match (link.connected, &link.blocked, &link.reason) {
        (true, None, _) => None,
        (true, Some(alarm), _) => Some(format!("the broker takes no {what}: {alarm}")),
        (false, _, Some(reason)) => Some(format!("no connection to the broker for {what}: {reason}")),
        (false, _, None) => Some(format!("not yet connected to the broker for {what}")),
    }
}

fn one_if(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

impl Metrics {
    /// Sets what is now.
    pub(super) fn show(&self, view: &View) {
        let own = &self.families;
        own.slots.with_label_values(NONE).set(view.slots as f64);
        own.ready.with_label_values(NONE).set(one_if(view.unready().is_empty()));
        own.stopping.with_label_values(NONE).set(one_if(view.stopping));
        for tier in Tier::ALL {
            let rests = view.resting.iter().any(|resting| resting.tier == tier);
            own.tier_resting.with_label_values(&[tier.name()]).set(one_if(rests));
            let parked: u64 = view.parked.iter().filter(|(of, _)| *of == tier).map(|(_, jobs)| jobs).sum();
            own.parked_jobs.with_label_values(&[tier.name()]).set(parked as f64);
        }
        catch_up(&own.retried_jobs.with_label_values(NONE), view.retries);
        self.show_jobs(view);
        self.show_pool(&view.kinds);
        if let Some(servers) = &view.servers {
            self.show_servers(servers);
        }
    }

    fn show_jobs(&self, view: &View) {
        let own = &self.families;
        let (mut running, mut by_tenant) = (BTreeMap::new(), BTreeMap::<_, [u64; 2]>::new());
        for job in &view.running {
            *running.entry((job.tier.name(), job.phase.name())).or_default() += 1_u64;
            by_tenant.entry(self.tenant(&job.job.tenant)).or_default()[0] += 1;
        }
        let mut waiting = BTreeMap::new();
        for lane in &view.waiting {
            let class = if lane.high { "high" } else { "normal" };
            *waiting.entry((tier(lane.tier), class)).or_default() += lane.jobs;
            let tenant = lane.tenant.as_deref().map_or(OTHER, |tenant| self.tenant(tenant));
            by_tenant.entry(tenant).or_default()[1] += lane.jobs;
        }
        for of_tier in Tier::ALL.into_iter().map(Some).chain([None]) {
            for class in ["high", "normal"] {
                let jobs: u64 = waiting.remove(&(tier(of_tier), class)).unwrap_or_default();
                own.waiting_jobs.with_label_values(&[tier(of_tier), class]).set(jobs as f64);
            }
        }
        for tier in Tier::ALL {
            for phase in Phase::ALL {
                let jobs: u64 = running.remove(&(tier.name(), phase.name())).unwrap_or_default();
                own.running_jobs.with_label_values(&[tier.name(), phase.name()]).set(jobs as f64);
            }
        }
        for tenant in &self.tenants {
            let [running, waiting] = by_tenant.remove(tenant.as_str()).unwrap_or_default();
            own.tenant_running.with_label_values(&[tenant]).set(running as f64);
            own.tenant_waiting.with_label_values(&[tenant]).set(waiting as f64);
        }
    }

    /// Kinds come and go: what is not there any more is not shown, but for what is always kept ready.
    fn show_pool(&self, kinds: &[KindStatus]) {
        let own = &self.families;
        let mut by_image: BTreeMap<(&str, Tier), [usize; 6]> =
            self.kept.iter().map(|(tier, image)| ((image.as_str(), *tier), [0; 6])).collect();
        let kept: BTreeSet<&str> = self.kept.iter().map(|(_, image)| image.as_str()).collect();
        let mut others = BTreeSet::new();
        for kind in kinds {
            // The digest would make a new series for each build of an image.
            let image = kind.image.split('@').next().unwrap_or_default();
            let told_apart = kept.contains(image)
                || others.contains(image)
                || others.len() < IMAGES && others.insert(image);
            let sums = by_image.entry((if told_apart { image } else { OTHER }, kind.tier)).or_default();
            let more = [kind.making, kind.ready, kind.leased, kind.quarantined, kind.target, kind.waiting];
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        own.pool_sandboxes.reset();
        own.pool_target.reset();
        own.pool_waiting.reset();
        for ((image, tier), [making, ready, leased, quarantined, target, waiting]) in by_image {
            let states =
                [("making", making), ("ready", ready), ("leased", leased), ("quarantined", quarantined)];
            for (state, count) in states {
                own.pool_sandboxes.with_label_values(&[tier.name(), image, state]).set(count as f64);
            }
            own.pool_target.with_label_values(&[tier.name(), image]).set(target as f64);
            own.pool_waiting.with_label_values(&[tier.name(), image]).set(waiting as f64);
        }
    }

    pub(super) fn show_host(&self, now: Pressure) {
        let own = &self.families;
        for (resource, percent) in [("cpu", now.cpu), ("memory", now.memory), ("io", now.io)] {
            own.pressure.with_label_values(&[resource]).set(percent.unwrap_or_default() / 100.0);
        }
        own.memory_available.with_label_values(NONE).set(now.available.unwrap_or_default());
    }

    fn show_servers(&self, Servers { broker, counts, store }: &Servers) {
        let own = &self.families;
        for (name, link) in [("intake", &broker.intake), ("outlet", &broker.outlet)] {
            own.broker_connected.with_label_values(&[name]).set(one_if(link.connected));
            own.broker_blocked.with_label_values(&[name]).set(one_if(link.blocked.is_some()));
            catch_up(&own.broker_connections.with_label_values(&[name]), link.epoch);
        }
        own.store_connected.with_label_values(NONE).set(one_if(matches!(store, redis::Health::Connected)));
        for (event, count) in [
            ("ring", counts.rings),
            ("pull_empty", counts.pulled_nothing),
            ("result", counts.results),
            ("result_unrouted", counts.results_unrouted),
            ("result_cut", counts.results_cut),
            ("reply", counts.replies),
            ("reply_refused", counts.replies_refused),
            ("reply_lost", counts.replies_lost),
            ("dead_letter", counts.dead),
            ("dead_letter_refused", counts.dead_refused),
            ("moved", counts.moved),
            ("put_back", counts.requeued),
            ("stale_ack", counts.stale),
        ] {
            catch_up(&own.broker_events.with_label_values(&[event]), count);
        }
    }
}

/// Brings a counter to what was counted elsewhere.
fn catch_up(counter: &prometheus::Counter, total: u64) {
    counter.inc_by((total as f64 - counter.get()).max(0.0));
}

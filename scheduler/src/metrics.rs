//! What an operator sees of a process in numbers, for Prometheus.
//!
//! - `families`: what there is, declared once.
//! - `labels`: what each label can be.
//! - [`Metered`]: a queue, a store and a runner that count what goes through them. The dispatcher knows of nothing.
//! - `sandboxes`: what the pool tells.
//! - [`View`]: what is looked at when somebody asks, and whether the process is ready for jobs.
//!
//! It never decides anything: where nobody asks for metrics, nothing is counted and all goes as with them.

#[cfg(test)]
mod document;
mod families;
mod generations;
mod labels;
mod metered;
mod sandboxes;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pool::{Pressure, Tier};
use prometheus::{Registry, TextEncoder};
use worker::{Assignment, JobResult};

use self::{
    families::{DECLARED, Families},
    generations::Generations,
    labels::{OTHER, Values, tier},
};
pub use self::{
    metered::Metered,
    view::{Servers, View},
};

/// What bounds the labels, and what else is known before the first job.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What the process was started for: `serve` or `batch`.
    pub verb: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Tenants that are told apart.
    pub tenants: Vec<String>,
    /// The tiers of which it runs jobs.
    pub tiers: Vec<Tier>,
    /// Sandboxes that wait even when no job comes: tier and image, by name.
    pub kept: Vec<(Tier, String)>,
    /// Sandboxes that may exist at once.
    pub max_sandboxes: usize,
    /// The longest that a job should wait.
    pub acceptable_wait: Duration,
    /// How long after one selftest the next begins.
    pub selftest_every: Option<Duration>,
}

/// The numbers of one process.
#[derive(Debug)]
pub struct Metrics {
    families: Families,
    registry: Registry,
    tenants: BTreeSet<String>,
    tiers: Vec<Tier>,
    kept: Vec<(Tier, String)>,
    acceptable_wait: Duration,
    generations: Mutex<Generations>,
    /// One at a time looks and writes: what is now is set anew for each.
    showing: Mutex<()>,
}

impl Metrics {
    /// Everything there is, at zero.
    #[must_use]
    pub fn new(known: Known) -> Self {
        let (families, registry) = Families::new();
        let Known { verb, version, tenants, tiers, kept, max_sandboxes, acceptable_wait, selftest_every } =
            known;
        let mut tenants: BTreeSet<String> = tenants.into_iter().collect();
        tenants.insert(OTHER.to_owned());
        let metrics = Self {
            families,
            registry,
            tenants,
            tiers,
            kept,
            acceptable_wait,
            generations: Mutex::default(),
            showing: Mutex::default(),
        };
        metrics.show_zeros();
        let own = &metrics.families;
        own.build_info.with_label_values(&[version, verb]).set(1.0);
        own.start_time.with_label_values(&[] as &[&str]).set(unix_time());
        own.pool_max.with_label_values(&[] as &[&str]).set(max_sandboxes as f64);
        let every = selftest_every.unwrap_or_default();
        own.selftest_interval.with_label_values(&[] as &[&str]).set(every.as_secs_f64());
        for tier in &metrics.tiers {
            own.tier_offered.with_label_values(&[tier.name()]).set(1.0);
        }
        metrics
    }

    /// Everything in Prometheus' text format, with what is now as `view` has it.
    #[must_use]
    pub fn text(&self, view: Option<&View>) -> String {
        let _one = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = view {
            self.show(view);
            self.show_host(Pressure::now());
        }
        // It fails only where a family has no name, and none has none.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// What a selftest found on a tier: how many probes of each verdict.
    pub fn selftest(&self, tier: Tier, found: &[(&str, usize)]) {
        for (verdict, probes) in found {
            self.families.selftest_probes.with_label_values(&[tier.name(), *verdict]).set(*probes as f64);
        }
        self.families.selftest_last_run.with_label_values(&[] as &[&str]).set(unix_time());
        self.families.selftest_silent.with_label_values(&[] as &[&str]).set(0.0);
    }

    /// A selftest gave no report.
    pub fn selftest_gave_no_report(&self) {
        self.families.selftest_silent.with_label_values(&[] as &[&str]).set(1.0);
    }

    /// So many spans were sent to the collector, or dropped.
    pub(crate) fn spans(&self, result: &str, spans: usize) {
        self.families.trace_spans.with_label_values(&[result]).inc_by(spans as f64);
    }

    /// The tiers of which jobs are run.
    #[must_use]
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// What nobody has seen yet is 0, and not missing.
    fn show_zeros(&self) {
        for family in DECLARED.iter().filter(|family| family.labels.len() <= 2) {
            let mut all = vec![Vec::new()];
            for label in family.labels {
                let values: Vec<&str> = match label.values() {
                    Values::Closed(values) => values.to_vec(),
                    Values::Tenants => self.tenants.iter().map(String::as_str).collect(),
                    // Those that are kept ready are shown with what is now.
                    Values::Images | Values::Own => Vec::new(),
                };
                all = all
                    .iter()
                    .flat_map(|head| values.iter().map(move |value| [&head[..], &[*value]].concat()))
                    .collect();
            }
            for values in all {
                self.families.touch(family.name, &values);
            }
        }
    }

    /// The tenant's name, if tenants of this name are told apart.
    fn tenant<'a>(&'a self, name: &str) -> &'a str {
        self.tenants.get(name).map_or(OTHER, String::as_str)
    }

    fn pulled(&self, tenant: &str, of_tier: Option<Tier>, queued: Duration) {
        let (own, tier, tenant) = (&self.families, tier(of_tier), self.tenant(tenant));
        own.pulled_jobs.with_label_values(&[] as &[&str]).inc();
        own.queue_wait.with_label_values(&[tier]).observe(queued.as_secs_f64());
        own.tenant_pulled.with_label_values(&[tenant]).inc();
        own.tenant_waited.with_label_values(&[tenant]).inc_by(queued.as_secs_f64());
        if queued > self.acceptable_wait {
            own.queue_wait_exceeded.with_label_values(&[tier]).inc();
        }
    }

    fn started(&self, job: &Assignment) {
        self.families.started_jobs.with_label_values(&[job.want.tier.name()]).inc();
    }

    /// A job has left a sandbox, or never got one.
    fn ran(&self, result: &JobResult) {
        let own = &self.families;
        let (Some(tier), Some(source)) = (result.tier.map(Tier::name), result.source) else { return };
        let source = match source {
            pool::Source::Warm => "warm",
            pool::Source::Cold => "cold",
        };
        let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
        let phases = &result.phases;
        own.checkouts.with_label_values(&[tier, source]).inc();
        own.checkout.with_label_values(&[tier, source]).observe(seconds(phases.checkout_us));
        let reason = result.cold_reason.map(|reason| match reason {
            pool::ColdReason::Empty => "empty",
            pool::ColdReason::Shape => "shape",
        });
        if let Some(reason) = reason {
            own.cold_checkouts.with_label_values(&[tier, reason]).inc();
        }
        if phases.run_us > 0 {
            own.startup
                .with_label_values(&[tier, source])
                .observe(seconds(phases.checkout_us + phases.stage_us));
            own.execution.with_label_values(&[tier]).observe(seconds(phases.run_us));
        }
        if phases.collect_us > 0 {
            own.collect.with_label_values(&[tier]).observe(seconds(phases.collect_us));
        }
        if let Some(generation) = &result.generation
            && !self.generations.lock().unwrap_or_else(PoisonError::into_inner).is_new(generation)
        {
            tracing::error!(job = result.id, generation, "a sandbox served a second job");
            own.reused.with_label_values(&[] as &[&str]).inc();
        }
    }

    /// A job has its result.
    fn completed(&self, result: &JobResult) {
        let own = &self.families;
        let (tenant, outcome) = (self.tenant(&result.tenant), result.outcome.name());
        own.completed_jobs.with_label_values(&[tier(result.tier), outcome]).inc();
        own.tenant_completed.with_label_values(&[tenant, outcome]).inc();
        let run = Duration::from_micros(result.phases.run_us);
        own.tenant_ran.with_label_values(&[tenant]).inc_by(run.as_secs_f64());
        if let Some(usage) = &result.usage {
            let cpu = Duration::from_micros(usage.cpu_us);
            own.tenant_cpu.with_label_values(&[tenant]).inc_by(cpu.as_secs_f64());
        }
        let kept: u64 = result.artifacts.iter().map(|artifact| artifact.size).sum();
        own.tenant_artifacts.with_label_values(&[tenant]).inc_by(kept as f64);
        if let Some(egress) = &result.egress {
            own.egress_made.with_label_values(&[tenant]).inc_by(egress.made as f64);
            own.egress_bytes.with_label_values(&[tenant, "sent"]).inc_by(egress.sent as f64);
            own.egress_bytes.with_label_values(&[tenant, "received"]).inc_by(egress.received as f64);
            for (reason, times) in &egress.reasons {
                own.egress_refused.with_label_values(&[reason.name()]).inc_by(*times as f64);
            }
        }
    }
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Whether it was done.
fn answer_of<T, E>(answer: &Result<T, E>) -> &'static str {
    if answer.is_ok() { "ok" } else { "error" }
}

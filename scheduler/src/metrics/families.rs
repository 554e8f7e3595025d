//! Every family of metrics there is, declared once: its name, its labels, and what it says. `docs/metrics.md` is made of
//! this table.

use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry};

use super::labels::Label;

/// What every name begins with.
const PREFIX: &str = "mayfly_";

/// A family as it is declared.
#[derive(Debug)]
pub(crate) struct Family {
    /// Its whole name.
    pub(crate) name: &'static str,
    /// What kind of number it is.
    pub(crate) kind: Kind,
    /// Its labels.
    pub(crate) labels: &'static [Label],
    /// What it says.
    pub(crate) help: &'static str,
}

/// What kind of number a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// What is now.
    Gauge,
    /// How long something took, in seconds: a histogram up to ten minutes.
    Seconds,
    /// The same, up to eight hours.
    LongSeconds,
}

macro_rules! numbers {
    (Counter) => {
        CounterVec
    };
    (Gauge) => {
        GaugeVec
    };
    (Seconds) => {
        HistogramVec
    };
    (LongSeconds) => {
        HistogramVec
    };
}

macro_rules! families {
    ($($field:ident: $kind:ident $name:literal [$($label:ident),*] $help:literal;)*) => {
        /// All families.
        pub(crate) const DECLARED: &[Family] = &[$(Family {
            name: concat!("mayfly_", $name),
            kind: Kind::$kind,
            labels: &[$(Label::$label),*],
            help: $help,
        }),*];

        /// Their numbers, each with its labels in the order of its declaration.
        #[derive(Debug)]
        pub(crate) struct Families {
            $(pub(crate) $field: numbers!($kind),)*
        }

        impl Families {
            /// All of them at zero, in a registry of their own.
            pub(crate) fn new() -> (Self, Registry) {
                let registry = Registry::new();
                let mut declared = DECLARED.iter();
                let families = Self {
                    $($field: Numbers::make(declared.next().expect("it was declared above"), &registry),)*
                };
                (families, registry)
            }

            /// Shows a family's series with these label values, at zero if it was not there.
            pub(crate) fn touch(&self, name: &str, values: &[&str]) {
                match name {
                    $(concat!("mayfly_", $name) => self.$field.touch(values),)*
                    _ => {}
                }
            }
        }
    };
}

families! {
    // Jobs, on their way through this process.
    slots: Gauge "slots" [] "Jobs that this process runs at once, at most.";
    waiting_jobs: Gauge "waiting_jobs" [JobTier, Class] "Jobs that wait, as far as this process knows: those in the broker's queues of the tiers that it offers, or the lines of a batch that have not begun. Hosts that share a broker see the same jobs: take the largest, not the sum.";
    parked_jobs: Gauge "parked_jobs" [Tier] "Jobs that wait because no live host offers their tier, as this process last saw them with the broker; mayfly_waiting_jobs is without them. Hosts that share a broker see the same jobs: take the largest, not the sum.";
    running_jobs: Gauge "running_jobs" [Tier, Phase] "Jobs that have a slot, by the phase that they are in.";
    pulled_jobs: Counter "pulled_jobs_total" [] "Jobs that were taken from the queue.";
    started_jobs: Counter "started_jobs_total" [Tier] "Starts of jobs, each on a sandbox of its own: one that is tried again on another counts again.";
    completed_jobs: Counter "completed_jobs_total" [JobTier, Outcome] "Jobs that have their result, by how they ended.";
    retried_jobs: Counter "retried_jobs_total" [] "Further sandboxes that jobs were given after a failure that was not theirs.";
    requeued_jobs: Counter "requeued_jobs_total" [Why] "Jobs that went back to the queue without a result: no sandbox could be made here (unable), the process ends (stopping), not now (later), a stronger tier (elsewhere).";
    stale_results: Counter "stale_results_refused_total" [] "Results that came too late to count: the job had another attempt, or its result, already.";
    queue_wait: LongSeconds "job_queue_duration_seconds" [JobTier] "How long jobs waited until a slot took them.";
    queue_wait_exceeded: Counter "acceptable_job_queue_duration_exceeded_total" [JobTier] "Jobs that waited for longer than metrics.acceptable_wait.";
    checkout: Seconds "job_checkout_duration_seconds" [Tier, Source] "How long jobs waited for their sandbox: one that waited (warm), or one that was made for them (cold).";
    startup: Seconds "job_startup_duration_seconds" [Tier, Source] "From the slot to the command's start: checkout, and putting files in.";
    execution: LongSeconds "job_execution_duration_seconds" [Tier] "How long commands ran, until their output was drained.";
    collect: Seconds "job_collect_duration_seconds" [Tier] "How long it took to get files out, where any were asked for.";
    checkouts: Counter "checkouts_total" [Tier, Source] "Sandboxes that jobs were given.";
    cold_checkouts: Counter "cold_checkouts_total" [Tier, ColdReason] "Sandboxes that were made while their job waited: none was ready (empty), or the job's limits fit no class (shape).";

    // Tenants: those of the configuration. All others are one.
    tenant_waiting: Gauge "tenant_waiting_jobs" [Tenant] "Jobs of a tenant that wait, as mayfly_waiting_jobs.";
    tenant_running: Gauge "tenant_running_jobs" [Tenant] "Jobs of a tenant that have a slot here.";
    tenant_completed: Counter "tenant_completed_jobs_total" [Tenant, Outcome] "Jobs of a tenant that have their result.";
    tenant_waited: Counter "tenant_queue_seconds_total" [Tenant] "Time that jobs of a tenant waited until a slot took them; with mayfly_tenant_pulled_jobs_total, the mean wait.";
    tenant_pulled: Counter "tenant_pulled_jobs_total" [Tenant] "Jobs of a tenant that were taken from the queue.";
    tenant_ran: Counter "tenant_run_seconds_total" [Tenant] "Time that commands of a tenant ran.";
    tenant_cpu: Counter "tenant_cpu_seconds_total" [Tenant] "CPU time of a tenant's jobs, as the host's kernel counts it.";
    tenant_artifacts: Counter "tenant_artifact_bytes_total" [Tenant] "Bytes of the files that jobs of a tenant left.";

    // What jobs reach: the part `egress` of their results.
    egress_made: Counter "tenant_egress_connections_total" [Tenant] "Connections to outside that jobs of a tenant made.";
    egress_bytes: Counter "tenant_egress_bytes_total" [Tenant, Direction] "Bytes that went over them: out of the sandbox (sent), into it (received).";
    egress_refused: Counter "egress_refused_total" [Refusal] "Connections to outside that were refused or could not be made, by why: docs/network.md says what each word means.";

    // The pool.
    pool_sandboxes: Gauge "pool_sandboxes" [Tier, Image, State] "Sandboxes: being made, clean and waiting (ready), in use or being ended (leased), set aside because they could not be destroyed (quarantined).";
    pool_target: Gauge "pool_target_sandboxes" [Tier, Image] "Clean sandboxes that should wait.";
    pool_waiting: Gauge "pool_waiting_jobs" [Tier, Image] "Jobs that have a slot and wait for a sandbox.";
    pool_max: Gauge "pool_max_sandboxes" [] "Sandboxes that may exist here at once, at most.";
    tier_offered: Gauge "tier_offered" [Tier] "1 if this process runs jobs of the tier.";
    tier_resting: Gauge "tier_resting" [Tier] "1 while jobs of the tier are left to other hosts: no sandbox of it can be made here, or the last selftest found it exposed.";
    selftest_probes: Gauge "selftest_probes" [Tier, Verdict] "Probes of the last selftest, by what they found. A tier with one that is exposed or void is refused.";
    selftest_last_run: Gauge "selftest_last_run_timestamp_seconds" [] "When the last selftest of this process ended with a report; 0 if none did.";
    selftest_silent: Gauge "selftest_without_report" [] "1 if the last selftest gave no report: what is known of the tiers is older, or nothing.";
    selftest_interval: Gauge "selftest_interval_seconds" [] "How long after one selftest the next begins (selftest.every); 0 if none does.";
    creations: Counter "sandbox_creation_attempts_total" [Tier, Making] "Sandboxes that were to be made, by whether they were.";
    creation: Seconds "sandbox_creation_duration_seconds" [Tier] "How long it took to make a sandbox and find it clean.";
    endings: Counter "sandboxes_ended_total" [Tier, Ending] "Sandboxes that are over. One that is quarantined could not be destroyed: it is never handed out, and holds its place unless it failed while it was made.";
    ending: Seconds "sandbox_destroy_duration_seconds" [Tier] "How long it took until nothing of a sandbox was left.";
    reused: Counter "sandbox_reused_total" [] "Sandboxes that served a second job. It must stay 0.";
    reaper_leaks: Counter "reaper_leaks_total" [Leftover] "What the reaper found of dead processes of this node and ended: the processes themselves (mayfly), and of their sandboxes the processes, cgroups, containers, libvirt domains and ranges of user ids.";
    reaper_failures: Counter "reaper_failures_total" [] "Dead processes of which the reaper could not end everything. It tries again.";
    reaper_last_run: Gauge "reaper_last_run_timestamp_seconds" [] "When the reaper last looked and nothing was left.";
    old_runtime: Gauge "docker_runtime_below_floor" [] "1 if the last container was made by a runtime with known ways out (docker.allow_old_runtime).";
    accelerator: Gauge "vm_accelerator" [Accelerator] "1 for what ran the last virtual machine. tcg is software emulation and no security boundary.";

    // The host.
    pressure: Gauge "host_pressure_ratio" [Resource] "For which share of the last ten seconds some process of this host waited for the resource. 0 where the kernel does not tell.";
    memory_available: Gauge "host_memory_available_ratio" [] "Which share of the host's memory is available.";

    // The servers.
    broker_connected: Gauge "broker_connected" [Link] "1 while there is a connection by which jobs come (intake), by which results go (outlet).";
    broker_blocked: Gauge "broker_blocked" [Link] "1 while an alarm of the broker keeps it from taking messages on the connection.";
    broker_connections: Counter "broker_connections_total" [Link] "Connections that were made. More than one: it was lost.";
    broker_events: Counter "broker_events_total" [Message] "What happened with the broker besides jobs: see docs/runbook.md for each.";
    queue_calls: Counter "queue_operations_total" [QueueCall, Answer] "What was asked of the queue, and whether it was done.";
    answer: Seconds "queue_answer_duration_seconds" [] "How long it took until the queue had a job's result for certain.";
    store_connected: Gauge "store_connected" [] "1 while the store of results answers.";
    store_calls: Counter "store_operations_total" [StoreCall, Answer] "What was asked of the store, and whether it was done.";
    store_call: Seconds "store_operation_duration_seconds" [] "How long the store took.";

    // Traces.
    trace_spans: Counter "trace_spans_total" [Sent] "Spans of jobs that have their result: those that the collector took (sent), and those that it did not or for which it was too slow (dropped).";

    // The process.
    ready: Gauge "ready" [] "1 while /readyz says so.";
    stopping: Gauge "stopping" [] "1 once the process takes no more jobs.";
    build_info: Gauge "build_info" [Version, Verb] "1, for the version that runs and what it was started for.";
    start_time: Gauge "start_time_seconds" [] "When the process started.";
}

const SHORT: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
    600.0,
];
const LONG: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
    10_800.0, 28_800.0,
];

/// Numbers with labels, of any kind.
trait Numbers: Sized {
    fn make(family: &Family, registry: &Registry) -> Self;
    fn touch(&self, values: &[&str]);
}

impl Family {
    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name()).collect()
    }

    fn opts(&self) -> Opts {
        debug_assert!(self.name.starts_with(PREFIX));
        Opts::new(self.name, self.help)
    }
}

/// The table is a constant: what cannot be in it shows when the first process of a build starts, and in every test.
const VALID: &str = "the table of families is valid";

impl Numbers for CounterVec {
    fn make(family: &Family, registry: &Registry) -> Self {
        let made = Self::new(family.opts(), &family.label_names()).expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }

    fn touch(&self, values: &[&str]) {
        let _ = self.with_label_values(values);
    }
}

impl Numbers for GaugeVec {
    fn make(family: &Family, registry: &Registry) -> Self {
        let made = Self::new(family.opts(), &family.label_names()).expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }

    fn touch(&self, values: &[&str]) {
        let _ = self.with_label_values(values);
    }
}

impl Numbers for HistogramVec {
    fn make(family: &Family, registry: &Registry) -> Self {
        let buckets = if family.kind == Kind::LongSeconds { LONG } else { SHORT };
        let opts = HistogramOpts { common_opts: family.opts(), buckets: buckets.to_vec() };
        let made = Self::new(opts, &family.label_names()).expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }

    fn touch(&self, values: &[&str]) {
        let _ = self.with_label_values(values);
    }
}

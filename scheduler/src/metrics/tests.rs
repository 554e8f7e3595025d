//! Each family is moved here, by what really moves it: calls through the wrapped traits, words of the pool, views.
//!
//! After each step all samples are compared with those before: exactly what is named has changed. At the end every
//! declared family must have moved once, so a family that nothing moves fails here by its name.

mod bounds;
mod puppet;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egress::Egress;
use pool::{
    Accelerator, ColdReason, Ended as Ending, Happening, KindStatus, Leftover, Limits, Pressure, Source,
    Witness,
};
use worker::{Artifact, ErrorReport, Outcome, Phase, Phases, Progress, UsageReport, cancellation};

use self::puppet::{Puppet, attempt, job, key};
use super::*;
use crate::{
    admit::{Origin, admit},
    board::RunningJob,
    broker::{Health, LinkHealth},
    key::BodyDigest,
    policy::Policy,
    queue::{Counts, Queue, Requeue, Waiting},
    runner::Runner,
    store::{Finished, Store, redis},
    ward::Resting,
};

/// Any change that is one.
const SOME: f64 = f64::NAN;

type Samples = BTreeMap<String, f64>;

fn samples(text: &str) -> Samples {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(s, v)| (s.to_owned(), v.parse().unwrap()))
        .collect()
}

/// A series has exactly the labels of its family, each with a value that it can have.
fn check_labels(series: &str, metrics: &Metrics) {
    let name = series.split('{').next().unwrap();
    let of = |family: &&families::Family| {
        let rest = name.strip_prefix(family.name);
        rest.is_some_and(|rest| ["", "_sum", "_count"].contains(&rest))
    };
    let family = DECLARED.iter().find(of).expect(name);
    let labels = series.split_once('{').map_or("", |(_, rest)| rest.strip_suffix('}').unwrap());
    let labels: BTreeMap<_, _> = labels.split(',').filter_map(|label| label.split_once('=')).collect();
    assert_eq!(labels.len(), family.labels.len(), "{series}");
    for label in family.labels {
        let value = labels.get(label.name()).expect(series).trim_matches('"');
        let can_be = match label.values() {
            Values::Closed(values) => values.contains(&value),
            Values::Tenants => metrics.tenants.contains(value),
            Values::Images => value == OTHER || ["base", "minimal"].contains(&value),
            Values::Own => !value.is_empty(),
        };
        assert!(can_be, "{series}: {} is never {value}", label.name());
    }
}

struct Watch {
    metrics: Arc<Metrics>,
    before: Samples,
    moved: BTreeSet<&'static str>,
}

impl Watch {
    /// Exactly these have changed since the last step, by so much.
    fn moved(&mut self, expected: &[(&str, f64)]) {
        let now = samples(&self.metrics.text(None));
        for series in now.keys() {
            check_labels(series, &self.metrics);
        }
        let was = |series: &String| self.before.get(series).copied().unwrap_or_default();
        let gone = self.before.keys().filter(|series| !now.contains_key(*series)).map(|series| (series, 0.0));
        let changes: BTreeMap<String, f64> = now
            .iter()
            .map(|(series, value)| (series, *value))
            .chain(gone)
            .map(|(series, value)| (series.clone(), value - was(series)))
            .filter(|(_, change)| *change != 0.0)
            .collect();
        let names: BTreeSet<_> = changes.keys().map(String::as_str).collect();
        let wanted: BTreeSet<_> = expected.iter().map(|(series, _)| *series).collect();
        assert_eq!(names, wanted);
        for (series, change) in expected {
            let moved = changes[*series];
            assert!(change.is_nan() || (moved - change).abs() < 1e-6, "{series} moved by {moved}");
        }
        for series in names {
            let name = series.split('{').next().unwrap();
            let of = |family: &&families::Family| {
                let rest = name.strip_prefix(family.name);
                rest.is_some_and(|rest| ["", "_sum", "_count"].contains(&rest))
            };
            self.moved.insert(DECLARED.iter().find(of).expect(name).name);
        }
        self.before = now;
    }
}

fn known() -> Known {
    Known {
        verb: "serve",
        version: "1.2.3",
        tenants: vec!["acme".into()],
        tiers: vec![Tier::Chroot, Tier::Docker],
        kept: vec![(Tier::Chroot, "base".into())],
        max_sandboxes: 12,
        acceptable_wait: Duration::from_secs(60),
        selftest_every: Some(Duration::from_secs(3600)),
    }
}

fn result(generation: u8) -> JobResult {
    let report = ErrorReport::new("", "", "");
    JobResult {
        tier: Some(Tier::Docker),
        source: Some(Source::Warm),
        generation: Some(format!("{generation:032x}")),
        phases: Phases {
            checkout_us: 1_000_000,
            stage_us: 500_000,
            run_us: 4_000_000,
            collect_us: 250_000,
            ..Phases::default()
        },
        usage: Some(UsageReport { cpu_us: 2_000_000, ..UsageReport::default() }),
        ..JobResult::never_started("one", "acme", Outcome::Failed, report)
    }
}

#[tokio::test]
async fn every_family_is_moved_by_what_it_counts_and_by_nothing_else() {
    let metrics = Arc::new(Metrics::new(known()));
    let mut watch = Watch { metrics: Arc::clone(&metrics), before: Samples::new(), moved: BTreeSet::new() };
    watch.moved(&[
        ("mayfly_build_info{verb=\"serve\",version=\"1.2.3\"}", 1.0),
        ("mayfly_start_time_seconds", SOME),
        ("mayfly_pool_max_sandboxes", 12.0),
        ("mayfly_selftest_interval_seconds", 3600.0),
        ("mayfly_tier_offered{tier=\"chroot\"}", 1.0),
        ("mayfly_tier_offered{tier=\"docker\"}", 1.0),
    ]);
    metrics.selftest_gave_no_report();
    watch.moved(&[("mayfly_selftest_without_report", 1.0)]);
    metrics.selftest(Tier::Chroot, &[("blocked", 52), ("exposed", 1)]);
    watch.moved(&[
        ("mayfly_selftest_probes{tier=\"chroot\",verdict=\"blocked\"}", 52.0),
        ("mayfly_selftest_probes{tier=\"chroot\",verdict=\"exposed\"}", 1.0),
        ("mayfly_selftest_last_run_timestamp_seconds", SOME),
        ("mayfly_selftest_without_report", -1.0),
    ]);
    metrics.spans("dropped", 6);
    watch.moved(&[("mayfly_trace_spans_total{result=\"dropped\"}", 6.0)]);
    queue_moves(&mut watch).await;
    runner_moves(&mut watch).await;
    store_moves(&mut watch).await;
    pool_moves(&mut watch);
    view_moves(&mut watch);
    let never: Vec<_> =
        DECLARED.iter().map(|family| family.name).filter(|name| !watch.moved.contains(name)).collect();
    assert_eq!(never, [""; 0], "declared, and moved by no test");
}

async fn queue_moves(watch: &mut Watch) {
    let metered = |puppet| Metered::new(puppet, Some(Arc::clone(&watch.metrics)));
    let queue = metered(Puppet::default());
    queue.pull().await.unwrap().unwrap();
    let answers = [
        ("mayfly_queue_operations_total{operation=\"answer\",result=\"ok\"}", 1.0),
        ("mayfly_queue_operations_total{operation=\"answer\",result=\"error\"}", 1.0),
        ("mayfly_queue_answer_duration_seconds_sum", SOME),
        ("mayfly_queue_answer_duration_seconds_count", 2.0),
    ];
    let failing = metered(Puppet { fails: true, ..Puppet::default() });
    watch.moved(&[
        ("mayfly_pulled_jobs_total", 1.0),
        ("mayfly_queue_operations_total{operation=\"pull\",result=\"ok\"}", 1.0),
        ("mayfly_job_queue_duration_seconds_count{tier=\"docker\"}", 1.0),
        ("mayfly_job_queue_duration_seconds_sum{tier=\"docker\"}", 90.0),
        ("mayfly_acceptable_job_queue_duration_exceeded_total{tier=\"docker\"}", 1.0),
        ("mayfly_tenant_pulled_jobs_total{tenant=\"acme\"}", 1.0),
        ("mayfly_tenant_queue_seconds_total{tenant=\"acme\"}", 90.0),
    ]);
    queue.answer(&(), &result(0), 1).await.unwrap();
    failing.answer(&(), &result(0), 1).await.unwrap_err();
    watch.moved(&answers);
    queue.ack(()).await.unwrap();
    watch.moved(&[("mayfly_queue_operations_total{operation=\"ack\",result=\"ok\"}", 1.0)]);
    for (why, reason) in [
        (Requeue::Unable, "unable"),
        (Requeue::Stopping, "stopping"),
        (Requeue::Later(Duration::ZERO), "later"),
        (Requeue::Elsewhere(Tier::Vm), "elsewhere"),
    ] {
        queue.requeue((), why).await.unwrap();
        watch.moved(&[
            ("mayfly_queue_operations_total{operation=\"requeue\",result=\"ok\"}", 1.0),
            (&format!("mayfly_requeued_jobs_total{{reason=\"{reason}\"}}"), 1.0),
        ]);
    }
}

async fn runner_moves(watch: &mut Watch) {
    let runner = Metered::new(Puppet::default(), Some(Arc::clone(&watch.metrics)));
    let origin = Origin { id: "one".into(), tenant: "acme".into(), attempt: 1, queued: Duration::ZERO };
    let assignment = admit(job(), origin, &Policy::default()).unwrap();
    let run = async |result: JobResult| {
        *runner.result.lock().unwrap() = Some(result);
        drop(runner.work(&assignment, Progress::default(), cancellation().1).await);
    };
    run(result(1)).await;
    let common = [
        ("mayfly_started_jobs_total{tier=\"docker\"}", 1.0),
        ("mayfly_job_execution_duration_seconds_count{tier=\"docker\"}", 1.0),
        ("mayfly_job_execution_duration_seconds_sum{tier=\"docker\"}", 4.0),
        ("mayfly_job_collect_duration_seconds_count{tier=\"docker\"}", 1.0),
        ("mayfly_job_collect_duration_seconds_sum{tier=\"docker\"}", 0.25),
    ];
    let of_source = |source: &str| {
        let labels = format!("{{source=\"{source}\",tier=\"docker\"}}");
        [
            (format!("mayfly_checkouts_total{labels}"), 1.0),
            (format!("mayfly_job_checkout_duration_seconds_count{labels}"), 1.0),
            (format!("mayfly_job_checkout_duration_seconds_sum{labels}"), 1.0),
            (format!("mayfly_job_startup_duration_seconds_count{labels}"), 1.0),
            (format!("mayfly_job_startup_duration_seconds_sum{labels}"), 1.5),
        ]
    };
    let (warm, cold) = (of_source("warm"), of_source("cold"));
    let with = |of_source: &'_ [(String, f64)], more: &[(&'static str, f64)]| -> Vec<(String, f64)> {
        let fixed = common.iter().chain(more).map(|(series, change)| ((*series).to_owned(), *change));
        of_source.iter().cloned().chain(fixed).collect()
    };
    let moved = |watch: &mut Watch, expected: Vec<(String, f64)>| {
        let expected: Vec<_> = expected.iter().map(|(series, change)| (series.as_str(), *change)).collect();
        watch.moved(&expected);
    };
    moved(watch, with(&warm, &[]));
    for (generation, reason, series) in [
        (2, ColdReason::Empty, "mayfly_cold_checkouts_total{reason=\"empty\",tier=\"docker\"}"),
        (3, ColdReason::Shape, "mayfly_cold_checkouts_total{reason=\"shape\",tier=\"docker\"}"),
    ] {
        run(JobResult { source: Some(Source::Cold), cold_reason: Some(reason), ..result(generation) }).await;
        moved(watch, with(&cold, &[(series, 1.0)]));
    }
    run(result(1)).await;
    moved(watch, with(&warm, &[("mayfly_sandbox_reused_total", 1.0)]));
    run(JobResult { tier: None, source: None, generation: None, ..result(4) }).await;
    watch.moved(&[("mayfly_started_jobs_total{tier=\"docker\"}", 1.0)]);
}

async fn store_moves(watch: &mut Watch) {
    let metered = |puppet| Metered::new(puppet, Some(Arc::clone(&watch.metrics)));
    let (store, stale) = (metered(Puppet::default()), metered(Puppet { stale: true, ..Puppet::default() }));
    let failing = metered(Puppet { fails: true, ..Puppet::default() });
    let calls = |operation: &str, result: &str| {
        format!("mayfly_store_operations_total{{operation=\"{operation}\",result=\"{result}\"}}")
    };
    let call = ("mayfly_store_operation_duration_seconds_count", 1.0);
    let took = ("mayfly_store_operation_duration_seconds_sum", SOME);
    store.begin(&key(), &BodyDigest::of(&[])).await.unwrap();
    watch.moved(&[(&calls("begin", "ok"), 1.0), call, took]);
    failing.begin(&key(), &BodyDigest::of(&[])).await.unwrap_err();
    watch.moved(&[(&calls("begin", "error"), 1.0), call, took]);
    store.release(attempt()).await.unwrap();
    watch.moved(&[(&calls("release", "ok"), 1.0), call, took]);
    let file = |size| Artifact { path: "/job/a".into(), size, sha256: String::new() };
    let result = |tenant: &str| JobResult {
        tenant: tenant.to_owned(),
        artifacts: vec![file(3), file(4)],
        ..result(9)
    };
    // A tenant that is not the configuration's is told apart from none.
    for (tenant, shown) in [("acme", "acme"), ("stranger", "other")] {
        store.finish(attempt(), &result(tenant)).await.unwrap();
        watch.moved(&[
            (&calls("finish", "ok"), 1.0),
            call,
            took,
            ("mayfly_completed_jobs_total{outcome=\"failed\",tier=\"docker\"}", 1.0),
            (&format!("mayfly_tenant_completed_jobs_total{{outcome=\"failed\",tenant=\"{shown}\"}}"), 1.0),
            (&format!("mayfly_tenant_run_seconds_total{{tenant=\"{shown}\"}}"), 4.0),
            (&format!("mayfly_tenant_cpu_seconds_total{{tenant=\"{shown}\"}}"), 2.0),
            (&format!("mayfly_tenant_artifact_bytes_total{{tenant=\"{shown}\"}}"), 7.0),
        ]);
    }
    let reached = Egress {
        made: 2,
        refused: 3,
        reasons: [(egress::Reason::Name, 2), (egress::Reason::Bytes, 1)].into(),
        sent: 10,
        received: 20,
        ..Egress::default()
    };
    let far = JobResult { egress: Some(reached), artifacts: Vec::new(), ..result("acme") };
    store.finish(attempt(), &far).await.unwrap();
    watch.moved(&[
        (&calls("finish", "ok"), 1.0),
        call,
        took,
        ("mayfly_completed_jobs_total{outcome=\"failed\",tier=\"docker\"}", 1.0),
        ("mayfly_tenant_completed_jobs_total{outcome=\"failed\",tenant=\"acme\"}", 1.0),
        ("mayfly_tenant_run_seconds_total{tenant=\"acme\"}", 4.0),
        ("mayfly_tenant_cpu_seconds_total{tenant=\"acme\"}", 2.0),
        ("mayfly_tenant_egress_connections_total{tenant=\"acme\"}", 2.0),
        ("mayfly_tenant_egress_bytes_total{direction=\"sent\",tenant=\"acme\"}", 10.0),
        ("mayfly_tenant_egress_bytes_total{direction=\"received\",tenant=\"acme\"}", 20.0),
        ("mayfly_egress_refused_total{reason=\"name\"}", 2.0),
        ("mayfly_egress_refused_total{reason=\"bytes\"}", 1.0),
    ]);
    stale.finish(attempt(), &result("acme")).await.unwrap();
    watch.moved(&[(&calls("finish", "ok"), 1.0), call, took, ("mayfly_stale_results_refused_total", 1.0)]);
}

fn pool_moves(watch: &mut Watch) {
    let metrics = Arc::clone(&watch.metrics);
    let took = Duration::from_secs(2);
    let made = |tier, old_runtime, accelerator| {
        metrics.hear(Happening::Made { tier, took, old_runtime, accelerator });
    };
    let of = |tier: &str| {
        [
            (format!("mayfly_sandbox_creation_attempts_total{{result=\"made\",tier=\"{tier}\"}}"), 1.0),
            (format!("mayfly_sandbox_creation_duration_seconds_count{{tier=\"{tier}\"}}"), 1.0),
            (format!("mayfly_sandbox_creation_duration_seconds_sum{{tier=\"{tier}\"}}"), 2.0),
        ]
    };
    let with = |watch: &mut Watch, tier: &str, more: &[(&str, f64)]| {
        let of = of(tier);
        let expected = of.iter().map(|(series, change)| (series.as_str(), *change));
        watch.moved(&expected.chain(more.iter().copied()).collect::<Vec<_>>());
    };
    made(Tier::Docker, true, None);
    with(watch, "docker", &[("mayfly_docker_runtime_below_floor", 1.0)]);
    made(Tier::Docker, false, None);
    with(watch, "docker", &[("mayfly_docker_runtime_below_floor", -1.0)]);
    made(Tier::Vm, false, Some(Accelerator::Tcg));
    with(watch, "vm", &[("mayfly_vm_accelerator{accel=\"tcg\"}", 1.0)]);
    made(Tier::Vm, false, Some(Accelerator::Kvm));
    let both =
        [("mayfly_vm_accelerator{accel=\"tcg\"}", -1.0), ("mayfly_vm_accelerator{accel=\"kvm\"}", 1.0)];
    with(watch, "vm", &both);
    metrics.hear(Happening::NotMade { tier: Tier::Nspawn });
    watch.moved(&[("mayfly_sandbox_creation_attempts_total{result=\"failed\",tier=\"nspawn\"}", 1.0)]);
    for how in [Ending::Destroyed, Ending::Reverted, Ending::Quarantined] {
        metrics.hear(Happening::Ended { tier: Tier::Chroot, how, took });
        watch.moved(&[
            (&format!("mayfly_sandboxes_ended_total{{how=\"{}\",tier=\"chroot\"}}", how.name()), 1.0),
            ("mayfly_sandbox_destroy_duration_seconds_count{tier=\"chroot\"}", 1.0),
            ("mayfly_sandbox_destroy_duration_seconds_sum{tier=\"chroot\"}", 2.0),
        ]);
    }
    let left = Leftover {
        instance: "0".repeat(32).parse().unwrap(),
        pid: 1,
        processes: 5,
        cgroups: 4,
        containers: 3,
        domains: 6,
        uid_ranges: 2,
    };
    metrics.hear(Happening::Swept { ended: &[left], stuck: 1 });
    watch.moved(&[
        ("mayfly_reaper_leaks_total{kind=\"mayfly\"}", 1.0),
        ("mayfly_reaper_leaks_total{kind=\"process\"}", 5.0),
        ("mayfly_reaper_leaks_total{kind=\"cgroup\"}", 4.0),
        ("mayfly_reaper_leaks_total{kind=\"container\"}", 3.0),
        ("mayfly_reaper_leaks_total{kind=\"domain\"}", 6.0),
        ("mayfly_reaper_leaks_total{kind=\"uid_range\"}", 2.0),
        ("mayfly_reaper_failures_total", 1.0),
    ]);
    metrics.hear(Happening::Swept { ended: &[], stuck: 0 });
    watch.moved(&[("mayfly_reaper_last_run_timestamp_seconds", SOME)]);
}

fn view() -> View {
    let link = |epoch| LinkHealth { connected: true, epoch, ..LinkHealth::default() };
    let kind = |image: &str, ready| KindStatus {
        tier: Tier::Chroot,
        image: format!("{image}@sha256:0"),
        limits: Limits::default(),
        ready,
        target: 5,
        making: 6,
        leased: 7,
        quarantined: 8,
        waiting: 9,
        refill_us: 10,
    };
    let running = |phase| RunningJob {
        job: key(),
        tier: Tier::Chroot,
        phase,
        attempt: 1,
        elapsed_us: 1,
        image: "minimal".into(),
        times_us: Vec::new(),
        waits_for: None,
    };
    let lane = |tenant: &str, high, jobs| Waiting {
        tenant: Some(tenant.into()),
        tier: Some(Tier::Chroot),
        high,
        jobs,
        ..Waiting::default()
    };
    let counts = Counts {
        pulled: 100,
        rings: 101,
        pulled_nothing: 102,
        results: 103,
        results_unrouted: 104,
        results_cut: 105,
        replies: 106,
        replies_refused: 107,
        replies_lost: 108,
        dead: 109,
        dead_refused: 110,
        moved: 111,
        requeued: 112,
        stale: 113,
    };
    View {
        slots: 4,
        running: vec![running(Phase::Run), running(Phase::Run), running(Phase::Stage)],
        waiting: vec![lane("acme", true, 30), lane("stranger", false, 20)],
        parked: vec![(Tier::Nspawn, 0), (Tier::Vm, 11)],
        retries: 3,
        kinds: vec![kind("base", 1), kind("base", 3)],
        resting: vec![Resting { tier: Tier::Vm, why: "no KVM".into(), rests_us: 1, tries: 1, again_us: 1 }],
        tested: Vec::new(),
        tiers: vec![Tier::Chroot, Tier::Vm],
        stopping: false,
        servers: Some(Servers {
            broker: Health { intake: link(1), outlet: link(2) },
            counts,
            store: redis::Health::Connected,
        }),
    }
}

fn view_moves(watch: &mut Watch) {
    watch.metrics.show(&View::default());
    watch.moved(&[("mayfly_ready", 1.0)]);
    watch.metrics.show(&view());
    let pool =
        |state: &str| format!("mayfly_pool_sandboxes{{image=\"base\",state=\"{state}\",tier=\"chroot\"}}");
    watch.moved(&[
        ("mayfly_slots", 4.0),
        ("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}", 2.0),
        ("mayfly_running_jobs{phase=\"stage\",tier=\"chroot\"}", 1.0),
        ("mayfly_tenant_running_jobs{tenant=\"acme\"}", 3.0),
        ("mayfly_waiting_jobs{class=\"high\",tier=\"chroot\"}", 30.0),
        ("mayfly_waiting_jobs{class=\"normal\",tier=\"chroot\"}", 20.0),
        ("mayfly_tenant_waiting_jobs{tenant=\"acme\"}", 30.0),
        ("mayfly_tenant_waiting_jobs{tenant=\"other\"}", 20.0),
        ("mayfly_parked_jobs{tier=\"vm\"}", 11.0),
        ("mayfly_retried_jobs_total", 3.0),
        // Two kinds of one image are one series.
        (&pool("making"), 12.0),
        (&pool("ready"), 4.0),
        (&pool("leased"), 14.0),
        (&pool("quarantined"), 16.0),
        ("mayfly_pool_target_sandboxes{image=\"base\",tier=\"chroot\"}", 10.0),
        ("mayfly_pool_waiting_jobs{image=\"base\",tier=\"chroot\"}", 18.0),
        ("mayfly_tier_resting{tier=\"vm\"}", 1.0),
        ("mayfly_broker_connected{link=\"intake\"}", 1.0),
        ("mayfly_broker_connected{link=\"outlet\"}", 1.0),
        ("mayfly_broker_connections_total{link=\"intake\"}", 1.0),
        ("mayfly_broker_connections_total{link=\"outlet\"}", 2.0),
        ("mayfly_broker_events_total{event=\"ring\"}", 101.0),
        ("mayfly_broker_events_total{event=\"pull_empty\"}", 102.0),
        ("mayfly_broker_events_total{event=\"result\"}", 103.0),
        ("mayfly_broker_events_total{event=\"result_unrouted\"}", 104.0),
        ("mayfly_broker_events_total{event=\"result_cut\"}", 105.0),
        ("mayfly_broker_events_total{event=\"reply\"}", 106.0),
        ("mayfly_broker_events_total{event=\"reply_refused\"}", 107.0),
        ("mayfly_broker_events_total{event=\"reply_lost\"}", 108.0),
        ("mayfly_broker_events_total{event=\"dead_letter\"}", 109.0),
        ("mayfly_broker_events_total{event=\"dead_letter_refused\"}", 110.0),
        ("mayfly_broker_events_total{event=\"moved\"}", 111.0),
        ("mayfly_broker_events_total{event=\"put_back\"}", 112.0),
        ("mayfly_broker_events_total{event=\"stale_ack\"}", 113.0),
        ("mayfly_store_connected", 1.0),
    ]);
    let mut cut = view();
    cut.servers.as_mut().unwrap().broker.outlet.connected = false;
    watch.metrics.show(&cut);
    watch.moved(&[("mayfly_broker_connected{link=\"outlet\"}", -1.0), ("mayfly_ready", -1.0)]);
    watch.metrics.show(&view());
    watch.moved(&[("mayfly_broker_connected{link=\"outlet\"}", 1.0), ("mayfly_ready", 1.0)]);
    let mut later = View { stopping: true, ..view() };
    later.servers.as_mut().unwrap().broker.intake.blocked = Some("memory".into());
    watch.metrics.show(&later);
    watch.moved(&[
        ("mayfly_broker_blocked{link=\"intake\"}", 1.0),
        ("mayfly_stopping", 1.0),
        ("mayfly_ready", -1.0),
    ]);
    let pressure = Pressure { cpu: Some(50.0), memory: Some(25.0), io: Some(12.5), available: Some(0.75) };
    watch.metrics.show_host(pressure);
    watch.moved(&[
        ("mayfly_host_pressure_ratio{resource=\"cpu\"}", 0.5),
        ("mayfly_host_pressure_ratio{resource=\"memory\"}", 0.25),
        ("mayfly_host_pressure_ratio{resource=\"io\"}", 0.125),
        ("mayfly_host_memory_available_ratio", 0.75),
    ]);
}

#[test]
fn what_has_two_labels_or_fewer_is_there_from_the_start() {
    let metrics = Metrics::new(known());
    let text = metrics.text(None);
    for family in DECLARED.iter().filter(|family| family.labels.len() <= 2) {
        if family.labels.iter().any(|label| label.values() == Values::Images) {
            continue;
        }
        assert!(text.contains(&format!("# HELP {} {}\n", family.name, family.help)), "{}", family.name);
    }
    let text = metrics.text(Some(&View::default()));
    // What is kept ready is shown before there is any.
    assert!(
        text.contains("mayfly_pool_sandboxes{image=\"base\",state=\"ready\",tier=\"chroot\"} 0\n"),
        "{text}"
    );
    for family in DECLARED {
        assert!(text.contains(&format!("# TYPE {} ", family.name)), "{}", family.name);
    }
}

#[test]
fn readiness_says_why_not() {
    assert_eq!(view().unready(), [""; 0], "one tier rests, the other does not");
    let mut tired = View { tiers: vec![Tier::Vm], stopping: true, ..view() };
    let servers = tired.servers.as_mut().unwrap();
    servers.broker.intake = LinkHealth { reason: Some("refused".into()), ..LinkHealth::default() };
    servers.broker.outlet.blocked = Some("low on disk".into());
    servers.store = redis::Health::Unknown;
    let said = tired.unready().join("\n");
    for why in [
        "stopping",
        "jobs: refused",
        "takes no results: low on disk",
        "store has not answered",
        "tier vm rests: no KVM",
    ] {
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn without_metrics_nothing_is_counted_and_all_goes_as_with_them() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let plain = Metered::new(Puppet::default(), None);
    let pulled = runtime.block_on(plain.pull()).unwrap().unwrap();
    assert_eq!(pulled.key, key());
    assert!(matches!(runtime.block_on(plain.finish(attempt(), &result(1))), Ok(Finished::Stored)));
}

//! What a host shows of itself over HTTP, moved by what really happens to it.

#![expect(clippy::float_cmp, reason = "counts are whole numbers, which are compared exactly")]

mod dashboards;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::{Ipv4Addr, TcpListener},
    thread,
};

use rustix::process::Signal;
use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{Version, free_port, get};
use worker::Outcome;

use crate::harness::{Cluster, Host, Node, eventually, script};

/// Families that nothing moves here: it cannot happen (a reuse), happens only where there is a daemon or a machine, or
/// would harm others' tests. The unit test of `scheduler/src/metrics/tests.rs` moves them all the same.
const RARE: [&str; 9] = [
    "mayfly_broker_blocked",
    "mayfly_docker_runtime_below_floor",
    "mayfly_pool_waiting_jobs",
    "mayfly_reaper_failures_total",
    "mayfly_sandbox_reused_total",
    "mayfly_selftest_without_report",
    "mayfly_stale_results_refused_total",
    "mayfly_trace_spans_total",
    "mayfly_vm_accelerator",
];

/// A host that shows itself at a port of its own.
struct Shown {
    host: Host,
    port: u16,
    tenant: String,
    /// Families that were seen.
    families: BTreeSet<String>,
    /// Those of them that were seen to be other than zero.
    moved: BTreeSet<String>,
}

impl Shown {
    fn serve(cluster: &Cluster, mut host: Host, more: &str) -> Self {
        let port = free_port().unwrap();
        let here = format!("listen = '127.0.0.1:{port}'\n{more}");
        let change = |config: &str| {
            let config = config.replace("listen = '127.0.0.1:0'", &here);
            let config = config.replace("[serve]", "[serve]\ntier_wait = '60s'");
            format!("{config}\n[selftest]\nat_start = true\nevery = '1h'\n")
        };
        cluster.serve_changed(&mut host, change, |it| it);
        let tenant = cluster.tenant.clone();
        let shown = Self { host, port, tenant, families: BTreeSet::new(), moved: BTreeSet::new() };
        eventually("it is ready", || (shown.get("/readyz")?.0 == 200).then_some(()));
        shown
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.port, path, "").ok()
    }

    /// All that it shows now. What is other than zero has moved.
    fn look(&mut self) -> Samples {
        let (status, text) = self.get("/metrics").expect("it answers");
        assert_eq!(status, 200);
        let samples = Samples::read(text);
        for family in samples.families() {
            samples.check_labels(&family, &self.tenant);
            let of = |(series, value): (&String, &f64)| {
                let name = series.split('{').next().unwrap_or_default();
                *value != 0.0
                    && name.strip_prefix(&family).is_some_and(|rest| ["", "_sum", "_count"].contains(&rest))
            };
            if samples.numbers.iter().any(of) {
                self.moved.insert(family.clone());
            }
            self.families.insert(family);
        }
        samples
    }
}

/// What docs/metrics.md says that a label of a family can be; `None`: it does not list them.
fn documented(family: &str, label: &str) -> Option<BTreeSet<&'static str>> {
    const PAGE: &str = include_str!("../../../docs/metrics.md");
    let rows = PAGE.split_once("## Values of labels").unwrap().1.lines();
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let of = |row: &Vec<&str>| {
        row.get(1) == Some(&format!("`{label}`").as_str())
            && (row[2].contains(&format!("`{family}`")) || row[2].ends_with(" families"))
    };
    let values = rows.filter(of).map(|row| row[3].split(' ').map(|value| value.trim_matches('`')));
    let values: Vec<_> = values.flatten().collect();
    (!values.is_empty()).then(|| values.into_iter().collect())
}

/// One look.
struct Samples {
    text: String,
    numbers: BTreeMap<String, f64>,
}

impl Samples {
    fn read(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let numbers = lines.map(|line| line.rsplit_once(' ').unwrap());
        let numbers = numbers.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect();
        Self { text, numbers }
    }

    fn families(&self) -> Vec<String> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    /// Each value of a label is one that the documentation lists, or the configuration.
    fn check_labels(&self, family: &str, tenant: &str) {
        for series in self.numbers.keys() {
            let Some((name, labels)) = series.split_once('{') else { continue };
            let is_of = |rest| ["", "_bucket", "_sum", "_count"].contains(&rest);
            if !name.strip_prefix(family).is_some_and(is_of) {
                continue;
            }
            for (label, value) in labels.trim_end_matches('}').split(',').filter_map(|it| it.split_once('='))
            {
                let value = value.trim_matches('"');
                let known = match label {
                    "tenant" => [tenant, "other"].contains(&value),
                    "image" => ["minimal", "base", "other"].contains(&value),
                    "version" | "verb" | "le" => true,
                    _ => documented(family, label).is_some_and(|values| values.contains(value)),
                };
                assert!(known, "{series}: {label} is never {value}");
            }
        }
    }

    #[track_caller]
    fn of(&self, series: &str) -> f64 {
        *self.numbers.get(series).unwrap_or_else(|| panic!("no {series} in {}", self.text))
    }
}

#[test]
fn what_happens_to_a_host_is_seen_in_its_numbers_and_every_family_moves() {
    let test = "service::metrics::what_happens_to_a_host_is_seen_in_its_numbers_and_every_family_moves";
    let door = "allow = ['good.test:*']\n[network.hosts]\n'good.test' = '127.0.0.1'";
    let Some(mut cluster) = Cluster::new(test, Version::Debian12, door) else { return };
    let mut shown = Shown::serve(&cluster, Cluster::idle_host(), "acceptable_wait = '1us'");
    let tenant = cluster.tenant.clone();

    let start = shown.look();
    assert_eq!(start.of("mayfly_slots"), 4.0);
    assert_eq!(start.of("mayfly_tier_offered{tier=\"chroot\"}"), 1.0);
    assert_eq!(start.of("mayfly_tier_offered{tier=\"vm\"}"), 0.0);
    assert_eq!(
        start.of("mayfly_completed_jobs_total{outcome=\"sandbox_lost\",tier=\"vm\"}"),
        0.0,
        "from the start"
    );

    jobs_end_in_all_ways(&cluster, &mut shown, &tenant);
    a_job_reaches_out(&cluster, &mut shown, &tenant);
    jobs_wait_and_run(&cluster, &mut shown, &tenant);
    a_sandbox_is_lost(&cluster, &mut shown);
    a_tier_rests(&cluster, &mut shown);
    the_store_goes_away(&mut cluster, &mut shown);
    shown = it_is_killed(&cluster, shown);
    it_stops(&cluster, &mut shown);

    let all = &shown.families;
    let rare: BTreeSet<_> = RARE.iter().map(ToString::to_string).collect();
    let never: Vec<_> = all.difference(&shown.moved).filter(|family| !rare.contains(*family)).collect();
    assert_eq!(never, [""; 0], "shown, and moved by nothing that happens here");
    assert_eq!(rare.difference(all).collect::<Vec<_>>(), [""; 0], "rare, and not shown at all");
    shown.host.stop().code(0);
    shown.host.check();
}

fn a_job_reaches_out(cluster: &Cluster, shown: &mut Shown, tenant: &str) {
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = outside.local_addr().unwrap().port();
    let answering = thread::spawn(move || {
        let (mut stream, _) = outside.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    });
    let before = shown.look();
    let text = format!("wget -qO- http://good.test:{port}/; wget -qO- http://bad.test/; true");
    let job = script(&text, &json!({ "allow": [format!("good.test:{port}")] }));
    let answered = cluster.answer(cluster.send(&cluster.producer(ReplyBy::Queue), "reaches", job));
    assert_eq!((answered.outcome, answered.stdout.text.as_str()), (Outcome::Succeeded, "ok"), "{answered:?}");
    answering.join().unwrap();
    let after = shown.look();
    let by = |series: String| after.of(&series) - before.of(&series);
    assert_eq!(by(format!("mayfly_tenant_egress_connections_total{{tenant=\"{tenant}\"}}")), 1.0);
    assert_eq!(by("mayfly_egress_refused_total{reason=\"name\"}".to_owned()), 1.0);
    for direction in ["sent", "received"] {
        let series =
            format!("mayfly_tenant_egress_bytes_total{{direction=\"{direction}\",tenant=\"{tenant}\"}}");
        assert!(by(series) > 10.0, "{direction}");
    }
}

fn jobs_end_in_all_ways(cluster: &Cluster, shown: &mut Shown, tenant: &str) {
    let before = shown.look();
    let producer = cluster.producer(ReplyBy::Queue);
    let ways = [
        ("works", script("echo x >/job/out", &json!({ "artifacts": ["/job/out"] })), Outcome::Succeeded),
        ("fails", script("exit 3", &json!({})), Outcome::Failed),
        ("slow", script("sleep 1000", &json!({ "timeout": "200ms", "grace": "0s" })), Outcome::TimedOut),
        ("chatty", script("yes", &json!({ "limits": { "output": "4KiB" } })), Outcome::OutputLimit),
        ("nothing", "{}".to_owned(), Outcome::Rejected),
    ];
    for (id, job, outcome) in &ways {
        let answered = cluster.answer(cluster.send(&producer, id, job.as_str()));
        assert_eq!(answered.outcome, *outcome, "{answered:?}");
    }
    // A result is stored, and counted, before it is told.
    let after = shown.look();
    let by = |series: &str| after.of(series) - before.of(series);
    for (_, _, outcome) in &ways {
        let (name, tier) = (outcome.name(), if *outcome == Outcome::Rejected { "none" } else { "chroot" });
        assert_eq!(by(&format!("mayfly_completed_jobs_total{{outcome=\"{name}\",tier=\"{tier}\"}}")), 1.0);
        let of_tenant = format!("{{outcome=\"{name}\",tenant=\"{tenant}\"}}");
        assert_eq!(by(&format!("mayfly_tenant_completed_jobs_total{of_tenant}")), 1.0);
    }
    assert_eq!(by("mayfly_pulled_jobs_total"), 5.0);
    assert_eq!(by("mayfly_started_jobs_total{tier=\"chroot\"}"), 4.0);
    let sources = ["warm", "cold"].map(|source| {
        let labels = format!("{{source=\"{source}\",tier=\"chroot\"}}");
        assert_eq!(
            by(&format!("mayfly_job_checkout_duration_seconds_count{labels}")),
            by(&format!("mayfly_checkouts_total{labels}"))
        );
        by(&format!("mayfly_checkouts_total{labels}"))
    });
    assert_eq!(sources.iter().sum::<f64>(), 4.0);
    assert_eq!(by("mayfly_cold_checkouts_total{reason=\"empty\",tier=\"chroot\"}"), sources[1]);
    assert_eq!(by(&format!("mayfly_tenant_artifact_bytes_total{{tenant=\"{tenant}\"}}")), 2.0);
    assert_eq!(by("mayfly_store_operations_total{operation=\"finish\",result=\"ok\"}"), 5.0);
    assert_eq!(after.of("mayfly_sandbox_reused_total"), 0.0);
    eventually("the host has heard that the broker has all results", || {
        let now = shown.look();
        let told = "mayfly_queue_operations_total{operation=\"answer\",result=\"ok\"}";
        (now.of(told) - before.of(told) == 5.0).then_some(())
    });
    eventually("all their sandboxes are gone", || {
        let gone = shown.look().of("mayfly_sandboxes_ended_total{how=\"destroyed\",tier=\"chroot\"}");
        (gone >= 4.0).then_some(())
    });
}

fn jobs_wait_and_run(cluster: &Cluster, shown: &mut Shown, tenant: &str) {
    let producer = cluster.producer(ReplyBy::Queue);
    let long = script("sleep 1000", &json!({}));
    for number in 0..7 {
        drop(cluster.send(&producer, &format!("long-{number}"), long.as_str()));
    }
    eventually("four run and three wait", || {
        let now = shown.look();
        let run = now.of("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}");
        let waits = now.of("mayfly_waiting_jobs{class=\"normal\",tier=\"chroot\"}");
        let leased = now.of("mayfly_pool_sandboxes{image=\"minimal\",state=\"leased\",tier=\"chroot\"}");
        let tenant_waits = now.of(&format!("mayfly_tenant_waiting_jobs{{tenant=\"{tenant}\"}}"));
        ((run, waits, tenant_waits, leased) == (4.0, 3.0, 3.0, 4.0)).then_some(())
    });
    assert_eq!(shown.look().of(&format!("mayfly_tenant_running_jobs{{tenant=\"{tenant}\"}}")), 4.0);
    let node = Node::new();
    for number in 0..7 {
        cluster.mayfly(&node, ["cancel", &cluster.key(&format!("long-{number}"))]).finish().code(0);
    }
    eventually("all are cancelled", || {
        let cancelled = shown
            .look()
            .of(&format!("mayfly_tenant_completed_jobs_total{{outcome=\"cancelled\",tenant=\"{tenant}\"}}"));
        (cancelled == 7.0).then_some(())
    });
    // A job whose body needs a stronger tier than its way gives goes on to there.
    let stronger = script("true", &json!({ "tier": "nspawn" }));
    drop(cluster.send(&producer, "stronger", stronger));
    eventually("it was sent on", || {
        let now = shown.look();
        let back = now.of("mayfly_requeued_jobs_total{reason=\"elsewhere\"}");
        (back == 1.0 && now.of("mayfly_broker_events_total{event=\"moved\"}") == 1.0).then_some(())
    });
    eventually("it is known to wait for a host that offers its tier", || {
        let now = shown.look();
        assert_eq!(now.of("mayfly_parked_jobs{tier=\"chroot\"}"), 0.0);
        (now.of("mayfly_parked_jobs{tier=\"nspawn\"}") == 1.0).then_some(())
    });
}

fn a_sandbox_is_lost(cluster: &Cluster, shown: &mut Shown) {
    let producer = cluster.producer(ReplyBy::Queue);
    let job = script("sleep 1000", &json!({ "idempotent": true }));
    drop(cluster.send(&producer, "unlucky", job));
    let agent = eventually("it runs", || {
        let running = shown.look().of("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}");
        let busy = shown.host.node.sandboxes().into_iter().find(|sandbox| {
            let commands = sandbox.job().into_iter().map(|pid| fs::read(format!("/proc/{pid}/cmdline")));
            commands.flatten().any(|command| command.starts_with(b"sleep"))
        });
        busy.filter(|_| running == 1.0)?.agent().first().copied()
    });
    let agent = rustix::process::Pid::from_raw(agent as i32).unwrap();
    rustix::process::kill_process(agent, Signal::KILL).unwrap();
    eventually("it has another", || (shown.look().of("mayfly_retried_jobs_total") >= 1.0).then_some(()));
    cluster.mayfly(&Node::new(), ["cancel", &cluster.key("unlucky")]).finish().code(0);
    eventually("it is over", || {
        (shown.look().of("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}") == 0.0).then_some(())
    });
}

fn a_tier_rests(cluster: &Cluster, shown: &mut Shown) {
    let images = super::unable::break_images(&shown.host);
    let producer = cluster.producer(ReplyBy::Queue);
    let sent = cluster.send(&producer, "later", script("true", &json!({})));
    eventually("its one tier rests", || {
        (shown.look().of("mayfly_tier_resting{tier=\"chroot\"}") == 1.0).then_some(())
    });
    let (status, why) = shown.get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(why.starts_with("not ready\ntier chroot rests: "), "{why}");
    assert_eq!(shown.look().of("mayfly_ready"), 0.0);
    super::unable::mend_images(&shown.host, &images);
    assert_eq!(cluster.answer(sent).outcome, Outcome::Succeeded);
    eventually("it is ready again", || (shown.get("/readyz")?.0 == 200).then_some(()));
    assert!(shown.look().of("mayfly_requeued_jobs_total{reason=\"unable\"}") >= 1.0);
}

fn the_store_goes_away(cluster: &mut Cluster, shown: &mut Shown) {
    cluster.store.stop().unwrap();
    let why = eventually("it is not ready", || shown.get("/readyz").filter(|(status, _)| *status == 503));
    assert!(why.1.contains("the store is away"), "{}", why.1);
    assert_eq!(shown.look().of("mayfly_store_connected"), 0.0);
    assert_eq!(shown.get("/healthz").unwrap(), (200, "ok\n".to_owned()), "it lives all the same");
    cluster.store.start_again().unwrap();
    eventually("it is ready again", || (shown.get("/readyz")?.0 == 200).then_some(()));
}

/// The next host of the node counts what the killed one left.
fn it_is_killed(cluster: &Cluster, mut shown: Shown) -> Shown {
    let producer = cluster.producer(ReplyBy::Queue);
    let long = script("sleep 1000", &json!({ "idempotent": true, "max_attempts": 20 }));
    drop(cluster.send(&producer, "killed", long));
    eventually("it runs", || {
        (shown.look().of("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}") == 1.0).then_some(())
    });
    shown.host.kill();
    let Shown { host, families, moved, .. } = shown;
    let mut next = Shown { families, moved, ..Shown::serve(cluster, host, "") };
    let now = next.look();
    assert_eq!(now.of("mayfly_reaper_leaks_total{kind=\"mayfly\"}"), 1.0);
    assert!(now.of("mayfly_reaper_leaks_total{kind=\"cgroup\"}") >= 1.0);
    assert!(now.of("mayfly_reaper_last_run_timestamp_seconds") >= now.of("mayfly_start_time_seconds"));
    next
}

fn it_stops(cluster: &Cluster, shown: &mut Shown) {
    eventually("the job runs again", || {
        (shown.look().of("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}") == 1.0).then_some(())
    });
    shown.host.running().signal(Signal::TERM);
    eventually("it says that it stops", || (shown.look().of("mayfly_stopping") == 1.0).then_some(()));
    assert!(shown.get("/readyz").unwrap().1.contains("takes no more jobs"));
    cluster.mayfly(&Node::new(), ["cancel", &cluster.key("killed")]).finish().code(0);
}

#[test]
fn a_port_that_somebody_has_is_named_before_anything_is_made() {
    let test = "service::metrics::a_port_that_somebody_has_is_named_before_anything_is_made";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let mut host = Cluster::idle_host();
    cluster.serve_changed(&mut host, |config| config.replace("127.0.0.1:0", &address), |it| it);
    host.end().code(125).says(&["cannot be shown", &address, "metrics.listen", "\"off\""]);
    assert_eq!(host.node.leftovers(), [""; 0]);
}

#[test]
fn a_batch_shows_its_numbers_to_this_host_alone() {
    let node = Node::new();
    let lines: Vec<String> =
        (0..3).map(|n| script("sleep 1000", &json!({ "id": format!("job-{n}") }))).collect();
    let jobs = node.write("jobs.jsonl", lines.join("\n"));
    node.mayfly(["batch", &jobs, "--metrics", "0.0.0.0:9477"]).finish().code(125).says(&[
        "cannot show metrics there",
        "0.0.0.0:9477",
        "127.0.0.1",
    ]);
    let port = free_port().unwrap();
    let running =
        node.mayfly(["batch", &jobs, "--jobs", "1", "--metrics", &format!("127.0.0.1:{port}")]).start();
    eventually("one runs and two wait", || {
        let now = Samples::read(get(port, "/metrics", "").ok()?.1);
        let run = now.of("mayfly_running_jobs{phase=\"run\",tier=\"chroot\"}");
        let waits = now.of("mayfly_waiting_jobs{class=\"normal\",tier=\"chroot\"}");
        assert_eq!(
            now.of(&format!("mayfly_build_info{{verb=\"batch\",version=\"{}\"}}", env!("CARGO_PKG_VERSION"))),
            1.0
        );
        ((run, waits) == (1.0, 2.0)).then_some(())
    });
    assert_eq!(get(port, "/readyz", "").unwrap(), (200, "ready\n".to_owned()));
    running.signal(Signal::INT);
    // Two at once may be one to the kernel.
    eventually("the first was heard", || (get(port, "/readyz", "").ok()?.0 == 503).then_some(()));
    running.signal(Signal::INT);
    running.finish().code(130);
}

/// Tenants and images that are no others', as a configuration names them.
pub(super) fn many(tenants: usize, images: usize) -> String {
    let mut text = String::new();
    for number in 0..tenants {
        let _ = writeln!(text, "[tenants.tenant-number-{number}]");
    }
    for (number, tier) in (0..images).flat_map(|number| pool::Tier::ALL.map(|tier| (number, tier))) {
        let _ =
            writeln!(text, "[[pool.keep]]\ntier = '{tier}'\nimage = 'image-number-{number}'\nidle_count = 1");
    }
    text
}

/// The bar of the project. How long it takes is measured where nothing else runs: `bench.rs`.
#[test]
fn a_scrape_with_200_tenants_and_50_images_is_less_than_a_mebibyte() {
    let test = "service::metrics::a_scrape_with_200_tenants_and_50_images_is_less_than_a_mebibyte";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let (mut host, port) = (Cluster::idle_host(), free_port().unwrap());
    // It is not set up for these tenants, nor are the images there: they are shown all the same.
    let change = |config: &str| {
        let config = config.replace("'127.0.0.1:0'", &format!("'127.0.0.1:{port}'"));
        format!("{config}\n{}", many(200, 50))
    };
    cluster.serve_changed(&mut host, change, |mayfly| mayfly);
    eventually("it answers", || get(port, "/healthz", "").ok());
    let (status, text) = get(port, "/metrics", "").unwrap();
    assert_eq!(status, 200);
    assert!(text.contains("tenant=\"tenant-number-199\"") && text.contains("image=\"image-number-49\""));
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
    host.stop().code(0);
    host.check();
}

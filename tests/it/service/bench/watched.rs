//! What it costs to be watched: metrics that somebody fetches, traces that are sent, and how long one look takes.
//!
//! Noise of a shared machine is larger than what is looked for, and goes in waves of seconds to minutes. So both sides take
//! turns of about a second, all else of them stays as it is, and the median is of many pairs.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;

/// Pairs, without and with what is measured, and the jobs of each side.
const PAIRS: usize = 41;
const JOBS: usize = 400;
/// All turns of a host take less, on the slowest machine.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// What being watched may cost, in percent of the jobs a second.
const COST: f64 = 3.0;

/// Looks at the metrics, and how long one may take.
const SCRAPES: usize = 51;
const SCRAPE: Duration = Duration::from_millis(50);

/// Looks at the metrics there each second, as a Prometheus would more rarely, while something is done.
fn scraped<T>(port: Option<u16>, act: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut answered = 0;
            while let Some(port) = port.filter(|_| !over.load(Ordering::SeqCst)) {
                // Before it is there and after it has gone, nobody answers.
                answered += usize::from(get(port, "/metrics", "").is_ok());
                thread::park_timeout(Duration::from_millis(if answered == 0 { 5 } else { 1000 }));
            }
            assert!(port.is_none() || answered > 0, "nobody looked at the metrics");
        });
        let made = act();
        over.store(true, Ordering::SeqCst);
        watcher.thread().unpark();
        made
    })
}

/// Says what the second of two costs: `rate` gives the jobs a second without it and with it.
fn cost(bars: &mut Bars, of: &str, mut rate: impl FnMut(&str, bool) -> f64) {
    for with in [false, true] {
        rate(&format!("warm-up-{with}"), with);
    }
    let mut costs: Vec<f64> = (0..PAIRS)
        .map(|pair| {
            // In turns, so that what gets slower by and by counts for both.
            let order = if pair % 2 == 0 { [false, true] } else { [true, false] };
            let rates = order.map(|with| rate(&format!("{pair}-{with}"), with));
            let [without, with] = if order[0] { [rates[1], rates[0]] } else { rates };
            println!("  pair {pair}: {without:.0} jobs/s without, {with:.0} with");
            (1.0 - with / without) * 100.0
        })
        .collect();
    costs.sort_by(f64::total_cmp);
    let at = |part: usize| costs[PAIRS * part / 4];
    println!("  {:<62}{:>14}", "quartiles of the pairs", format!("{:.1} to {:.1} %", at(1), at(3)));
    let what = format!("what {of}, median of {PAIRS} pairs");
    bars.figure(&what, &format!("{:.1} %", at(2)), "less than 3 %", at(2) < COST);
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn what_metrics_cost() {
    let (node, mut bars) = (Node::new(), Bars::default());
    let job = json!({ "schema_version": 1, "image": "minimal", "tier": "chroot", "command": ["/bin/true"] });
    node.write("jobs.jsonl", format!("{job}\n").repeat(JOBS));
    cost(&mut bars, "metrics cost a batch", |name, metrics| {
        let port = metrics.then(|| free_port().unwrap());
        let (jobs, results) = (node.file("jobs.jsonl"), node.file(name));
        let address = port.map(|port| format!("127.0.0.1:{port}"));
        let mut words = vec!["batch", jobs.to_str().unwrap(), "-o", results.to_str().unwrap(), "--json"];
        words.extend(address.iter().flat_map(|address| ["--metrics", address]));
        // The clock stops before whoever looks at the metrics has slept out.
        scraped(port, || {
            let began = Instant::now();
            node.mayfly(words).finish().code(0);
            JOBS as f64 / began.elapsed().as_secs_f64()
        })
    });
}

/// A host that serves all the time, and those who keep it busy in their turns.
struct Side {
    cluster: Cluster,
    host: Host,
    producers: Vec<Arc<Producer>>,
    /// Where its metrics are, if it is watched.
    port: Option<u16>,
    /// CPU time of the host's own process in its turns, and the jobs of them.
    cpu: f64,
    jobs: usize,
}

impl Side {
    /// One that is watched where it is said who takes the traces.
    fn start(broker: &'static RabbitMq, collector: Option<&Collector>) -> Self {
        let cluster = Cluster::over(broker, Redis::start().unwrap(), "");
        let port = collector.map(|_| free_port().unwrap());
        let change = |text: &str| match port.zip(collector) {
            Some((port, Collector { endpoint, .. })) => {
                let listening = text.replace("'127.0.0.1:0'", &format!("'127.0.0.1:{port}'"));
                format!("{listening}\n[traces]\nendpoint = '{endpoint}'\n")
            }
            None => text.replace("'127.0.0.1:0'", "'off'"),
        };
        let mut host = Cluster::idle_host();
        cluster.serve_changed(&mut host, change, |mayfly| mayfly.for_at_most(LONGEST));
        let producers = producers(&cluster);
        Self { cluster, host, producers, port, cpu: 0.0, jobs: 0 }
    }

    /// Its turn: jobs a second.
    fn rate(&mut self, name: &str) -> f64 {
        let (before, began) = (cpu(&self.host), Instant::now());
        let took = scraped(self.port, || {
            keep_under_way(&self.cluster, name, &self.producers, JOBS / PRODUCERS);
            began.elapsed()
        });
        self.cpu += cpu(&self.host) - before;
        self.jobs += JOBS;
        JOBS as f64 / took.as_secs_f64()
    }

    fn cpu_of_a_job(&self) -> f64 {
        self.cpu * 1000.0 / self.jobs as f64
    }

    fn stop(mut self) {
        self.host.stop().code(0);
        self.host.check();
    }
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn what_metrics_and_traces_cost_a_host() {
    let test = "service::bench::watched::what_metrics_and_traces_cost_a_host";
    let Some((broker, mut bars)) = begin(test) else { return };
    let collector = Collector::start(Does::Forget);
    let (mut plain, mut watched) = (Side::start(broker, None), Side::start(broker, Some(&collector)));
    cost(&mut bars, "metrics and traces cost a host", |name, with| {
        if with { watched.rate(name) } else { plain.rate(name) }
    });
    let cpu = format!("{:.2} / {:.2} ms", plain.cpu_of_a_job(), watched.cpu_of_a_job());
    println!("  {:<62}{cpu:>14}", "CPU time of the host's process for a job, without / with");
    plain.stop();
    watched.stop();
    assert!(collector.was_asked(), "no span came");
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn how_long_a_scrape_takes() {
    let test = "service::bench::watched::how_long_a_scrape_takes";
    let Some((broker, mut bars)) = begin(test) else { return };
    // The images are not there, and are shown all the same.
    let cluster = Cluster::over(broker, Redis::start().unwrap(), &many(TENANTS, 50));
    let (mut host, port) = (Cluster::idle_host(), free_port().unwrap());
    let change = |config: &str| config.replace("'127.0.0.1:0'", &format!("'127.0.0.1:{port}'"));
    cluster.serve_changed(&mut host, change, |it| it);
    // What has happened weighs more than what has not.
    keep_under_way(&cluster, "scraped", &producers(&cluster), 125);
    let mut looks: Vec<_> = (0..SCRAPES)
        .map(|_| {
            let began = Instant::now();
            let (status, text) = get(port, "/metrics", "").unwrap();
            assert!(status == 200 && text.contains("mayfly_job_execution_duration_seconds_bucket"));
            (began.elapsed(), text.len())
        })
        .collect();
    looks.sort();
    let (took, bytes) = looks[SCRAPES / 2];
    let what = format!("a scrape with {TENANTS} tenants and 50 images, median of {SCRAPES}");
    bars.figure(&what, &format!("{:.1} ms", ms(took)), "less than 50 ms", took < SCRAPE);
    bars.figure("its size", &format!("{} KiB", bytes / 1024), "less than 1 MiB", bytes < 1 << 20);
    host.stop().code(0);
    host.check();
}

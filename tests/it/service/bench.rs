//! What the service form costs, in figures: `scripts/bench-serve` prints them. The servers share this machine's cores with
//! the hosts and with the producer, and the store has each write on disk before it answers, unless it says otherwise.

#![expect(clippy::print_stdout, reason = "the figures are what this is for")]

mod watched;

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    sync::Arc,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use scheduler::broker::{Producer, ReplyBy};
use serde_json::{Value, json};
use servers::{RabbitMq, Redis, Version, free_port, get};
use tokio::task::JoinSet;
use worker::Outcome;

use super::{
    flood,
    metrics::many,
    send_many,
    traces::{Collector, Does},
};
use crate::harness::{Cluster, HEARD, Host, Node, Tier, eventually, ready, script, submission};

/// The bars, for a release build on two cores that nobody else uses.
const ONE_AT_A_TIME: Duration = Duration::from_millis(6);
const SUSTAINED: f64 = 150.0;
const IDLE_SHARE: f64 = 5.0;
/// What the memory of a host may differ by, whatever waits, in KiB.
const GROWTH: u64 = 4096;
/// A host may hold so many messages beside those of its slots: results that are under way.
const HELD_BESIDE: u64 = 8;

/// Jobs that wait while memory is looked at.
const MANY: usize = 100_000;
const TENANTS: usize = 200;
/// How often it is looked how many messages are held.
const LOOKS: usize = 10;
/// Jobs of each of two tenants that three hosts share.
const EACH: usize = 450;

/// Producers of a sustained load, and the jobs of each that are under way at once.
const PRODUCERS: usize = 4;
const UNDER_WAY: usize = 32;

/// Collects what misses its bar, so that all is measured before any of it fails.
#[derive(Default)]
struct Bars(Vec<String>);

impl Bars {
    fn figure(&mut self, what: &str, figure: &str, bar: &str, met: bool) {
        println!("  {what:<62}{figure:>14}   {}{bar}", if met { "bar: " } else { "MISSED: " });
        if !met {
            self.0.push(format!("{what}: {figure}, {bar}"));
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let missed = std::mem::take(&mut self.0);
        assert!(
            missed.is_empty() || thread::panicking(),
            "bars of a release build on a quiet machine were missed (load {}): {missed:#?}",
            load.trim()
        );
    }
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn how_fast_it_is() {
    let mut bars = Bars::default();
    for version in Version::ALL {
        let Ok(broker) = RabbitMq::shared(version) else {
            servers::skipped("service::bench::how_fast_it_is", version.name());
            continue;
        };
        for fsync in ["always", "everysec"] {
            let store = Redis::start_with(&[("appendfsync", fsync)]).unwrap();
            let cluster = Cluster::over(broker, store, "");
            println!("{}, redis with appendfsync {fsync}", version.name());
            one_at_a_time(&cluster, &mut bars);
            sustained(&cluster, &mut bars);
        }
    }
}

fn trivial() -> String {
    script("true", &json!({ "command": ["/bin/true"] }))
}

/// From publishing to the result in the producer's hands.
fn one_at_a_time(cluster: &Cluster, bars: &mut Bars) {
    let mut host = cluster.host();
    let producer = cluster.producer(ReplyBy::Direct);
    for (name, gap) in [("back to back", Duration::ZERO), ("50 ms between", Duration::from_millis(50))] {
        let (mut times, mut warm) = (Vec::new(), 0);
        for number in 0..330 {
            let id = format!("{}-{number}", gap.as_millis());
            let began = Instant::now();
            let result = cluster.answer(cluster.send(&producer, &id, trivial()));
            // The first of them find no sandbox that waits.
            if number >= 30 {
                times.push(began.elapsed());
                warm += usize::from(result.cold_reason.is_none());
            }
            assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
            sleep(gap);
        }
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100];
        let figure = format!("{:.2} / {:.2} ms", ms(at(50)), ms(at(99)));
        let what = format!("publish to result, {name}, {warm} of {} warm, p50 / p99", times.len());
        bars.figure(&what, &figure, "p50 at most 6 ms", at(50) <= ONE_AT_A_TIME);
    }
    host.stop().code(0);
    host.check();
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Producers that always have some jobs under way.
fn sustained(cluster: &Cluster, bars: &mut Bars) {
    let mut host = cluster.host();
    let rate = rate_of_host(cluster, "many", 750);
    let what = format!("sustained, {PRODUCERS} producers, one host of {} slots", cluster.slots);
    bars.figure(&what, &format!("{rate:.0} jobs/s"), "at least 150 jobs/s", rate >= SUSTAINED);
    host.stop().code(0);
    host.check();
}

/// Jobs a second, after some to warm it up, with so many of each producer.
fn rate_of_host(cluster: &Cluster, name: &str, each: usize) -> f64 {
    let producers = producers(cluster);
    keep_under_way(cluster, &format!("{name}-warm-up"), &producers, 50);
    let began = Instant::now();
    keep_under_way(cluster, name, &producers, each);
    (PRODUCERS * each) as f64 / began.elapsed().as_secs_f64()
}

fn producers(cluster: &Cluster) -> Vec<Arc<Producer>> {
    (0..PRODUCERS).map(|_| Arc::new(cluster.producer(ReplyBy::Direct))).collect()
}

fn keep_under_way(cluster: &Cluster, name: &str, producers: &[Arc<Producer>], each: usize) {
    let body: Arc<str> = trivial().into();
    let work = producers.iter().enumerate().map(|(number, producer)| {
        let (body, producer, name) = (Arc::clone(&body), Arc::clone(producer), name.to_owned());
        async move {
            let mut waiting = JoinSet::new();
            for job in 0..each {
                while waiting.len() >= UNDER_WAY {
                    waiting.join_next().await.unwrap().unwrap();
                }
                let sent = producer.submit(submission(&format!("{name}-{number}-{job}"), &*body));
                let sent = sent.await.unwrap();
                waiting.spawn(async move {
                    let result = sent.result().await.unwrap().result.unwrap();
                    assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
                });
            }
            while waiting.join_next().await.is_some() {}
        }
    });
    cluster.wait(async {
        let mut all = JoinSet::new();
        work.for_each(|work| drop(all.spawn(work)));
        while let Some(ended) = all.join_next().await {
            ended.unwrap();
        }
    });
}

/// The servers that the other figures are of.
fn begin(test: &str) -> Option<(&'static RabbitMq, Bars)> {
    match RabbitMq::shared(Version::Debian12) {
        Ok(broker) => {
            println!("\n{}, redis with appendfsync always", broker.version().name());
            Some((broker, Bars::default()))
        }
        Err(why) => {
            servers::skipped(test, why);
            None
        }
    }
}

/// Kilobytes of memory that the host's own process has.
fn memory(host: &Host) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", host.running().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn what_waiting_jobs_cost() {
    let Some((broker, mut bars)) = begin("service::bench::what_waiting_jobs_cost") else { return };
    let cluster = Cluster::over(broker, Redis::start().unwrap(), "");
    let mut host = cluster.host();
    // All slots are taken, so what comes waits.
    let endless = send_many(&cluster, 0, cluster.slots, "sleep 1000");
    eventually("all slots are taken", || (cluster.in_flight([&host]) == cluster.slots).then_some(()));
    sleep(Duration::from_secs(2));
    let before = memory(&host);
    let began = Instant::now();
    flood(&cluster, MANY, &trivial());
    let queue = format!("mayfly.jobs.{}.chroot.normal", cluster.tenant);
    eventually("all of them wait", || (cluster.depth(&queue) == MANY as u64).then_some(()));
    println!("  {MANY} jobs were sent in {:.1} s", began.elapsed().as_secs_f64());
    sleep(Duration::from_secs(3));
    let after = memory(&host);
    let figure = format!("{before} / {after} KiB");
    bars.figure(
        "memory of a host with 0 and with 100,000 waiting jobs",
        &figure,
        "at most 4 MiB apart",
        after.saturating_sub(before) <= GROWTH,
    );
    // And while it works them off.
    for id in &endless {
        cluster.mayfly(&host.node, ["cancel", &cluster.key(id)]).finish().code(0);
    }
    eventually("it works them off", || (cluster.depth(&queue) < MANY as u64 - 500).then_some(()));
    let while_working = memory(&host);
    println!("  {:<62}{:>14}", "after 500 of them", format!("{while_working} KiB"));
    host.stop().code(0);
    host.check();
}

/// Seconds of CPU time that the host's own process has used.
fn cpu(host: &Host) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.running().pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // utime and stime, in hundredths: proc(5).
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn what_many_tenants_cost() {
    let Some((broker, mut bars)) = begin("service::bench::what_many_tenants_cost") else { return };
    let names: Vec<String> = (0..TENANTS).map(|number| format!("tenant-{number}")).collect();
    let mut tenants = String::new();
    for name in &names {
        let _ = writeln!(tenants, "[tenants.{name}]");
    }
    let mut cluster = Cluster::over(broker, Redis::start().unwrap(), &tenants);
    if ready(Tier::Nspawn).is_ok() {
        cluster.tiers = "['chroot', 'nspawn']";
    }
    let mut host = cluster.host();
    // It has looked at every lane once.
    sleep(Duration::from_secs(5));
    let (before, began) = (cpu(&host), Instant::now());
    sleep(Duration::from_secs(20));
    let share = (cpu(&host) - before) / began.elapsed().as_secs_f64() * 100.0;
    let what = "an idle host with 200 tenants";
    bars.figure(what, &format!("{share:.1} % of a core"), "less than 5 %", share < IDLE_SHARE);

    for name in &names {
        let producer = cluster.producer_of(name, ReplyBy::Nothing);
        for number in 0..3 {
            drop(cluster.send(&producer, &format!("job-{number}"), script("sleep 0.3", &json!({}))));
        }
    }
    let held: Vec<u64> = (0..LOOKS).map(|_| cluster.held()).collect();
    let (seen, most) = (held.iter().filter(|held| **held > 0).count(), held.iter().max().unwrap());
    let bar = format!("at most {} and {HELD_BESIDE} results under way", cluster.slots);
    // Where nothing is ever seen, nothing was looked at.
    let met = seen > LOOKS / 2 && *most <= cluster.slots as u64 + HELD_BESIDE;
    let what = format!("most messages that it holds, {seen} of {LOOKS} looks, 600 jobs of 200 tenants");
    bars.figure(&what, &most.to_string(), &bar, met);
    host.stop().code(0);
    host.check();
}

#[test]
#[ignore = "it measures: scripts/bench-serve"]
fn three_hosts_and_one_that_dies() {
    let Some((broker, mut bars)) = begin("service::bench::three_hosts_and_one_that_dies") else { return };
    let tenants = "weight = 1\n[tenants.double]\nweight = 2\n";
    let cluster = Cluster::over(broker, Redis::start().unwrap(), tenants);
    cluster.listen();
    let double = cluster.producer_of("double", ReplyBy::Nothing);
    flood(&cluster, EACH, &trivial());
    for number in 0..EACH {
        drop(cluster.send(&double, &format!("double-{number}"), trivial()));
    }
    let mut hosts = [cluster.host(), cluster.host(), cluster.host()];
    let ended = |least: usize| {
        eventually("so many ended", || (cluster.depth(HEARD) >= least as u64).then_some(Instant::now()))
    };
    let (first, last) = (ended(100), ended(2 * EACH));
    let rate = (2 * EACH - 100) as f64 / (last - first).as_secs_f64();
    bars.figure(
        "three hosts of 4 slots",
        &format!("{rate:.0} jobs/s"),
        "at least 150 jobs/s",
        rate >= SUSTAINED,
    );
    let heard = cluster.heard();
    // As long as both have jobs that wait.
    let share = heard[..EACH].iter().filter(|result| result.tenant == "double").count();
    let figure = format!("{} : {share}", EACH - share);
    let fair = (share as f64 / EACH as f64 - 2.0 / 3.0).abs() < 0.1;
    bars.figure("results of two tenants of weights 1 and 2, while both wait", &figure, "1 : 2", fair);
    let mut by_host = BTreeMap::new();
    for (number, host) in hosts.iter().enumerate() {
        let starts = host.node.ledger().into_iter().filter(|record: &Value| record["event"] == "consumed");
        by_host.insert(number, starts.count());
    }
    println!("  {:<62}{:>14}", "jobs of each host", format!("{by_host:?}"));

    let accepted = send_many(&cluster, 0, 60, "sleep 0.3");
    eventually("the first runs four", || (cluster.in_flight([&hosts[0]]) == 4).then_some(()));
    let (mine, began) = ([Cluster::instance_of(&hosts[0])], Instant::now());
    hosts[0].kill();
    eventually("another has taken them over", || (cluster.owned_by(&mine) == 0).then_some(()));
    let took = began.elapsed();
    let evidence = cluster.prove(&accepted);
    evidence.is_clean();
    let clean = evidence.ended(Outcome::Succeeded) == accepted.len();
    bars.figure(
        "one of three killed: until others have all its jobs",
        &format!("{:.2} s", took.as_secs_f64()),
        "the lease is 3 s",
        clean && took <= Duration::from_millis(3500),
    );
    println!("  {:<62}{:>14}", "jobs of it that ran once more", evidence.recovered);
    for host in &mut hosts[1..] {
        host.stop().code(0);
        host.check();
    }
    hosts[0].node.mayfly(["reap"]).finish().code(0);
    hosts[0].check();
}

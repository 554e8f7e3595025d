//! Hosts that are killed again and again, at each moment that counts and at any: every job that the broker took ends in
//! one result, and nothing stays.
//!
//! A few kills belong to the suite. `scripts/soak-serve` has two hundred.

#![expect(clippy::print_stdout, reason = "the counts are what a soak is for")]

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::Version;
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, Evidence, HEARD, Host, Tier, ready};

/// Where a host can be ended by a failpoint, in a job's order; `any` is whenever it happens to be.
const EDGES: [&str; 10] =
    ["moved", "pulled", "begun", "any", "released", "ended", "stored", "answered", "acked", "any later"];
const HOSTS: usize = 3;
const SLOTS: usize = 32;
/// A kill counts with so many jobs in flight.
const LEAST: usize = 50;
/// Jobs that may wait.
const BACKLOG: usize = 300;
/// A host that is to die has died after this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// One that nothing kills lives until the end of all. Its own end has the usual time.
const LONGEST: Duration = Duration::from_secs(30 * 60);

on_every_broker! {
    a_host_that_is_killed_at_any_moment_loses_no_job_and_repeats_no_result
}

fn a_host_that_is_killed_at_any_moment_loses_no_job_and_repeats_no_result(test: &str, version: Version) {
    soak(test, version, 0);
}

#[test]
#[ignore = "it takes minutes: scripts/soak-serve"]
fn many_kills() {
    let kills = env::var("MAYFLY_SOAK_KILLS").map_or(200, |kills| kills.parse().unwrap());
    for (version, kills) in [(Version::Debian12, kills - kills / 2), (Version::V4, kills / 2)] {
        soak("service::kills::many_kills", version, kills);
    }
}

/// Kills so many times, and at least once at each edge.
fn soak(test: &str, version: Version, kills: usize) {
    if !cfg!(feature = "failpoints") {
        return servers::tell_skipped(test, "it needs --features failpoints");
    }
    let Some(mut cluster) = Cluster::new(test, version, "") else { return };
    cluster.slots = SLOTS;
    let stronger = ready(Tier::Nspawn).is_ok();
    cluster.tiers = if stronger { "['chroot', 'nspawn']" } else { "['chroot']" };
    cluster.listen();
    let began = Instant::now();
    let enough = AtomicBool::new(false);
    let (fed, toll, hosts) = thread::scope(|scope| {
        let feeding = scope.spawn(|| feed(&cluster, &enough, stronger));
        // Also when a kill goes wrong: else the feeder would never end.
        let _done = Raise(&enough);
        let edges = EDGES.into_iter().filter(|edge| *edge != "moved" || stronger);
        let mut toll = Toll { counts: edges.map(|edge| (edge, 0)).collect(), ..Toll::default() };
        let hosts = reap(&cluster, &mut toll, kills);
        enough.store(true, Ordering::SeqCst);
        (feeding.join().unwrap(), toll, hosts)
    });
    let evidence = cluster.prove(&fed.accepted);
    fed.check(&hosts);
    for mut host in hosts {
        host.stop().code(0);
        host.check();
    }
    println!("{}: {}", version.name(), toll.tell(&fed, &evidence, began.elapsed()));
    evidence.is_clean();
    // One that was running on a host that was told to stop at once, and may not run again, is cancelled.
    let known = [Outcome::Succeeded, Outcome::SandboxLost, Outcome::Cancelled];
    assert!(evidence.outcomes.keys().all(|outcome| known.contains(outcome)), "{evidence:?}");
}

struct Raise<'f>(&'f AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What a producer did.
#[derive(Default)]
struct Fed {
    attempted: usize,
    accepted: Vec<String>,
}

/// Whether a job may run again.
fn again(number: usize) -> bool {
    number.is_multiple_of(2)
}

/// Sends jobs, so that some always wait, until it is enough.
fn feed(cluster: &Cluster, enough: &AtomicBool, stronger: bool) -> Fed {
    let producer = cluster.producer(ReplyBy::Nothing);
    let mut fed = Fed::default();
    while !enough.load(Ordering::SeqCst) {
        if fed.attempted >= BACKLOG + cluster.depth(HEARD) as usize {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        for number in fed.attempted..fed.attempted + 20 {
            let mut job = json!({
                "schema_version": 1, "image": "minimal", "command": ["sleep", "0.4"],
                "trust": "trusted", "idempotent": again(number), "max_attempts": 20,
            });
            if stronger && number.is_multiple_of(20) {
                job["trust"] = "internal".into();
            }
            fed.attempted += 1;
            let id = format!("job-{number}");
            drop(cluster.send(&producer, &id, job.to_string()));
            fed.accepted.push(id);
        }
    }
    fed
}

impl Fed {
    /// What may have started and must not run again was started once.
    fn check(&self, hosts: &[Host]) {
        let mut starts = BTreeMap::new();
        let records = hosts.iter().flat_map(|host| host.node.ledger());
        for record in records.filter(|record| record["event"] == "consumed") {
            *starts.entry(record["job"]["id"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        for number in (0..self.attempted).filter(|number| !again(*number)) {
            let started = starts.get(&format!("job-{number}")).copied().unwrap_or(0);
            assert!(started <= 1, "job-{number} ran {started} times");
        }
    }
}

/// Who died when.
#[derive(Default)]
struct Toll {
    counts: BTreeMap<&'static str, usize>,
    extra: usize,
    least: Option<usize>,
    most: usize,
}

/// A host that dies soon.
struct Doomed {
    host: Host,
    edge: &'static str,
    since: Instant,
}

/// Lets hosts die and come again until it was often enough. Gives back hosts that live.
fn reap(cluster: &Cluster, toll: &mut Toll, kills: usize) -> Vec<Host> {
    let mut doomed: Vec<Doomed> = Vec::new();
    for _ in 0..HOSTS {
        let edge = toll.next(&doomed);
        let mut next = Doomed { host: Host::idle(), edge, since: Instant::now() };
        next.serve(cluster);
        doomed.push(next);
    }
    while !toll.is_full(kills) {
        thread::sleep(Duration::from_millis(5));
        for number in 0..HOSTS {
            doomed[number].push(cluster, &doomed);
            if !doomed[number].host.has_ended() {
                assert!(doomed[number].since.elapsed() < PATIENCE, "{} is not hit", doomed[number].edge);
                continue;
            }
            let flying = cluster.in_flight(doomed.iter().map(|doomed| &doomed.host));
            let ended = doomed[number].host.ended();
            assert_eq!(ended.ended_by(), Some(9), "{}: {}", doomed[number].edge, ended.stderr());
            toll.count(doomed[number].edge, flying);
            doomed[number].edge = toll.next(&doomed);
            doomed[number].serve(cluster);
        }
    }
    doomed
        .into_iter()
        .map(|mut doomed| {
            doomed.host.kill();
            cluster.serve(&mut doomed.host, |mayfly| mayfly.for_at_most(LONGEST));
            doomed.host
        })
        .collect()
}

/// A number that nobody chose.
fn chance(below: usize) -> usize {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.subsec_nanos() as usize / 100 % below
}

impl Doomed {
    fn serve(&mut self, cluster: &Cluster) {
        self.since = Instant::now();
        // When its slots are full, or when the first of them end.
        let times = match self.edge {
            "moved" => 1,
            "pulled" | "begun" => SLOTS + chance(SLOTS),
            "released" => 1 + chance(SLOTS / 4),
            _ => 1 + chance(SLOTS),
        };
        let point = format!("{}:{times}", self.edge);
        cluster.serve(&mut self.host, |mayfly| mayfly.env("MAYFLY_FAILPOINT", point).for_at_most(LONGEST));
    }

    /// Does what a failpoint cannot.
    fn push(&self, cluster: &Cluster, all: &[Doomed]) {
        let at_work = || cluster.in_flight([&self.host]) > SLOTS * 3 / 4;
        let enough = || cluster.in_flight(all.iter().map(|doomed| &doomed.host)) >= LEAST;
        match self.edge {
            "any" | "any later" if at_work() && enough() => {
                let later = Duration::from_millis(if self.edge == "any" { 0 } else { 300 });
                thread::sleep(later + Duration::from_millis(chance(100) as u64));
                self.signal(Signal::KILL);
            }
            // To be told to stop is no end, so it goes on doing what it does then.
            "released" if at_work() && enough() => {
                self.signal(Signal::TERM);
                thread::sleep(Duration::from_millis(20));
                self.signal(Signal::TERM);
            }
            _ => {}
        }
    }

    /// To mayfly alone, and not to what it started.
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.host.running().pid() as i32).unwrap();
        let _ = kill_process(pid, signal);
    }
}

impl Toll {
    /// The edge at which the fewest have died or are about to.
    fn next(&self, doomed: &[Doomed]) -> &'static str {
        let about = |edge: &str| doomed.iter().filter(|doomed| doomed.edge == edge).count();
        let fewest = self.counts.iter().min_by_key(|(edge, count)| **count + about(edge));
        fewest.expect("there are some").0
    }

    fn count(&mut self, edge: &'static str, flying: usize) {
        if flying < LEAST {
            self.extra += 1;
            return;
        }
        *self.counts.get_mut(edge).unwrap() += 1;
        self.least = Some(self.least.map_or(flying, |least| least.min(flying)));
        self.most = self.most.max(flying);
    }

    fn total(&self) -> usize {
        self.counts.values().sum()
    }

    fn is_full(&self, kills: usize) -> bool {
        self.total() >= kills && self.counts.values().all(|count| *count > 0)
    }

    fn tell(&self, fed: &Fed, evidence: &Evidence, took: Duration) -> String {
        let mut text = format!(
            "{} kills with {} to {} jobs in flight, and {} with fewer, in {:.0} s\n",
            self.total(),
            self.least.unwrap_or(0),
            self.most,
            self.extra,
            took.as_secs_f64(),
        );
        for (edge, count) in &self.counts {
            let _ = writeln!(text, "  at {edge}: {count}");
        }
        let ok = evidence.ended(Outcome::Succeeded);
        let _ = writeln!(
            text,
            "  attempted {}, acknowledged {}, results {} (ok {ok}, sandbox_lost {}, cancelled {}), lost {}, duplicated {}, \
             recovered {}, told again {}",
            fed.attempted,
            fed.accepted.len(),
            evidence.accepted,
            evidence.ended(Outcome::SandboxLost),
            evidence.ended(Outcome::Cancelled),
            fed.accepted.len() - evidence.accepted,
            evidence.duplicated.len() + evidence.strange.len(),
            evidence.recovered + evidence.ended(Outcome::SandboxLost),
            evidence.repeated,
        );
        text
    }
}

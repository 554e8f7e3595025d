//! `mayfly batch --remote`: a file of jobs that the hosts of the service run.

use std::{collections::BTreeMap, fs};

use rustix::process::Signal;
use serde_json::{Value, json};
use servers::{RabbitMq, Version};

use super::on_every_broker;
use crate::harness::{Cluster, Host, Node, eventually, script};

on_every_broker! {
    a_remote_batch_that_is_killed_goes_on_and_runs_every_job_once
    a_remote_batch_ends_every_line_with_what_became_of_it
}

/// Every result by its id. Fails if a job has two.
fn results(path: &str) -> BTreeMap<String, Value> {
    let mut results = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let result: Value = serde_json::from_str(line).unwrap();
        let id = result["id"].as_str().unwrap().to_owned();
        assert!(results.insert(id.clone(), result).is_none(), "{id} has two results");
    }
    results
}

fn runs(hosts: &[&Host]) -> usize {
    let ledgers = hosts.iter().flat_map(|host| host.node.ledger());
    ledgers.filter(|record| record["event"] == "consumed").count()
}

fn a_remote_batch_that_is_killed_goes_on_and_runs_every_job_once(test: &str, version: Version) {
    const JOBS: usize = 200;
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut one, mut two) = (cluster.host(), cluster.host());
    let node = Node::new();
    let line = |n: usize| match n % 2 {
        0 => script("cat /proc/sys/kernel/random/uuid", &json!({ "id": format!("job-{n}") })),
        // Some have no name of their own.
        _ => script("cat /proc/sys/kernel/random/uuid", &json!({ "meta": { "n": n } })),
    };
    let lines: Vec<_> = (0..JOBS).map(line).collect();
    let jobs = node.write("jobs.jsonl", lines.join("\n"));
    let file = node.file("results").to_str().unwrap().to_owned();
    let words = ["batch", "--remote", "--resume", "--jobs", "20", "-o", &file, &jobs];
    for kill in 1..=3 {
        let running = cluster.mayfly(&node, words).start();
        eventually("some more have ended", || {
            let ended = fs::read_to_string(&file).map_or(0, |text| text.lines().count());
            (ended >= 30 * kill).then_some(())
        });
        running.signal(Signal::KILL);
        assert_eq!(running.finish().ended_by(), Some(9));
    }
    assert!(results(&file).len() < JOBS, "the kills came too late to show anything");
    let summary = cluster.mayfly(&node, words).args(["--json"]).finish().code(0).json();
    assert_eq!((&summary["jobs"], &summary["left"]), (&json!(JOBS), &json!(0)));
    let results = results(&file);
    assert_eq!(results.len(), JOBS);
    assert!(results.values().all(|result| result["outcome"] == "succeeded"));
    assert!(results.values().all(|result| result["tenant"] == cluster.tenant.as_str()));
    assert_eq!(runs(&[&one, &two]), JOBS, "each ran once, however often it was sent");
    for (id, result) in results.iter().take(5) {
        assert_eq!(cluster.result(&node, id), *result, "the service has the same result");
    }
    assert!(!fs::exists(format!("{file}.mayfly")).unwrap(), "what is over needs no state");
    for host in [&mut one, &mut two] {
        host.stop().code(0);
        host.check();
    }
}

/// A broker of its own: the others' tests go on.
#[test]
fn a_remote_batch_outlives_its_broker() {
    const JOBS: usize = 120;
    let test = "service::batch::a_remote_batch_outlives_its_broker";
    let broker = match RabbitMq::start(Version::Debian12) {
        Ok(broker) => Box::leak(Box::new(broker)),
        Err(error) => return servers::skipped(test, &error.to_string()),
    };
    let Some(cluster) = Cluster::on(test, broker, "") else { return };
    let mut host = cluster.host();
    let node = Node::new();
    let job = |n: usize| json!({ "id": format!("job-{n}"), "idempotent": true, "max_attempts": 20 });
    let lines: Vec<_> = (0..JOBS).map(|n| script("sleep 0.1; echo $$", &job(n))).collect();
    let jobs = node.write("jobs.jsonl", lines.join("\n"));
    let file = node.file("results").to_str().unwrap().to_owned();
    let running = cluster.mayfly(&node, ["batch", "--remote", "-o", &file, &jobs]).start();
    eventually("some have ended", || {
        let ended = fs::read_to_string(&file).map_or(0, |text| text.lines().count());
        (ended >= 20).then_some(())
    });
    cluster.broker.kill().unwrap();
    cluster.broker.start_again().unwrap();
    running.finish().code(0);
    let results = results(&file);
    assert_eq!(results.len(), JOBS);
    assert!(results.values().all(|result| result["outcome"] == "succeeded"));
    host.stop().code(0);
    host.check();
}

fn a_remote_batch_ends_every_line_with_what_became_of_it(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = cluster.host();
    let node = Node::new();
    let lines = [
        script("echo out", &json!({ "id": "fine" })),
        "{ not json".to_owned(),
        script("exit 3", &json!({ "id": "fails" })),
        script("true", &json!({ "id": "fine" })),
        script("true", &json!({ "id": "absurd", "limits": { "cpus": 1e9 } })),
        script("echo kept >/job/a.txt", &json!({ "id": "leaves", "artifacts": ["/job/*.txt"] })),
        script("true", &json!({ "id": "foreign", "tenant": "other" })),
        json!({ "schema_version": 1, "command": ["true"] }).to_string(),
    ];
    let jobs = node.write("jobs.jsonl", lines.join("\n"));
    let file = node.file("results").to_str().unwrap().to_owned();
    let words = ["batch", "--remote", "--image", "minimal", "--tier", "chroot", "-o", &file, &jobs];
    let finished = cluster.mayfly(&node, words).finish().code(0);
    assert!(finished.stderr().contains("8 of 8 jobs have their result"), "{}", finished.stderr());
    let results = results(&file);
    let outcome = |id: &str| results[id]["outcome"].as_str().unwrap().to_owned();
    for (id, expected) in [
        ("fine", "succeeded"),
        ("fails", "failed"),
        ("absurd", "rejected"),
        ("leaves", "succeeded"),
        ("foreign", "rejected"),
    ] {
        assert_eq!(outcome(id), expected, "{id}");
    }
    let made_up: Vec<_> = results.keys().filter(|id| id.contains("line-")).collect();
    assert_eq!(made_up.len(), 3, "{made_up:?}");
    assert_eq!(results["leaves"]["artifacts"][0]["path"], "/job/a.txt");
    let folder = node.file("fetched");
    let get = ["result", &cluster.key("leaves"), "--get", folder.to_str().unwrap()];
    cluster.mayfly(&node, get).finish().code(0);
    assert_eq!(fs::read_to_string(folder.join("job/a.txt")).unwrap(), "kept\n");
    // The same file again, as a batch of its own: nothing is run twice.
    let before = runs(&[&host]);
    let again = node.file("again").to_str().unwrap().to_owned();
    let words = ["batch", "--remote", "--image", "minimal", "--tier", "chroot", "-o", &again, &jobs];
    cluster.mayfly(&node, words).finish().code(0);
    assert_eq!(runs(&[&host]), before);
    assert_eq!(self::results(&again), results);
    host.stop().code(0);
    host.check();
}

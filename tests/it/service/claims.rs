//! Jobs that run for longer than the broker lets a host hold them: claimed in the store, and ended by another host if
//! theirs dies.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
};

use rustix::process::Signal;
use scheduler::broker::ReplyBy;
use serde_json::{Value, json};
use servers::Version;
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, Host, Node, eventually, script};

on_every_broker! {
    a_claimed_job_of_a_host_that_is_killed_is_ended_by_another
    a_long_job_is_cancelled_waits_and_is_given_up_as_others_are
}

/// A broker that lets jobs be held for six seconds: what may run for more than three is claimed.
fn impatient(config: &str) -> String {
    config.replace("[store]", "consumer_timeout = '6s'\n[store]")
}

fn serve(cluster: &Cluster, host: &mut Host, failpoint: &str) {
    cluster.serve_changed(host, impatient, |mayfly| mayfly.env("MAYFLY_FAILPOINT", failpoint));
}

fn long(text: &str, more: &Value) -> String {
    let mut job: Value = serde_json::from_str(&script(text, more)).unwrap();
    job["timeout"] = "60s".into();
    job.to_string()
}

fn again() -> Value {
    json!({ "idempotent": true, "max_attempts": 20 })
}

/// What Redis answers, on one line.
fn redis(cluster: &Cluster, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.store.port())).unwrap();
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn claims(cluster: &Cluster) -> String {
    redis(cluster, "HLEN mayfly:claims")
}

fn a_claimed_job_of_a_host_that_is_killed_is_ended_by_another(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut victim, mut heir) = (Cluster::idle_host(), Cluster::idle_host());
    serve(&cluster, &mut victim, "");
    let producer = cluster.producer(ReplyBy::Queue);
    let sent = cluster.send(&producer, "long", long("sleep 4; echo done", &again()));
    let once = cluster.send(&producer, "once", long("sleep 600", &json!({})));
    eventually("both run and are claimed", || (claims(&cluster) == ":2").then_some(()));
    eventually("both run", || (victim.node.sandboxes().len() == 2).then_some(()));
    serve(&cluster, &mut heir, "");
    victim.kill();
    let result = cluster.answer(sent);
    assert_eq!(
        (result.outcome, result.attempt, result.stdout.text.as_str()),
        (Outcome::Succeeded, 2, "done\n")
    );
    let lost = cluster.answer(once);
    assert_eq!(
        (lost.outcome, lost.attempt),
        (Outcome::SandboxLost, 1),
        "it may have run, and must not run twice"
    );
    let stored = cluster.result(&heir.node, "long");
    assert_eq!(stored, serde_json::to_value(&result).unwrap(), "there is one result");
    eventually("nothing is claimed any more", || (claims(&cluster) == ":0").then_some(()));
    heir.stop()
        .code(0)
        .says(&["jobs that may run for more than 3s are claimed in the store", "stopped; 2 jobs"]);
    heir.check();
    victim.node.mayfly(["reap"]).finish().code(0);
    victim.check();
}

fn a_long_job_is_cancelled_waits_and_is_given_up_as_others_are(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "max_running = 1\n") else { return };
    let (mut first, mut second) = (Cluster::idle_host(), Cluster::idle_host());
    serve(&cluster, &mut first, "");
    let elsewhere = Node::new();
    let producer = cluster.producer(ReplyBy::Queue);
    let unwanted = cluster.send(&producer, "unwanted", long("sleep 600", &json!({})));
    eventually("it is claimed", || (claims(&cluster) == ":1").then_some(()));
    let waits = cluster.send(&producer, "waits", long("cat /proc/sys/kernel/random/uuid; sleep 4", &again()));
    // The tenant's cap holds for what is claimed: the other is left with the broker.
    eventually("the other is seen to wait", || {
        let said = first.node.mayfly(["status", "--json"]).finish().code(0).json();
        let mut all = said.as_array().unwrap().iter();
        all.any(|who| who["pid"] == first.running().pid() && who["waiting"] == 1).then_some(())
    });
    assert_eq!(claims(&cluster), ":1");
    cluster.mayfly(&elsewhere, ["cancel", &cluster.key("unwanted")]).finish().code(0);
    assert_eq!(cluster.answer(unwanted).outcome, Outcome::Cancelled);

    // A host that is told twice to stop hands its claim back, and whoever serves next ends it.
    eventually("the other runs", || {
        let logs = cluster.mayfly(&elsewhere, ["logs", &cluster.key("waits")]).finish();
        (!logs.text().is_empty()).then_some(())
    });
    let twin = cluster.send(&producer, "waits", long("cat /proc/sys/kernel/random/uuid; sleep 4", &again()));
    first.running().signal(Signal::TERM);
    eventually("it takes no more jobs", || {
        let said = first.node.mayfly(["status", "--json"]).finish().code(0).json();
        let mut all = said.as_array().unwrap().iter();
        all.any(|who| who["pid"] == first.running().pid() && who["stopping"] == true).then_some(())
    });
    first.stop().code(0);
    first.check();
    assert_eq!(claims(&cluster), ":1", "it waits for a host");
    serve(&cluster, &mut second, "");
    let result = cluster.answer(waits);
    assert_eq!((result.outcome, result.attempt), (Outcome::Succeeded, 1), "its first start was taken back");
    assert_eq!(cluster.answer(twin), result, "whoever sends it again hears the same");
    eventually("nothing is claimed any more", || (claims(&cluster) == ":0").then_some(()));
    second.stop().code(0);
    second.check();
}

/// One after the other, with one broker: the claim's steps do not depend on its version.
#[test]
fn a_host_that_dies_between_two_steps_of_a_claim_leaves_one_result() {
    let test = "service::claims::a_host_that_dies_between_two_steps_of_a_claim_leaves_one_result";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    for step in ["begun", "claimed", "claim-acked", "ended", "answered"] {
        let (mut victim, mut heir) = (Cluster::idle_host(), Cluster::idle_host());
        serve(&cluster, &mut victim, &format!("{step}:1"));
        let producer = cluster.producer(ReplyBy::Queue);
        let text = "cat /proc/sys/kernel/random/uuid";
        let sent = cluster.send(&producer, step, long(text, &again()));
        assert_eq!(victim.end().ended_by(), Some(Signal::KILL.as_raw()), "it dies at {step}");
        serve(&cluster, &mut heir, "");
        let result = cluster.answer(sent);
        assert_eq!(result.outcome, Outcome::Succeeded, "{step}: {result:?}");
        eventually("nothing is claimed any more", || (claims(&cluster) == ":0").then_some(()));
        // The same once more: whatever was told twice was the same.
        assert_eq!(cluster.answer(cluster.send(&producer, step, long(text, &again()))), result, "{step}");
        heir.stop().code(0);
        heir.check();
        victim.node.mayfly(["reap"]).finish().code(0);
        victim.check();
    }
}

#[test]
fn where_the_store_may_forget_long_jobs_are_rejected_with_the_reason() {
    let test = "service::claims::where_the_store_may_forget_long_jobs_are_rejected_with_the_reason";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    assert_eq!(redis(&cluster, "CONFIG SET appendfsync everysec"), "+OK");
    let mut host = Cluster::idle_host();
    serve(&cluster, &mut host, "");
    let producer = cluster.producer(ReplyBy::Queue);
    let result = cluster.answer(cluster.send(&producer, "long", long("true", &json!({}))));
    assert_eq!(result.outcome, Outcome::Rejected);
    let why = result.error.unwrap().why;
    for word in ["timeout", "appendfsync is everysec and must be always", "3s"] {
        assert!(why.contains(word), "no {word:?} in {why}");
    }
    let short = cluster.send(&producer, "short", script("true", &json!({ "timeout": "1s" })));
    assert_eq!(cluster.answer(short).outcome, Outcome::Succeeded);
    let untold = cluster.send(&producer, "untold", script("true", &json!({})));
    assert_eq!(cluster.answer(untold).outcome, Outcome::Succeeded, "who does not say gets a time that fits");
    cluster.mayfly(&host.node, ["doctor"]).finish().prints(&["long jobs", "are rejected", "appendfsync"]);
    assert_eq!(redis(&cluster, "CONFIG SET appendfsync always"), "+OK");
    cluster.mayfly(&host.node, ["doctor"]).finish().prints(&["long jobs", "are claimed"]);
    let kept = cluster.answer(cluster.send(&producer, "kept", long("true", &json!({}))));
    assert_eq!(kept.outcome, Outcome::Succeeded);
    host.stop().code(0).says(&["are rejected, as the store may forget a claim"]);
    host.check();
}

//! One job's way through the service, and back.

use rustix::process::Signal;
use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{Proxy, Version};
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, eventually, script, with_failpoints};

on_every_broker! {
    a_job_that_is_submitted_runs_and_its_result_comes_back
    the_same_job_sent_again_is_answered_with_the_first_result
    a_job_that_waits_or_runs_can_be_cancelled_from_anywhere
    what_a_job_leaves_is_fetched_from_another_host
    a_host_that_is_told_to_stop_ends_its_jobs_and_leaves_the_rest
}

fn a_job_that_is_submitted_runs_and_its_result_comes_back(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = cluster.host();
    let job = script("cat; echo err >&2; exit 3", &json!({ "id": "one", "stdin": { "text": "hello" } }));
    let finished = cluster.mayfly(&host.node, ["submit", "--wait"]).stdin(job).finish().code(3);
    let result = finished.json();
    assert_eq!(
        (result["outcome"].as_str(), result["tenant"].as_str(), result["id"].as_str()),
        (Some("failed"), Some(&*cluster.tenant), Some("one"))
    );
    assert_eq!((&result["stdout"]["text"], &result["stderr"]["text"]), (&json!("hello"), &json!("err\n")));

    let stored = cluster.mayfly(&host.node, ["result", &cluster.key("one")]).finish().code(0).json();
    assert_eq!(stored, result, "the producer and the store have the same result");
    let logs = cluster.mayfly(&host.node, ["logs", &cluster.key("one")]).finish().code(0);
    assert_eq!((logs.text(), logs.stderr()), ("hello", "err\n"));
    cluster
        .mayfly(&host.node, ["result", &cluster.key("two")])
        .finish()
        .code(1)
        .says(&["no job", "two is known"]);
    host.stop().code(0).says(&["stopped; 1 jobs ended here"]);
    host.check();
}

fn the_same_job_sent_again_is_answered_with_the_first_result(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = cluster.host();
    let producer = cluster.producer(ReplyBy::Queue);
    let job = script("cat /proc/sys/kernel/random/uuid", &json!({}));
    let first = cluster.answer(cluster.send(&producer, "twice", job.as_str()));
    let again = cluster.answer(cluster.send(&producer, "twice", job.as_str()));
    assert_eq!(again, first, "it ran once");

    let other = cluster.answer(cluster.send(&producer, "twice", script("true", &json!({}))));
    assert_eq!(other.outcome, Outcome::Rejected);
    assert!(other.error.unwrap().why.contains("another body"));
    assert_eq!(cluster.answer(cluster.send(&producer, "twice", job)), first, "the first is untouched");
    host.stop().code(0);
    host.check();
}

fn a_job_that_waits_or_runs_can_be_cancelled_from_anywhere(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = cluster.host();
    let elsewhere = crate::harness::Node::new();
    let job = script("echo begun; sleep 1000", &json!({ "id": "endless" }));
    cluster.mayfly(&elsewhere, ["submit"]).stdin(job).finish().code(0);
    eventually("the job says that it has begun", || {
        let logs = cluster.mayfly(&elsewhere, ["logs", &cluster.key("endless")]).finish();
        logs.text().contains("begun").then_some(())
    });
    let status = cluster.mayfly(&elsewhere, ["status", &cluster.key("endless")]).finish().code(0);
    assert!(status.text().contains("run for"), "{}", status.text());
    // From where no control socket leads to the host: by the store alone.
    let cancel = cluster.mayfly(&elsewhere, ["cancel", &cluster.key("endless")]);
    cancel.env("MAYFLY_RUN_DIR", elsewhere.file("run")).finish().code(0);
    assert_eq!(cluster.result(&elsewhere, "endless")["outcome"], "cancelled");

    host.stop().code(0);
    let waits = script("true", &json!({ "id": "waits" }));
    cluster.mayfly(&elsewhere, ["submit"]).stdin(waits).finish().code(0);
    cluster
        .mayfly(&elsewhere, ["status", &cluster.key("waits")])
        .finish()
        .code(0)
        .prints(&["waits", "no host"]);
    cluster.mayfly(&elsewhere, ["cancel", &cluster.key("waits")]).finish().code(0);
    cluster.serve(&mut host, |mayfly| mayfly);
    assert_eq!(cluster.result(&elsewhere, "waits")["outcome"], "cancelled");
    host.stop().code(0);
    host.check();
}

/// A reply goes by one connection, and is not kept anywhere.
#[test]
fn who_waits_finds_a_result_in_the_store_whose_reply_was_lost_or_has_no_way_any_more() {
    with_failpoints(|| {
        let test = "service::jobs::who_waits_finds_a_result_in_the_store_whose_reply_was_lost_or_has_no_way_any_more";
        let Some(mut cluster) = Cluster::new(test, Version::Debian12, "") else { return };
        let mut host = Cluster::idle_host();
        cluster.serve(&mut host, |mayfly| mayfly.env("MAYFLY_FAILPOINT", "direct-replies:off"));
        let lost = script("exit 3", &json!({ "id": "lost" }));
        cluster.mayfly(&host.node, ["submit", "--wait"]).stdin(lost).finish().code(3);

        let hop = Proxy::start(cluster.broker.port()).unwrap();
        cluster.ports.0 = hop.port();
        let cut = script("sleep 2; exit 4", &json!({ "id": "cut" }));
        let waiting = cluster.mayfly(&host.node, ["submit", "--wait"]).stdin(cut).start();
        eventually("the job runs", || (cluster.in_flight([&host]) > 0).then_some(()));
        hop.cut();
        waiting.finish().code(4).says(&["the result is looked for in the store"]);
        host.stop().code(0);
        host.check();
    });
}

fn what_a_job_leaves_is_fetched_from_another_host(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = cluster.host();
    let elsewhere = crate::harness::Node::new();
    let text = "mkdir /job/sub; echo one >/job/a.txt; echo two >/job/sub/b.txt; exit 1";
    let job = script(text, &json!({ "id": "leaves", "artifacts": ["/job/**/*.txt"] }));
    cluster.mayfly(&elsewhere, ["submit", "--wait"]).stdin(job).finish().code(1);
    let folder = elsewhere.file("fetched");
    let words = ["result", &cluster.key("leaves"), "--get", folder.to_str().unwrap()];
    cluster.mayfly(&elsewhere, words).finish().code(0).says(&["2 files fetched"]);
    assert_eq!(std::fs::read_to_string(folder.join("job/a.txt")).unwrap(), "one\n");
    assert_eq!(std::fs::read_to_string(folder.join("job/sub/b.txt")).unwrap(), "two\n");
    host.stop().code(0);
    host.check();
}

fn a_host_that_is_told_to_stop_ends_its_jobs_and_leaves_the_rest(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = cluster.host();
    let producer = cluster.producer(ReplyBy::Queue);
    let job = script("sleep 0.3", &json!({}));
    let sent: Vec<_> = (0..12).map(|n| cluster.send(&producer, &format!("job-{n}"), job.as_str())).collect();
    eventually("some run", || (!host.node.sandboxes().is_empty()).then_some(()));
    host.stop().code(0);
    host.check();
    // Whoever serves next does the rest.
    cluster.serve(&mut host, |mayfly| mayfly);
    for sent in sent {
        assert_eq!(cluster.answer(sent).outcome, Outcome::Succeeded);
    }
    // Twice: what runs is ended and goes back.
    let long = script("sleep 1000", &json!({ "idempotent": true, "max_attempts": 20 }));
    drop(cluster.send(&producer, "long", long));
    eventually("it runs", || (!host.node.sandboxes().is_empty()).then_some(()));
    host.running().signal(Signal::TERM);
    eventually("it takes no more jobs", || {
        let said = host.node.mayfly(["status", "--json"]).finish().code(0).json();
        let all = said.as_array().unwrap().iter();
        all.clone().any(|who| who["pid"] == host.running().pid() && who["stopping"] == true).then_some(())
    });
    host.stop().code(0);
    host.check();
    let node = crate::harness::Node::new();
    cluster.mayfly(&node, ["result", &cluster.key("long")]).finish().code(1);
}

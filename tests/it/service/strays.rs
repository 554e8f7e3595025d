//! Jobs of a tier that no host offers: they wait for one, and are given up with the reason when none comes.

use scheduler::broker::{ReplyBy, Submission};
use serde_json::{Value, json};
use servers::Version;
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, Node, eventually, script};

on_every_broker! {
    a_job_of_a_tier_that_no_host_offers_is_given_up_and_says_why
    a_job_waits_for_the_host_that_offers_its_tier
    a_claimed_job_whose_tier_went_with_its_host_is_given_up_too
}

fn of_tier(tier: &str, more: &Value) -> String {
    let mut job: Value = serde_json::from_str(&script("echo ran", more)).unwrap();
    job["tier"] = tier.into();
    job.to_string()
}

fn waits(time: &str) -> impl Fn(&str) -> String {
    let line = format!("[serve]\ntier_wait = '{time}'");
    move |config: &str| config.replace("[serve]", &line)
}

fn a_job_of_a_tier_that_no_host_offers_is_given_up_and_says_why(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = Cluster::idle_host();
    cluster.serve_changed(&mut host, waits("5s"), |mayfly| mayfly);
    let (elsewhere, producer) = (Node::new(), cluster.producer(ReplyBy::Queue));
    let status = |id: &str| cluster.mayfly(&elsewhere, ["status", &cluster.key(id)]).finish();
    cluster.mayfly(&elsewhere, ["submit"]).stdin(of_tier("vm", &json!({ "id": "noted" }))).finish().code(0);
    // Nobody has pulled it, and nobody will.
    eventually("a host is heard, and it does not offer the tier", || {
        status("noted").code(0).text().contains("waits: no host offers tier vm").then_some(())
    });
    let submit = |id: &str, key: &str, expires| {
        let body = of_tier("vm", &json!({})).into_bytes();
        let (id, key) = (Some(id.to_owned()), key.to_owned());
        cluster.submit(&producer, Submission { body, key, id, expires, traceparent: None })
    };
    let other = submit("other", "vm", None);
    // Its key says less than its body.
    let moved = submit("moved", "nspawn", None);
    let short = submit("short", "vm", Some(std::time::Duration::from_secs(2)));
    let long = submit("long", "vm", Some(std::time::Duration::from_secs(12)));
    eventually("the store hears of one that another producer sent", || {
        let said = status("other");
        (said.succeeded() && said.text().contains("no host offers tier vm")).then_some(())
    });
    let clock = std::time::Instant::now();
    for (sent, waited) in
        [(other, "it waited 5s"), (moved, "it waited 5s"), (short, "its deadline"), (long, "its deadline")]
    {
        let result = cluster.answer(sent);
        let why = result.error.unwrap().why;
        assert_eq!(result.outcome, Outcome::InfraError, "{why}");
        assert!(why.contains("no host offers tier vm") && why.contains(waited), "{}: {why}", result.id);
    }
    assert!(clock.elapsed().as_secs() >= 9, "the one with the longest deadline had its time");
    assert_eq!(cluster.result(&elsewhere, "noted")["outcome"], "infra_error");
    let dead = cluster.mayfly(&elsewhere, ["dlq", "ls"]).finish().code(0);
    for id in ["noted", "other", "moved", "short", "long"] {
        assert!(dead.text().contains(&cluster.key(id)), "{id} is not among {}", dead.text());
    }
    host.stop().code(0);
    host.check();
}

fn a_job_waits_for_the_host_that_offers_its_tier(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    // A host that offers none of what comes: its own tier is left out by the other's name.
    let (mut other, mut host) = (Cluster::idle_host(), Cluster::idle_host());
    let nspawn = |config: &str| waits("20s")(config).replace("['chroot']", "['nspawn']");
    cluster.serve_changed(&mut other, nspawn, |mayfly| mayfly);
    let (elsewhere, producer) = (Node::new(), cluster.producer(ReplyBy::Queue));
    let sent: Vec<_> = (0..20)
        .map(|n| cluster.send(&producer, &format!("job-{n}"), of_tier("chroot", &json!({}))))
        .collect();
    eventually("they are parked", || {
        let said = cluster.mayfly(&elsewhere, ["status", &cluster.key("job-19")]).finish();
        said.text().contains("no host offers tier chroot").then_some(())
    });
    cluster.serve(&mut host, |mayfly| mayfly);
    for sent in sent {
        let result = cluster.answer(sent);
        assert_eq!((result.outcome, result.stdout.text.as_str()), (Outcome::Succeeded, "ran\n"));
    }
    cluster.mayfly(&elsewhere, ["dlq", "ls"]).finish().code(0).prints(&[""]);
    for host in [&mut other, &mut host] {
        host.stop().code(0);
        host.check();
    }
}

fn a_claimed_job_whose_tier_went_with_its_host_is_given_up_too(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut victim, mut other) = (Cluster::idle_host(), Cluster::idle_host());
    let impatient = |config: &str| config.replace("[store]", "consumer_timeout = '6s'\n[store]");
    cluster.serve_changed(&mut victim, impatient, |mayfly| mayfly);
    let producer = cluster.producer(ReplyBy::Queue);
    let job = script("sleep 600", &json!({ "timeout": "11m", "idempotent": true }));
    let sent = cluster.send(&producer, "long", job);
    eventually("it runs", || (!victim.node.sandboxes().is_empty()).then_some(()));
    victim.kill();
    let nspawn = |config: &str| waits("3s")(config).replace("['chroot']", "['nspawn']");
    cluster.serve_changed(&mut other, nspawn, |mayfly| mayfly);
    let result = cluster.answer(sent);
    let why = result.error.unwrap().why;
    assert_eq!(result.outcome, Outcome::InfraError, "{why}");
    assert!(why.contains("no host offers tier chroot"), "{why}");
    other.stop().code(0);
    other.check();
    victim.node.mayfly(["reap"]).finish().code(0);
    victim.check();
}

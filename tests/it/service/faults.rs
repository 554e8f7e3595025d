//! Servers and hosts that die: each job that the broker took ends in one result.

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{RabbitMq, Version};
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, eventually, script};

on_every_broker! {
    the_jobs_of_a_host_that_is_killed_end_elsewhere
}

fn the_jobs_of_a_host_that_is_killed_end_elsewhere(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut victim, mut heir) = (cluster.host(), cluster.host());
    let producer = cluster.producer(ReplyBy::Queue);
    let job = |again: bool| script("sleep 0.2", &json!({ "idempotent": again, "max_attempts": 20 }));
    let sent: Vec<_> =
        (0..40).map(|n| (n, cluster.send(&producer, &format!("job-{n}"), job(n % 2 == 0)))).collect();
    eventually("the victim runs some", || (victim.node.sandboxes().len() > 1).then_some(()));
    victim.kill();
    for (n, sent) in sent {
        let result = cluster.answer(sent);
        match result.outcome {
            Outcome::Succeeded => {}
            // It may have run, and must not run twice.
            Outcome::SandboxLost => assert_eq!(n % 2, 1, "{result:?}"),
            _ => panic!("{result:?}"),
        }
    }
    heir.stop().code(0);
    heir.check();
    victim.node.mayfly(["reap"]).finish().code(0);
    victim.check();
}

/// A broker of its own: the others' tests go on.
#[test]
fn a_broker_and_a_store_that_are_killed_lose_no_job() {
    let test = "service::faults::a_broker_and_a_store_that_are_killed_lose_no_job";
    let broker = match RabbitMq::start(Version::Debian12) {
        Ok(broker) => Box::leak(Box::new(broker)),
        Err(error) => return servers::skipped(test, &error.to_string()),
    };
    let Some(mut cluster) = Cluster::on(test, broker, "") else { return };
    let mut host = cluster.host();
    let producer = cluster.producer(ReplyBy::Nothing);
    let job = script("sleep 0.1", &json!({ "idempotent": true, "max_attempts": 20 }));
    for n in 0..60 {
        drop(cluster.send(&producer, &format!("job-{n}"), job.as_str()));
    }
    eventually("some run", || (!host.node.sandboxes().is_empty()).then_some(()));
    cluster.broker.kill().unwrap();
    cluster.broker.start_again().unwrap();
    eventually("some run again", || (!host.node.sandboxes().is_empty()).then_some(()));
    cluster.store.kill().unwrap();
    cluster.store.start_again().unwrap();
    for n in 0..60 {
        assert_eq!(cluster.result(&host.node, &format!("job-{n}"))["outcome"], "succeeded");
    }
    host.stop().code(0);
    host.check();
}

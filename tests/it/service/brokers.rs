//! Brokers and stores that stop, die, block and lose patience: each job that the broker took ends in one result.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{RabbitMq, Version};
use worker::Outcome;

use super::{on_every_broker, send_many};
use crate::harness::{Cluster, HEARD, eventually, script};

on_every_broker! {
    a_broker_and_a_store_that_stop_or_are_killed_lose_no_job
    while_a_broker_has_an_alarm_everybody_waits_and_nothing_is_lost
    a_job_that_is_held_for_longer_than_the_broker_allows_still_has_one_result
}

/// A broker that one test at a time may ill-treat; the others' is left alone.
fn ill_treated(test: &str, version: Version) -> Option<(MutexGuard<'static, ()>, Cluster)> {
    static BROKERS: [OnceLock<Result<RabbitMq, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    static TURNS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
    let turn = TURNS[version as usize].lock().unwrap_or_else(PoisonError::into_inner);
    let start = || RabbitMq::start(version).map_err(|error| error.to_string());
    match BROKERS[version as usize].get_or_init(start) {
        Ok(broker) => {
            // The one before may have failed half-way.
            broker.start_again().unwrap();
            Some((turn, Cluster::on(test, broker, "")?))
        }
        Err(why) => {
            servers::skipped(test, why);
            None
        }
    }
}

fn a_broker_and_a_store_that_stop_or_are_killed_lose_no_job(test: &str, version: Version) {
    let Some((_turn, mut cluster)) = ill_treated(test, version) else { return };
    cluster.listen();
    let mut host = cluster.host();
    let mut accepted = Vec::new();
    let faults: [fn(&mut Cluster); 4] = [
        |cluster| cluster.broker.kill().unwrap(),
        |cluster| cluster.store.kill().unwrap(),
        |cluster| cluster.broker.stop().unwrap(),
        |cluster| cluster.store.stop().unwrap(),
    ];
    for fault in faults {
        let before = cluster.depth(HEARD);
        accepted.extend(send_many(&cluster, accepted.len(), 30, "sleep 0.1"));
        eventually("some of them ended", || (cluster.depth(HEARD) > before + 3).then_some(()));
        fault(&mut cluster);
        cluster.broker.start_again().unwrap();
        cluster.store.start_again().unwrap();
        let all = accepted.len() as u64;
        eventually("the others end too", || (cluster.depth(HEARD) >= all).then_some(()));
    }
    let evidence = cluster.prove(&accepted);
    evidence.is_clean();
    assert_eq!(evidence.ended(Outcome::Succeeded), accepted.len(), "{evidence:?}");
    host.stop().code(0);
    host.check();
}

fn while_a_broker_has_an_alarm_everybody_waits_and_nothing_is_lost(test: &str, version: Version) {
    let Some((_turn, cluster)) = ill_treated(test, version) else { return };
    cluster.listen();
    let mut host = cluster.host();
    let late = cluster.producer(ReplyBy::Nothing);
    let mut accepted = send_many(&cluster, 0, 40, "sleep 0.1");
    eventually("some of them ended", || (cluster.depth(HEARD) > 3).then_some(()));
    cluster.broker.alarm(true).unwrap();
    eventually("the broker has an alarm", || {
        (cluster.broker.eval("length(rabbit_alarm:get_alarms()).").unwrap() != "0").then_some(())
    });
    let sending = cluster.sending(late, "late", script("true", &json!({})));
    eventually("nothing runs any more", || host.node.sandboxes().is_empty().then_some(()));
    let told = cluster.depth(HEARD);
    assert!(told < 20, "the alarm came too late");
    assert!(!sending.is_finished(), "the broker takes nothing");
    let starts = host.node.ledger().into_iter().filter(|record| record["event"] == "consumed").count();
    // Those that ran, and as many that began before the broker said so to who tells results.
    let most = told as usize + 2 * cluster.slots;
    assert!(starts <= most, "{starts} were started, although results of {told} only could be told");
    cluster.broker.alarm(false).unwrap();
    accepted.push(cluster.wait(sending).unwrap().id);
    let evidence = cluster.prove(&accepted);
    evidence.is_clean();
    assert_eq!(evidence.ended(Outcome::Succeeded), accepted.len(), "{evidence:?}");
    host.stop().code(0).says(&["the broker takes no results now: "]);
    host.check();
}

fn a_job_that_is_held_for_longer_than_the_broker_allows_still_has_one_result(test: &str, version: Version) {
    let Some((_turn, cluster)) = ill_treated(test, version) else { return };
    let allow = |time: &str| {
        let set = format!("application:set_env(rabbit, consumer_timeout, {time}).");
        cluster.broker.eval(&set).unwrap();
    };
    let usual = cluster.broker.eval("element(2, application:get_env(rabbit, consumer_timeout)).").unwrap();
    allow("2000");
    cluster.listen();
    let mut host = cluster.host();
    let mut accepted = send_many(&cluster, 0, 1, "sleep 5; cat /proc/sys/kernel/random/uuid");
    accepted.extend(send_many(&cluster, 1, 10, "sleep 0.1"));
    let evidence = cluster.prove(&accepted);
    allow(&usual);
    evidence.is_clean();
    assert_eq!((evidence.ended(Outcome::Succeeded), evidence.recovered), (accepted.len(), 0), "{evidence:?}");
    let starts = host.node.ledger().into_iter().filter(|record| record["event"] == "consumed").count();
    assert_eq!(starts, accepted.len(), "each was started once");
    let log = cluster.broker.log();
    assert!(log.contains("consumer ack timed out") || log.contains("timeout"), "it lost patience: {log}");
    host.stop().code(0);
    host.check();
}

//! Hosts that die, are cut off, or whose store forgets: each job that the broker took ends in one result.

use std::{thread::sleep, time::Duration};

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{Proxy, Version};
use worker::Outcome;

use super::{on_every_broker, send_many};
use crate::harness::{Cluster, HEARD, eventually, script};

on_every_broker! {
    the_jobs_of_a_host_that_is_killed_end_elsewhere
    connections_that_are_cut_stalled_and_sliced_lose_no_job
    a_host_that_comes_back_after_its_lease_tells_nothing_that_another_has_told
    a_store_that_forgot_its_last_second_is_told_it_again
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

/// How long a server swallows what it is sent: longer than a heartbeat of a host, shorter than its lease.
const STALL: Duration = Duration::from_secs(1);

fn connections_that_are_cut_stalled_and_sliced_lose_no_job(test: &str, version: Version) {
    let Some(mut cluster) = Cluster::new(test, version, "") else { return };
    let hops = [cluster.broker.port(), cluster.store.port()].map(|port| Proxy::start(port).unwrap());
    cluster.ports = (hops[0].port(), hops[1].port());
    cluster.listen();
    let mut hosts = [cluster.host(), cluster.host()];
    let mut accepted = Vec::new();
    for hop in &hops {
        let faults: [&dyn Fn(); 4] = [
            &|| hop.slice(Some(7)),
            &|| {
                hop.slice(None);
                hop.cut();
            },
            &|| {
                hop.stall(true);
                sleep(STALL);
                hop.stall(false);
            },
            &|| {
                let before = hop.lost();
                hop.lose_answers(true);
                eventually("an answer is lost", || (hop.lost() > before).then_some(()));
                hop.lose_answers(false);
            },
        ];
        for fault in faults {
            let before = cluster.depth(HEARD);
            accepted.extend(send_many(&cluster, accepted.len(), 25, "sleep 0.05"));
            eventually("some of them ended", || (cluster.depth(HEARD) > before + 3).then_some(()));
            fault();
            let all = accepted.len() as u64;
            eventually("the others end too", || (cluster.depth(HEARD) >= all).then_some(()));
        }
    }
    let evidence = cluster.prove(&accepted);
    evidence.is_clean();
    assert_eq!(evidence.ended(Outcome::Succeeded), accepted.len(), "{evidence:?}");
    for host in &mut hosts {
        host.stop().code(0).says(&["no connection to", "the store at", "is away"]);
        host.check();
    }
}

fn a_host_that_comes_back_after_its_lease_tells_nothing_that_another_has_told(test: &str, version: Version) {
    let Some(mut cluster) = Cluster::new(test, version, "") else { return };
    let direct = cluster.ports;
    let hops = [direct.0, direct.1].map(|port| Proxy::start(port).unwrap());
    cluster.listen();
    cluster.ports = (hops[0].port(), hops[1].port());
    let mut absent = cluster.host();
    let job = "sleep 2; cat /proc/sys/kernel/random/uuid";
    let accepted = send_many(&cluster, 0, 4, job);
    eventually("all of them run there", || (cluster.in_flight([&absent]) == 4).then_some(()));
    hops[1].stall(true);
    hops[0].refuse(true);
    hops[0].cut();
    cluster.ports = direct;
    let mut heir = cluster.host();
    eventually("they have begun again", || (cluster.in_flight([&heir]) == 4).then_some(()));
    for hop in &hops {
        hop.stall(false);
    }
    hops[0].refuse(false);
    let evidence = cluster.prove(&accepted);
    evidence.is_clean();
    assert_eq!((evidence.ended(Outcome::Succeeded), evidence.recovered), (4, 4), "{evidence:?}");
    for host in [&mut absent, &mut heir] {
        host.stop().code(0);
        host.check();
    }
}

fn a_store_that_forgot_its_last_second_is_told_it_again(test: &str, version: Version) {
    let Some(mut cluster) = Cluster::new(test, version, "") else { return };
    cluster.listen();
    let mut hosts = [cluster.host(), cluster.host()];
    let job = "sleep 0.1; cat /proc/sys/kernel/random/uuid";
    let accepted = send_many(&cluster, 0, 160, job);
    let heard = |least: u64| {
        eventually("some more ended", || (cluster.depth(HEARD) >= least).then_some(()));
    };
    heard(20);
    let written = cluster.store.written().unwrap();
    // What eight slots do in a second.
    heard(90);
    cluster.store.kill().unwrap();
    cluster.store.forget_after(written).unwrap();
    cluster.store.start_again().unwrap();
    let evidence = cluster.prove(&accepted);
    evidence.is_clean();
    assert_eq!(evidence.ended(Outcome::Succeeded), accepted.len(), "{evidence:?}");
    for host in &mut hosts {
        host.stop().code(0).says(&["is away, and everything waits for it"]);
        host.check();
    }
}

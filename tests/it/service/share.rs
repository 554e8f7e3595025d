//! What one tenant gets while another floods.

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::Version;

use super::{flood, on_every_broker};
use crate::harness::{Cluster, Host, eventually, script};

/// Jobs of a flood that start before the one job of another tenant, at most.
const BOUND: usize = 24;
const FLOOD: usize = 5000;

on_every_broker! {
    a_flood_of_five_thousand_jobs_keeps_one_of_another_tenant_waiting_for_a_few_slots_only
}

fn a_flood_of_five_thousand_jobs_keeps_one_of_another_tenant_waiting_for_a_few_slots_only(
    test: &str,
    version: Version,
) {
    let Some(cluster) = Cluster::new(test, version, "[tenants.single]\n") else { return };
    flood(&cluster, FLOOD, &script("true", &json!({})));
    let mut host = cluster.host();
    let single = cluster.producer_of("single", ReplyBy::Queue);
    for number in 0..3 {
        let before = started(&host).len();
        eventually("the flood is worked off", || (started(&host).len() > before + 50).then_some(()));
        let id = format!("single-{number}");
        let sent = cluster.send(&single, &id, script("true", &json!({})));
        let when_sent = started(&host).len();
        cluster.answer(sent);
        let place = started(&host).iter().position(|started| *started == id).expect("it was started");
        let between = place.saturating_sub(when_sent);
        assert!(between <= BOUND, "{between} jobs of the flood were started before it");
    }
    assert!(started(&host).len() < FLOOD, "the flood was over before");
    host.stop().code(0);
    host.check();
}

/// The jobs that were started, in their order.
fn started(host: &Host) -> Vec<String> {
    let consumed = host.node.ledger().into_iter().filter(|record| record["event"] == "consumed");
    consumed.map(|record| record["job"]["id"].as_str().unwrap().to_owned()).collect()
}

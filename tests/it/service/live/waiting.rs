//! Why a job waits, as `mayfly status` says it.

use serde_json::json;
use servers::Version;

use crate::{
    harness::{Cluster, Tier, eventually, ready, script},
    service::send_many,
};

/// Whether `status` prints all of these words, asked again and again.
fn says(cluster: &Cluster, host: &crate::harness::Host, job: Option<&str>, words: &[&str]) {
    eventually(&format!("status says {words:?}"), || {
        let asked =
            cluster.mayfly(&host.node, ["status".to_owned()].into_iter().chain(job.map(str::to_owned)));
        let said = asked.finish().code(0);
        words.iter().all(|word| said.text().contains(word)).then_some(())
    });
}

#[test]
fn a_job_above_its_tenants_cap_hears_so_and_one_that_no_host_can_run_too() {
    let test =
        "service::live::waiting::a_job_above_its_tenants_cap_hears_so_and_one_that_no_host_can_run_too";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "max_running = 2\n") else { return };
    let mut host = cluster.host();
    let ids = send_many(&cluster, 0, 5, "sleep 1000");
    let lane = format!("waiting  3 of {} on chroot: tenant cap 2/2", cluster.tenant);
    says(&cluster, &host, None, &[&lane]);
    // The store knows of a job that `submit` noted, and of its neighbours that run.
    let job = host.node.write("job.json", script("true", &json!({ "id": "noted" })));
    cluster.mayfly(&host.node, ["submit", &job, "--tenant", &cluster.tenant]).finish().code(0);
    says(&cluster, &host, Some(&cluster.key("noted")), &["waits: tenant cap 2/2"]);
    let job = host.node.write("vm.json", script("true", &json!({ "id": "for-vm", "tier": "vm" })));
    cluster.mayfly(&host.node, ["submit", &job, "--tenant", &cluster.tenant]).finish().code(0);
    says(&cluster, &host, Some(&cluster.key("for-vm")), &["waits: no host offers tier vm"]);
    for id in ["noted", "for-vm"] {
        cluster.mayfly(&host.node, ["cancel", &cluster.key(id)]).finish().code(0);
    }
    super::cancel_all(&cluster, &host, &ids);
    host.stop().code(0);
    host.check();
}

#[test]
fn a_job_without_a_sandbox_hears_how_many_are_being_made() {
    let test = "service::live::waiting::a_job_without_a_sandbox_hears_how_many_are_being_made";
    if let Err(why) = ready(Tier::Vm) {
        return servers::skipped(test, &why);
    }
    let Some(mut cluster) = Cluster::new(test, Version::Debian12, "[vm]\nallow_emulation = true\n") else {
        return;
    };
    (cluster.tiers, cluster.slots) = ("['vm']", 1);
    let mut host = cluster.host();
    for number in 0..2 {
        let job = script("true", &json!({ "tier": "vm", "id": format!("cold-{number}") }));
        cluster.mayfly(&host.node, ["submit"]).stdin(job).finish().code(0);
    }
    // The first machine of an image is booted, which takes its time.
    let why = "no clean vm sandbox, 1 being made, about ";
    says(
        &cluster,
        &host,
        None,
        &["  vm  checkout  ", why, "all 1 slots are taken, 1 of them without a sandbox"],
    );
    says(&cluster, &host, Some(&cluster.key("cold-0")), &["checkout for ", "(vm): ", why]);
    for number in 0..2 {
        assert_eq!(cluster.result(&host.node, &format!("cold-{number}"))["outcome"], "succeeded");
    }
    host.stop().code(0);
    host.check();
}

//! Why a job waits, as `mayfly status` says it.

use rustix::process::{Signal, kill_process};
use serde_json::json;
use servers::Version;

use crate::{
    harness::{Cluster, eventually, script},
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
    let mut host = Cluster::idle_host();
    // It is looked for such jobs ten times in that time.
    let waits = |config: &str| config.replace("[serve]", "[serve]\ntier_wait = '60s'");
    cluster.serve_changed(&mut host, waits, |mayfly| mayfly);
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
    says(&cluster, &host, None, &["  waiting  1 on vm: no host offers tier vm\n"]);
    let drawn = cluster.mayfly(&host.node, ["top"]).finish().code(0);
    let parked =
        |line: &str| line.starts_with("jobs on vm ") && line.ends_with(" 1       no host offers tier vm");
    assert!(drawn.text().lines().any(parked), "{}", drawn.text());
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
    let Some(mut cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    cluster.slots = 1;
    let mut host = cluster.host();
    let send = |id: &str, image: &str| {
        let job = script("true", &json!({ "id": id, "image": image }));
        cluster.mayfly(&host.node, ["submit"]).stdin(job).finish().code(0);
    };
    send("first", "minimal");
    assert_eq!(cluster.result(&host.node, "first")["outcome"], "succeeded");
    // No sandbox of the other image is there, and none comes while the spawner stands still.
    let spawner = host.node.spawner();
    kill_process(spawner, Signal::STOP).unwrap();
    send("cold-0", "base");
    send("cold-1", "base");
    // One for the job that has the slot, and perhaps one for the job that waits.
    let (why, made) = ("no clean chroot sandbox, ", " being made, about ");
    let slots = "all 1 slots are taken, 1 of them without a sandbox";
    says(&cluster, &host, None, &["  chroot  checkout  ", why, made, slots]);
    says(&cluster, &host, Some(&cluster.key("cold-0")), &["checkout for ", "(chroot): ", why, made]);
    kill_process(spawner, Signal::CONT).unwrap();
    for id in ["cold-0", "cold-1"] {
        assert_eq!(cluster.result(&host.node, id)["outcome"], "succeeded");
    }
    host.stop().code(0);
    host.check();
}

//! Hosts whose sandboxes are machines: they drain, and nothing of a machine outlives them.

use serde_json::json;
use servers::{Libvirtd, Version};

use crate::harness::{
    Cluster, EMULATION, Host, Tier, libvirt_config, on, on_libvirt, once_booted, script, use_libvirtd,
};

/// A host is told to stop while a job is in one machine and others wait: the job ends as it would have, and is told.
fn a_host_drains(test: &str, machines: &str, prepare: impl FnOnce(Host) -> Host) {
    let tenants = machines;
    let Some(mut cluster) = Cluster::new(test, Version::Debian12, tenants) else { return };
    (cluster.tiers, cluster.slots) = ("['vm']", 1);
    let mut host = prepare(Cluster::idle_host());
    cluster.serve(&mut host, |mayfly| mayfly);
    let producer = cluster.producer(scheduler::broker::ReplyBy::Nothing);
    let job = script("sleep 4; echo over", &json!({ "tier": "vm" }));
    drop(cluster.send(&producer, "long", job.as_str()));
    once_booted("its job runs", || host.node.sandboxes().iter().any(|it| !it.job().is_empty()).then_some(()));
    host.stop().code(0);
    let result = cluster.result(&host.node, "long");
    assert_eq!(
        (&result["outcome"], &result["stdout"]["text"]),
        (&json!("succeeded"), &json!("over\n")),
        "{result}"
    );
    host.check();
}

#[test]
fn a_host_of_clones_drains() {
    fn on_clones(_: &crate::harness::Place) {
        a_host_drains("service::machines::a_host_of_clones_drains", EMULATION, |host| host);
    }
    on(Tier::Vm, on_clones);
}

#[test]
fn a_host_of_domains_drains() {
    fn nothing(_: &crate::harness::Place) {}
    on_libvirt(nothing);
    if Libvirtd::is_installed() {
        let daemon = Libvirtd::start().unwrap();
        let config = libvirt_config(&daemon);
        a_host_drains("service::machines::a_host_of_domains_drains", &config, |mut host| {
            host.node = use_libvirtd(host.node, &daemon);
            host
        });
        assert_eq!(daemon.virsh(&["list", "--all", "--name"]).unwrap().trim(), "");
    }
}

//! What is left behind: by many jobs, and by a mayfly that was killed in the middle of one.

use std::fs;

use rustix::process::Signal;

use crate::harness::{Place, Running, Tier, by_libvirt_too, eventually, on, on_every_tier};

on_every_tier! {
    hundreds_of_jobs_leave_the_host_as_it_was
    the_sandbox_of_a_killed_mayfly_dies_by_itself
    the_next_mayfly_sweeps_what_a_killed_one_left_and_says_so_in_the_ledger
    a_mayfly_never_sweeps_what_a_live_one_uses
    a_mayfly_of_another_node_leaves_it_alone
    two_mayflies_at_once_do_not_disturb_each_other
}

by_libvirt_too! {
    the_next_mayfly_sweeps_what_a_killed_one_left_and_says_so_in_the_ledger
}

/// In a row, here. `make soak` does a thousand.
fn runs(tier: Tier) -> usize {
    match tier {
        Tier::Chroot => 200,
        // Each takes longer to make, and leaves the same traces or none.
        Tier::Nspawn => 100,
        Tier::Docker => 50,
        Tier::Vm => 12,
    }
}

fn hundreds_of_jobs_leave_the_host_as_it_was(place: &Place) {
    place.run(["true"]).finish().code(0);
    let (mounts, files) = (mounts(), files(place));
    for _ in 0..runs(place.tier) {
        place.shell("echo x > /tmp/x; sleep 1000 & exit 0").finish().code(0);
    }
    assert_eq!(place.node.leftovers(), [""; 0]);
    assert_eq!(self::files(place), files);
    // What another program mounts for a moment goes again; what is left behind stays.
    eventually("the host has the mounts that it had", || (self::mounts() == mounts).then_some(()));
    // Each life is on record, and each ended.
    let lives = runs(place.tier) + 1;
    let events = |name: &str| place.node.ledger().iter().filter(|record| record["event"] == name).count();
    assert_eq!((events("clean"), events("consumed"), events("ended")), (lives, lives, lives));
    place.node.mayfly(["audit", "verify"]).finish().code(0);
}

fn mounts() -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(ToOwned::to_owned).collect()
}

/// Files of the node and of the image store that jobs could add to. The ledger is to grow.
fn files(place: &Place) -> usize {
    let data = place.node.data_dir();
    let directories =
        [data.clone(), data.join("images"), data.join("images/names"), data.join("images/staging")];
    directories.iter().map(|directory| fs::read_dir(directory).unwrap().count()).sum()
}

/// A job in its middle, and the instance that runs it.
fn in_mid_job(place: &Place) -> (Running, String) {
    let (running, _) = place.start(place.shell("trap '' TERM HUP; echo ready; while :; do sleep 1; done"));
    let [instance] = place.node.instances().try_into().unwrap();
    (running, instance)
}

fn the_sandbox_of_a_killed_mayfly_dies_by_itself(place: &Place) {
    let (running, _) = in_mid_job(place);
    let sandboxes = place.node.sandboxes();
    running.signal(Signal::KILL);
    assert_eq!(running.finish().ended_by(), Some(9));
    eventually("every process of the sandbox is gone", || {
        sandboxes.iter().all(|sandbox| sandbox.job().is_empty() && sandbox.agent().is_empty()).then_some(())
    });
    eventually("the spawner is gone", || {
        let left = place.node.leftovers();
        left.iter().all(|what| !what.starts_with("process")).then_some(())
    });
    place.run(["true"]).finish().code(0);
}

fn the_next_mayfly_sweeps_what_a_killed_one_left_and_says_so_in_the_ledger(place: &Place) {
    let (running, instance) = in_mid_job(place);
    running.signal(Signal::KILL);
    running.finish();
    let left = place.node.leftovers().join("\n");
    for what in ["cgroup", "mark", "uid claim"] {
        assert!(left.contains(what), "it had no chance to remove its {what}: {left}");
    }

    place.run(["true"]).finish().code(0);
    assert_eq!(place.node.leftovers(), [""; 0]);

    let ledger = place.node.ledger();
    let used = ledger.iter().find(|record| record["event"] == "consumed").unwrap();
    let recovered = ledger.iter().find(|record| record["event"] == "recovered").unwrap();
    assert_eq!(recovered["instance"], instance);
    assert_eq!(recovered["generations"], serde_json::json!([used["generation"]]));
    place.node.mayfly(["audit", "verify"]).finish().code(0);
}

fn a_mayfly_never_sweeps_what_a_live_one_uses(place: &Place) {
    let (running, _) = in_mid_job(place);
    let first = place.node.sandboxes()[0].job()[0];
    place.run(["true"]).finish().code(0);
    let now = place.node.sandboxes()[0].job();
    assert!(now.contains(&first), "the job's process {first} is gone: {now:?}");
    running.signal(Signal::INT);
    running.signal(Signal::INT);
    running.finish().code(130);
}

fn a_mayfly_of_another_node_leaves_it_alone(place: &Place) {
    let (running, instance) = in_mid_job(place);
    running.signal(Signal::KILL);
    running.finish();
    on(place.tier, |other| drop(other.run(["true"]).finish().code(0)));
    let left = place.node.leftovers().join("\n");
    assert!(left.contains(&format!("instances/{instance}")), "another node took it: {left}");
    place.run(["true"]).finish().code(0);
}

fn two_mayflies_at_once_do_not_disturb_each_other(place: &Place) {
    let running: Vec<_> =
        (0..4).map(|number| place.shell(&format!("sleep 0.2; exit {number}")).start()).collect();
    for (number, running) in running.into_iter().enumerate() {
        running.finish().code(number as i32);
    }
}

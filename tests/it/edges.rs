//! A mayfly that is killed at any edge of a machine's life, and `mayfly reap` after it: nothing is left, on either engine.
//!
//! Built with the feature `failpoints`, by which a process ends itself there as `kill -9` would.

use crate::harness::{Place, Tier, eventually, forget_templates, on, on_libvirt, templates, with_failpoints};

/// Memory of a machine that no other test has: its template is this file's to take away.
const MEMORY: [&str; 2] = ["--memory", "700MiB"];
const SIZE: &str = "tcg-1cpu-1024mib";

/// Edges of the fork engine, in the order in which a job comes by them: while there is no template yet, and after.
const OF_A_TEMPLATE: [&str; 4] = ["vm-booting", "ending", "vm-kept", "vm-written"];
const OF_A_CLONE: [&str; 6] = ["vm-laid-out", "vm-begun", "vm-clean", "consumed", "ending", "gone"];

/// Those of the libvirt engine. It ends a process, and a machine, more often.
const OF_LIBVIRT: [&str; 12] = [
    "vm-laid-out",
    "vm-booting",
    "vm-kept",
    "ending",
    "vm-resting",
    "vm-copied",
    "vm-begun",
    "vm-clean",
    "consumed",
    "ending:2",
    "gone",
    "vm-forgotten",
];

#[test]
fn nothing_of_a_mayfly_that_is_killed_at_any_edge_of_a_clones_life_outlives_reap() {
    with_failpoints(|| {
        on(Tier::Vm, |place| {
            for edge in OF_A_TEMPLATE {
                forget_templates(place, SIZE);
                killed_at(place, edge);
            }
            for edge in OF_A_CLONE {
                killed_at(place, edge);
            }
            still_well(place);
        });
    });
}

#[test]
fn nothing_of_a_mayfly_that_is_killed_around_a_domain_outlives_reap() {
    with_failpoints(|| {
        on_libvirt(|place| {
            // One before libvirt knows of the machine, one while only libvirt does, one in its job.
            for edge in ["vm-laid-out", "vm-booting", "consumed"] {
                killed_at(place, edge);
            }
            still_well(place);
        });
    });
}

#[test]
#[ignore = "a machine is booted for each, which takes seconds where it is emulated: `make soak`"]
fn nothing_of_a_mayfly_that_is_killed_at_any_edge_of_a_domains_life_outlives_reap() {
    with_failpoints(|| {
        on_libvirt(|place| {
            for edge in OF_LIBVIRT {
                killed_at(place, edge);
            }
            still_well(place);
        });
    });
}

fn killed_at(place: &Place, edge: &str) {
    let point = if edge.contains(':') { edge.to_owned() } else { format!("{edge}:1") };
    let killed = place.run(["true"]).args(MEMORY).env("MAYFLY_FAILPOINT", &point).finish();
    assert_eq!(
        killed.ended_by(),
        Some(9),
        "it came by {edge}: is mayfly built with failpoints?\n{}",
        killed.stderr
    );
    place.node.mayfly(["reap"]).finish().code(0).prints(&["ended what process"]);
    // A process that the kernel has killed is still seen for a moment.
    eventually(&format!("nothing is left of a mayfly killed at {edge}"), || {
        place.node.leftovers().is_empty().then_some(())
    });
    place.node.mayfly(["audit", "verify"]).finish().code(0);
    let half = templates(place, &format!("{SIZE}.unfinished"));
    assert!(half.is_empty(), "{half:?} of a mayfly killed at {edge}");
}

fn still_well(place: &Place) {
    place.run(["true"]).args(MEMORY).finish().code(0);
    assert_eq!(place.node.leftovers(), [""; 0]);
}

//! The gate between a machine that goes on from another's memory and a clean one: with it no two lives have anything in common,
//! without it they have all.
//!
//! Built with the feature `failpoints`, by which the gate is left out. No configuration can say that.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::harness::{Place, Tier, forget_templates, on, on_libvirt, with_failpoints};

/// Leaves the gate out.
const WITHOUT: &str = "vm-gate:off";

/// Prints the first random bytes that anybody gets in a life, and its names. Draws before the shell has begun anything
/// else: the kernel's own generator begins anew within seconds.
const WHO: &str = "head -c 64 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'; echo
    cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname";

/// Bytes of the system call, by a program that needs its time to start, and the names that it reads.
const WHO_IN_PYTHON: &str = "import os, socket; random = os.getrandom(64).hex(); read = lambda path: open(path).read().strip()\n\
    print(random, read('/proc/sys/kernel/random/boot_id'), read('/etc/machine-id'), socket.gethostname(), sep='\\n')";

/// What so many lives of one template say of themselves, each a line of each.
fn lives(
    place: &Place,
    count: usize,
    (image, command): (&str, &[&str]),
    switch: Option<&str>,
) -> Vec<Vec<String>> {
    let job = |number| {
        json!({ "schema_version": 1, "id": format!("life-{number}"), "image": image, "tier": "vm", "command": command })
            .to_string()
    };
    let jobs = place.node.write("jobs", (0..count).map(job).collect::<Vec<_>>().join("\n"));
    let results = place.node.file(&format!("{image}-{}", switch.unwrap_or("results")));
    // One at a time where they are to be alike: a machine that waits grows older.
    let at_once = if switch.is_some() { "1" } else { "2" };
    let words = ["batch", &jobs, "--jobs", at_once, "-o", results.to_str().unwrap()];
    let mayfly = place.node.mayfly(words);
    let mayfly = switch.into_iter().fold(mayfly, |mayfly, switch| mayfly.env("MAYFLY_FAILPOINT", switch));
    mayfly.finish().code(0);
    let results = fs::read_to_string(results).unwrap();
    let results = results.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said = |result: Value| {
        let said = result["stdout"]["text"].as_str().unwrap_or_else(|| panic!("{result}"));
        said.lines().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let lives: Vec<_> = results.map(said).collect();
    assert!(lives.len() == count && lives.iter().all(|life| life.len() == 4), "{lives:?}");
    lives
}

/// How many values there are of each.
fn values(lives: &[Vec<String>]) -> [usize; 4] {
    [0, 1, 2, 3].map(|line| lives.iter().map(|life| &life[line]).collect::<BTreeSet<_>>().len())
}

/// Lives have nothing in common, and without the gate they say the same names. Gives how many drew random bytes of their
/// own then, of four.
fn differ_by_the_gate_alone(place: &Place, count: usize, machines: usize) -> usize {
    let shell = ("minimal", ["sh", "-c", WHO].as_slice());
    assert_eq!(values(&lives(place, count, shell, None)), [count; 4]);
    let same = lives(place, 4, shell, Some(WITHOUT));
    // As many as there are machines that live: one template, or two domains in turn.
    let [random, names @ ..] = values(&same);
    assert!(names.iter().all(|values| *values <= machines), "{same:?}");
    random
}

#[test]
fn thirty_two_lives_of_one_template_have_nothing_in_common_and_without_the_gate_they_are_one() {
    with_failpoints(|| {
        on(Tier::Vm, |place| {
            let random = differ_by_the_gate_alone(place, 32, 1);
            assert!(random < 4, "no two drew the same");
            let python = ("base", ["python3", "-I", "-S", "-B", "-c", WHO_IN_PYTHON].as_slice());
            assert_eq!(values(&lives(place, 8, python, None)), [8; 4]);
        });
    });
}

#[test]
fn lives_of_one_domain_have_nothing_in_common_and_without_the_gate_they_are_one() {
    // Their random bytes differ all the same: libvirt tells the guest's kernel that it was reverted (genid).
    with_failpoints(|| {
        on_libvirt(|place| {
            differ_by_the_gate_alone(place, 8, 2);
        });
    });
}

/// Of a size that no other test has.
const MEMORY: [&str; 2] = ["--memory", "600MiB"];

/// How far a job's clock is from the host's.
fn skew(place: &Place, switch: &str) -> Duration {
    // The interpreter, which an emulated machine takes seconds to start, is not what is measured.
    let job = place.python("import time; print('ready', flush=True); input(); print(time.time_ns())");
    let job = job.args(MEMORY).args(["--stdin"]).env("MAYFLY_FAILPOINT", switch);
    let (mut running, _) = place.start(job);
    let before = UNIX_EPOCH.elapsed().unwrap();
    running.say("\n");
    let inside = Duration::from_nanos(running.line().parse().unwrap());
    let after = UNIX_EPOCH.elapsed().unwrap();
    running.finish().code(0);
    before.saturating_sub(inside).max(inside.saturating_sub(after))
}

#[test]
fn a_jobs_clock_is_right_even_from_a_template_that_is_an_hour_old() {
    with_failpoints(|| {
        on(Tier::Vm, |place| {
            forget_templates(place, "tcg-1cpu-768mib");
            let job = place.run_in("base", ["true"]).args(MEMORY);
            job.env("MAYFLY_FAILPOINT", "vm-template-clock:off").finish().code(0);
            let (right, wrong) = (skew(place, "none:0"), skew(place, WITHOUT));
            forget_templates(place, "tcg-1cpu-768mib");
            assert!(right < Duration::from_millis(100), "{right:?}");
            assert!(wrong > Duration::from_secs(3500), "without the gate: {wrong:?}");
        });
    });
}

#[test]
fn a_jobs_clock_is_right_even_in_a_domain_that_was_kept_an_hour_ago() {
    with_failpoints(|| {
        // One switch of a process is all that there is: this is the same machine with its gate.
        on_libvirt(|place| {
            let right = skew(place, "vm-template-clock:off");
            assert!(right < Duration::from_millis(100), "{right:?}");
        });
    });
}

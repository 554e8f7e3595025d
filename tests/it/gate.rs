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

use crate::harness::{Place, Tier, forget_templates, on, with_failpoints};

/// Prints the first random bytes that anybody gets in a life, and its names.
const WHO: &str = "import os, socket; random = os.getrandom(64).hex(); read = lambda path: open(path).read().strip()\n\
    print(random, read('/proc/sys/kernel/random/boot_id'), read('/etc/machine-id'), socket.gethostname(), sep='\\n')";

/// What so many lives of one template say of themselves, each a line of each.
fn lives(place: &Place, count: usize, switch: Option<&str>) -> Vec<Vec<String>> {
    let job = |number| {
        let command = ["python3", "-I", "-S", "-B", "-c", WHO];
        json!({ "schema_version": 1, "id": format!("life-{number}"), "image": "base", "tier": "vm", "command": command })
            .to_string()
    };
    let jobs = place.node.write("jobs", (0..count).map(job).collect::<Vec<_>>().join("\n"));
    let results = place.node.file(switch.unwrap_or("results"));
    let words = ["batch", &jobs, "--jobs", "2", "-o", results.to_str().unwrap()];
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

#[test]
fn thirty_two_lives_of_one_template_have_nothing_in_common_and_without_the_gate_they_are_one() {
    with_failpoints(|| {
        on(Tier::Vm, |place| {
            assert_eq!(values(&lives(place, 32, None)), [32; 4]);
            let same = lives(place, 4, Some("vm-gate:off"));
            let [_, names @ ..] = values(&same);
            assert_eq!(names, [1; 3], "{same:?}");
        });
    });
}

#[test]
fn a_jobs_clock_is_right_even_from_a_template_that_is_an_hour_old() {
    // Of a size that no other test has.
    const MEMORY: [&str; 2] = ["--memory", "600MiB"];
    with_failpoints(|| {
        on(Tier::Vm, |place| {
            forget_templates(place, "tcg-1cpu-768mib");
            let job = place.run_in("base", ["true"]).args(MEMORY);
            job.env("MAYFLY_FAILPOINT", "vm-template-clock:off").finish().code(0);
            let skew = |switch: &str| {
                // The interpreter, which an emulated machine takes seconds to start, is not what is measured.
                let program = "import time; print('ready', flush=True); input(); print(time.time_ns())";
                let job =
                    place.python(program).args(MEMORY).args(["--stdin"]).env("MAYFLY_FAILPOINT", switch);
                let (mut running, _) = place.start(job);
                let before = UNIX_EPOCH.elapsed().unwrap();
                running.say("\n");
                let inside = Duration::from_nanos(running.line().parse().unwrap());
                let after = UNIX_EPOCH.elapsed().unwrap();
                running.finish().code(0);
                before.saturating_sub(inside).max(inside.saturating_sub(after))
            };
            let (right, wrong) = (skew("none:0"), skew("vm-gate:off"));
            forget_templates(place, "tcg-1cpu-768mib");
            assert!(right < Duration::from_millis(100), "{right:?}");
            assert!(wrong > Duration::from_secs(3500), "without the gate: {wrong:?}");
        });
    });
}

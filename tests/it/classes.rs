//! Classes of limits: sandboxes are made ahead of the job, and yet each job has exactly the limits that it asked for.

use rustix::process::Signal;

use crate::harness::{Mayfly, Place, Tier, on_every_tier, result_of};

on_every_tier! {
    a_job_in_a_sandbox_of_a_class_has_its_own_limits_and_not_the_classs
    a_job_that_fits_no_class_is_made_to_measure
}

const CLASSES: &str = "
    [classes.large]
    cpus = 4
    memory = '1GiB'
    disk = '512MiB'
    pids = 1000
    [classes.small]
    cpus = 2
    memory = '256MiB'
    disk = '128MiB'
    pids = 100
";

fn configured(place: &Place, mayfly: Mayfly) -> Mayfly {
    mayfly.env("MAYFLY_CONFIG", place.node.config(CLASSES))
}

fn a_job_in_a_sandbox_of_a_class_has_its_own_limits_and_not_the_classs(place: &Place) {
    let words = ["--memory", "64MiB", "--cpus", "0.5", "--pids", "32", "--disk", "16MiB"];
    let (running, sandbox) =
        place.start(configured(place, place.shell("echo ready; sleep 1000").args(words)));
    // In a machine these two are its own kernel's to count.
    if place.tier != Tier::Vm {
        assert_eq!(sandbox.limit(&["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
        assert_eq!(sandbox.limit(&["pids.max"]), "32");
    }
    let quota = sandbox.limit(&["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(quota.split(' ').next(), Some("50000"));
    running.signal(Signal::INT);
    running.finish();

    let script = "stat -f -c '%S %b' /job; dd if=/dev/zero of=/job/fill bs=1M 2>/dev/null; wc -c </job/fill";
    let result = result_of(configured(place, place.shell(script).args(words)), 0);
    let said = result["stdout"]["text"].as_str().unwrap();
    let said: Vec<u64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(said[0] * said[1], 16 << 20, "the disk is as large as was asked for");
    assert!(said[2] <= 16 << 20 && said[2] > 15 << 20, "{said:?}");
    assert_eq!(result["cold_reason"], "empty");

    // And a bomb finds the job's own limit, not the class's.
    let bomb = place.shell("exec dd if=/dev/zero of=/dev/null bs=150M count=1").args(["--memory", "64MiB"]);
    assert_eq!(result_of(configured(place, bomb), 137)["outcome"], "out_of_memory");
}

fn a_job_that_fits_no_class_is_made_to_measure(place: &Place) {
    let result = result_of(configured(place, place.shell("true").args(["--memory", "2GiB"])), 0);
    assert_eq!((result["source"].as_str(), result["cold_reason"].as_str()), (Some("cold"), Some("shape")));
}

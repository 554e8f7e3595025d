//! Ctrl-C, once and twice.

use rustix::process::Signal;

use crate::harness::{Place, Running, on_every_tier};

on_every_tier! {
    one_ctrl_c_lets_the_job_end_within_its_grace
    a_job_that_stays_is_killed_after_its_grace
    a_second_ctrl_c_ends_it_at_once
    artifacts_are_kept_from_a_job_that_was_interrupted
    a_ctrl_c_reaches_no_process_of_the_sandbox_by_itself
}

/// A job that says `ready`, then `asked` when it is asked to end, and goes on all the same.
const STUBBORN: &str = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.01; done";
/// One that ends when it is asked.
const POLITE: &str = "trap 'echo goodbye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";

fn start(place: &Place, script: &str, words: &[&str]) -> Running {
    let mut running = place.shell(script).args(words.iter().copied()).start();
    assert_eq!(running.line(), "ready");
    running
}

fn one_ctrl_c_lets_the_job_end_within_its_grace(place: &Place) {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let running = start(place, POLITE, &["--grace", "60s"]);
        running.signal(signal);
        assert_eq!(running.finish().code(code).text(), "goodbye");
    }
}

fn a_job_that_stays_is_killed_after_its_grace(place: &Place) {
    let running = start(place, STUBBORN, &["--grace", "300ms"]);
    running.signal(Signal::INT);
    assert!(running.finish().code(130).text().starts_with("asked"));
}

fn a_second_ctrl_c_ends_it_at_once(place: &Place) {
    // A long grace: only the second signal can end this before the test's own deadline.
    let mut running = start(place, STUBBORN, &["--grace", "60s", "--timeout", "1h"]);
    running.signal(Signal::INT);
    assert_eq!(running.line(), "asked");
    running.signal(Signal::INT);
    running.finish().code(130);
    assert_eq!(place.node.leftovers(), [""; 0]);
}

fn artifacts_are_kept_from_a_job_that_was_interrupted(place: &Place) {
    let back = place.node.file("report");
    let get = format!("/job/report:{}", back.display());
    let running = start(place, &format!("echo so far > /job/report; {POLITE}"), &["--get", &get]);
    running.signal(Signal::INT);
    running.finish().code(130);
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "so far\n");
}

fn a_ctrl_c_reaches_no_process_of_the_sandbox_by_itself(place: &Place) {
    // A terminal signals the whole foreground group. The job must get TERM from the agent and never INT.
    let script = "trap 'echo interrupted' INT; trap 'echo terminated; exit 0' TERM; echo ready; \
                  while :; do sleep 0.01; done";
    let running = start(place, script, &["--grace", "60s"]);
    running.signal(Signal::INT);
    assert_eq!(running.finish().code(130).text(), "terminated");
}

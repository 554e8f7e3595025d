//! How a job ends: by itself, at its deadline, or against its will.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Place, Tier, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    exit_codes_are_passed_through
    a_signal_that_ends_the_job_becomes_128_and_its_number
    a_command_that_is_not_there_gives_127
    a_command_that_cannot_be_executed_gives_126
    a_job_that_outlasts_its_timeout_gives_124
    a_job_may_say_its_last_words_within_its_grace
    a_job_that_ignores_sigterm_is_killed_after_its_grace
    a_job_that_stopped_itself_ends_at_its_timeout
    a_daemon_does_not_outlive_its_job
    a_daemon_that_holds_the_output_does_not_hold_up_the_end
    a_sandbox_whose_agent_dies_is_lost_and_not_the_jobs_failure
}

by_libvirt_too! {
    a_job_that_ignores_sigterm_is_killed_after_its_grace
    a_sandbox_whose_agent_dies_is_lost_and_not_the_jobs_failure
}

fn exit_codes_are_passed_through(place: &Place) {
    for code in [0, 1, 255] {
        let result = result_of(place.shell(&format!("exit {code}")), code);
        let outcome = if code == 0 { "succeeded" } else { "failed" };
        assert_eq!(
            (result["outcome"].as_str(), result["exit_code"].as_i64()),
            (Some(outcome), Some(i64::from(code)))
        );
    }
}

fn a_signal_that_ends_the_job_becomes_128_and_its_number(place: &Place) {
    for (signal, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11)] {
        let result = result_of(place.shell(&format!("kill -{signal} $$")), 128 + number);
        assert_eq!(result["outcome"], "failed");
        assert_eq!(
            (result["exit_code"].as_i64(), result["signal"].as_i64()),
            (None, Some(i64::from(number)))
        );
    }
}

fn a_command_that_is_not_there_gives_127(place: &Place) {
    for program in ["no-such-program", "/no/such/program"] {
        let finished = place.run([program]).finish().code(127);
        finished.says(&["cannot start", program, "no such program in the image", "check the spelling"]);
    }
}

fn a_command_that_cannot_be_executed_gives_126(place: &Place) {
    let text = place.node.write("text", "not a program\n");
    let put = place.run(["/job/text"]).args(["--put", &format!("{text}:/job/text")]);
    put.finish().code(126).says(&["cannot start /job/text", "cannot be executed", "make it executable"]);
    place.run(["/tmp"]).finish().code(126).says(&["cannot start /tmp", "cannot be executed"]);
}

fn a_job_that_outlasts_its_timeout_gives_124(place: &Place) {
    let finished = place.run(["sleep", "60"]).args(["--timeout", "1s"]).finish().code(124);
    finished.says(&["ended at its timeout", "1s", "--timeout"]);
    assert_eq!(place.node.leftovers(), [""; 0], "nothing is left running");

    let result = result_of(place.shell("echo begun; sleep 60").args(["--timeout", "1s"]), 124);
    assert_eq!(
        (result["outcome"].as_str(), result["observed_by"].as_str()),
        (Some("timed_out"), Some("host"))
    );
    assert_eq!(result["stdout"]["text"], "begun\n", "what it said before is kept");
}

fn a_job_may_say_its_last_words_within_its_grace(place: &Place) {
    let script = "trap 'echo goodbye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let finished = place.shell(script).args(["--timeout", "500ms", "--grace", "30s"]).finish().code(124);
    assert_eq!(finished.text(), "ready\ngoodbye");
}

fn a_job_that_ignores_sigterm_is_killed_after_its_grace(place: &Place) {
    // All of it: the shell, and what it started.
    let script = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done";
    // An emulated shell takes its time until its trap is set.
    let timeout = if place.tier == Tier::Vm { "3s" } else { "300ms" };
    let mayfly = place.shell(script).args(["--timeout", timeout, "--grace", "300ms"]);
    let result = result_of(mayfly, 124);
    assert_eq!((result["outcome"].as_str(), result["signal"].as_i64()), (Some("timed_out"), Some(9)));
}

fn a_job_that_stopped_itself_ends_at_its_timeout(place: &Place) {
    place.shell("kill -STOP $$").args(["--timeout", "300ms", "--grace", "300ms"]).finish().code(124);
}

fn a_daemon_does_not_outlive_its_job(place: &Place) {
    // A session of its own, its parent gone, its streams closed: what daemon(3) does, twice.
    let script = "for i in 1 2; do (setsid sh -c 'trap \"\" TERM HUP; exec sleep 1000' <&- >&- 2>&- &); done; \
                  until [ \"$(pidof sleep | wc -w)\" = 2 ]; do :; done; echo done";
    let result = result_of(place.shell(script), 0);
    assert_eq!(result["stdout"]["text"], "done\n");
    assert_eq!(result["usage"]["stragglers"], 2);
    assert_eq!(place.node.leftovers(), [""; 0]);
}

fn a_daemon_that_holds_the_output_does_not_hold_up_the_end(place: &Place) {
    let result = result_of(place.shell("sleep 1000 & echo done; exit 4").args(["--timeout", "10m"]), 4);
    assert_eq!(
        (result["outcome"].as_str(), result["stdout"]["text"].as_str()),
        (Some("failed"), Some("done\n"))
    );
    let ran = Duration::from_micros(result["phases"]["run_us"].as_u64().unwrap());
    assert!(ran < Duration::from_secs(600), "it was not the timeout that ended it");
}

fn a_sandbox_whose_agent_dies_is_lost_and_not_the_jobs_failure(place: &Place) {
    let (running, sandbox) = place.start(place.shell("echo ready; sleep 1000"));
    // In a machine the agent is the machine's init: what can die from outside is the machine.
    let agents = if place.tier == Tier::Vm { sandbox.job() } else { sandbox.agent() };
    assert_eq!(agents.len(), 1, "the agent and nobody else is in its cgroup");
    for agent in agents {
        kill_process(Pid::from_raw(agent.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }
    running.finish().code(125).says(&["the sandbox was lost", "not its failure", "mayfly doctor"]);
}

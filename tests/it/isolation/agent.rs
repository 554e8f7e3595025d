//! The job attacks its agent: every way to end, trace, read, throttle or fool it is refused.

use crate::harness::{Place, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    a_job_cannot_touch_its_agent
    an_agent_outlives_signals_from_all_sides
    a_job_cannot_speak_in_its_agents_name
}

by_libvirt_too! {
    a_job_cannot_speak_in_its_agents_name
}

/// Each attack prints its name and errno, or what it got.
const ATTACKS: &str = include_str!("../probes/agent.py");

fn a_job_cannot_touch_its_agent(place: &Place) {
    let result = result_of(place.python(ATTACKS), 7);
    // The job still ends by itself, with its own code, in order.
    assert_eq!((result["outcome"].as_str(), result["signal"].as_i64()), (Some("failed"), None));
    let said = result["stdout"]["text"].as_str().unwrap();
    let attacks: Vec<(&str, &str)> = said.lines().map(|line| line.split_once(": ").unwrap()).collect();
    assert!(attacks.len() >= 30, "{said}");
    for (attack, answer) in attacks {
        assert!(["EPERM", "EACCES", "ESRCH", "ENOENT", "ENOSYS"].contains(&answer), "{attack}: {answer}");
    }
}

fn an_agent_outlives_signals_from_all_sides(place: &Place) {
    // To all that the job may signal, itself left out by ignoring what can be ignored.
    let script = "trap '' 1 2 3 10 12 13 14 15; for signal in 1 2 3 9 10 12 13 14 15 18 19; do \
                    kill -$signal 1 2>/dev/null && echo signal $signal was taken; done; kill -15 -1; echo alive; exit 7";
    assert_eq!(place.shell(script).finish().code(7).text(), "alive");
}

fn a_job_cannot_speak_in_its_agents_name(place: &Place) {
    // Frames that end the job well, written to whatever looks like a stream.
    let script = "for at in /proc/1/fd/0 /proc/1/fd/1 /proc/self/fd/3 /proc/self/fd/4 /dev/fd/5; do \
                    printf '\\0\\0\\0\\4\\0\\0\\0\\1' > $at && echo $at took it; done 2>/dev/null; \
                  printf '\\0\\0\\0\\4\\0\\0\\0\\1' >&2; exit 7";
    assert_eq!(place.shell(script).finish().code(7).text(), "");
}

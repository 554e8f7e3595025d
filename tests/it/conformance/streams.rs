//! stdout and stderr, from the job's hands to the caller's.

use crate::harness::{Place, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    output_and_exit_code_are_passed_through
    binary_output_without_a_newline_arrives_byte_by_byte
    a_line_is_seen_while_the_job_still_runs
    a_job_that_closes_its_stdout_early_goes_on
    a_job_that_closes_all_its_streams_still_has_an_exit_code
    a_job_that_says_nothing_gives_nothing
    what_a_job_says_in_its_last_moment_arrives
}

by_libvirt_too! {
    output_and_exit_code_are_passed_through
}

fn output_and_exit_code_are_passed_through(place: &Place) {
    let finished = place.shell("echo out; echo err >&2; exit 3").finish().code(3);
    assert_eq!(
        (finished.stdout.as_slice(), place.complaints(&finished).as_str()),
        (b"out\n".as_slice(), "err\n")
    );
}

fn binary_output_without_a_newline_arrives_byte_by_byte(place: &Place) {
    let finished = place.shell(r"printf '\377\000\001\012\033[2J\302'").finish().code(0);
    assert_eq!(finished.stdout, b"\xff\0\x01\n\x1b[2J\xc2");

    let result = result_of(place.shell(r"printf '\377\000'"), 0);
    assert_eq!(
        (result["stdout"]["text"].as_str(), result["stdout"]["base64"].as_str()),
        (Some(""), Some("/wA="))
    );
}

fn a_line_is_seen_while_the_job_still_runs(place: &Place) {
    let mut running = place.shell("echo first; read answer; echo $answer").args(["--stdin"]).start();
    // The job waits for us, so this line did not come with its end.
    assert_eq!(running.line(), "first");
    running.say("second\n");
    assert_eq!(running.finish().code(0).text(), "second");
}

fn a_job_that_closes_its_stdout_early_goes_on(place: &Place) {
    let finished = place.shell("echo before; exec >&-; echo after >&2; exit 5").finish().code(5);
    assert_eq!((finished.text(), place.complaints(&finished).as_str()), ("before", "after\n"));
}

fn a_job_that_closes_all_its_streams_still_has_an_exit_code(place: &Place) {
    place.shell("exec <&- >&- 2>&-; exit 9").finish().code(9);
}

fn a_job_that_says_nothing_gives_nothing(place: &Place) {
    let finished = place.run(["true"]).finish().code(0);
    assert_eq!((finished.stdout.as_slice(), place.complaints(&finished).as_str()), (b"".as_slice(), ""));
}

fn what_a_job_says_in_its_last_moment_arrives(place: &Place) {
    // More than a pipe holds, and gone at once: the host must drain what the dead job left.
    let finished = place.shell("head -c 1000000 /dev/zero; kill -9 $$").finish().code(137);
    assert_eq!(finished.stdout.len(), 1_000_000);
}

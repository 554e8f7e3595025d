//! Output without end, readers without haste, readers without patience.

use std::{fs, io::Read};

use crate::harness::{Place, Tier, by_libvirt_too, eventually, in_guest, on_every_tier, result_of};

const MIB: usize = 1024 * 1024;

/// What mayfly may hold at most, whatever a job writes. A few windows of credit and its own code.
const MOST_MEMORY_KIB: u64 = 64 * 1024;

on_every_tier! {
    a_flood_with_a_slow_reader_waits_in_the_sandbox_and_not_in_our_memory
    output_beyond_its_limit_ends_the_job
    a_reader_who_goes_away_ends_the_job
    with_json_a_flood_is_counted_and_cut
}

by_libvirt_too! {
    output_beyond_its_limit_ends_the_job
}

fn a_flood_with_a_slow_reader_waits_in_the_sandbox_and_not_in_our_memory(place: &Place) {
    // Still many times what may be held.
    let count = if in_guest() { 256 } else { 1024 };
    let flood = format!("echo ready; exec dd if=/dev/zero bs=1048576 count={count} status=none");
    let (mut running, sandbox) = place.start(place.shell(&flood).args(["--output", "2GiB"]));
    let pid = running.pid();
    let mut chunk = vec![0; MIB];
    let mut bytes = 0;
    for _ in 0..3 {
        eventually("the job waits for its reader", || {
            let job = sandbox.job();
            // Nobody sees from outside what a machine's processes wait for.
            let waits = |pid: &u32| place.tier == Tier::Vm || is_writing(*pid);
            (!job.is_empty() && job.iter().all(waits)).then_some(())
        });
        assert_memory_of(pid);
        running.stdout().read_exact(&mut chunk).unwrap();
        bytes += MIB;
    }
    loop {
        let read = running.stdout().read(&mut chunk).unwrap();
        if read == 0 {
            break;
        }
        if bytes / (64 * MIB) != (bytes + read) / (64 * MIB) {
            assert_memory_of(pid);
        }
        bytes += read;
    }
    running.finish().code(0);
    assert_eq!(bytes, count * MIB);
}

/// Whether a process waits in write(2) on its stdout.
fn is_writing(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with("1 0x1 "))
}

fn assert_memory_of(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < MOST_MEMORY_KIB, "mayfly held {peak} KiB");
}

fn output_beyond_its_limit_ends_the_job(place: &Place) {
    let finished = place.run(["yes"]).args(["--output", "1MiB"]).finish().code(137);
    assert_eq!(finished.stdout.len(), MIB, "exactly what was allowed is passed on");
    finished.says(&["killed at its output limit", "more than 1.0 MiB", "--output"]);

    let result = result_of(place.shell("exec yes >&2").args(["--output", "1MiB"]), 137);
    assert_eq!(
        (result["outcome"].as_str(), result["observed_by"].as_str()),
        (Some("output_limit"), Some("host"))
    );
}

fn a_reader_who_goes_away_ends_the_job(place: &Place) {
    let mut running = place.run(["yes"]).start();
    assert_eq!(running.line(), "y");
    running.close_stdout();
    running.finish().code(141);
}

fn with_json_a_flood_is_counted_and_cut(place: &Place) {
    let result = result_of(place.shell("head -c 20000000 /dev/zero | tr '\\0' x"), 0);
    assert_eq!(result["stdout"]["bytes"], 20_000_000);
    assert_eq!(result["stdout"]["truncated"], true);
    assert_eq!(result["stdout"]["text"].as_str().unwrap().len(), MIB);
}

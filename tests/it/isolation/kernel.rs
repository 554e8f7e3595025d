//! The calls that a job may not make.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::harness::{Place, on_every_tier};

on_every_tier! {
    dangerous_calls_are_refused
    calls_by_another_convention_are_refused
    a_setuid_program_gives_nothing
    a_core_dump_is_not_written
}

/// Prints "call: ERRNO" for calls that are harmless where they get through, because their arguments are nonsense.
const CALLS: &str = include_str!("../probes/calls.py");

fn dangerous_calls_are_refused(place: &Place) {
    let inside = place.python(CALLS).finish().code(0);
    let outside = outside(place);
    let mut void = Vec::new();
    let mut seen = 0;
    for (inside, outside) in inside.text().lines().zip(outside.lines()) {
        let (call, answer) = inside.split_once(": ").unwrap();
        let (same, control) = outside.split_once(": ").unwrap();
        assert_eq!(call, same);
        let refused = if call.starts_with("clone3") { "ENOSYS" } else { "EPERM" };
        assert_eq!(answer, refused, "{call}");
        // What nobody may do here says nothing about the sandbox.
        if control == refused { void.push(call) } else { seen += 1 }
    }
    assert!(seen >= 30, "only {seen} of these calls get through to the kernel outside: {void:?} say nothing");
}

/// The same as root of the host, with the same interpreter and no filter.
fn outside(place: &Place) -> String {
    let image = place.node.mayfly(["image", "inspect", "base", "--json"]).finish().code(0).json();
    let mut control = Command::new("chroot")
        .args([image["rootfs"].as_str().unwrap(), "/usr/bin/python3", "-I", "-B", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    control.stdin.take().unwrap().write_all(CALLS.as_bytes()).unwrap();
    let finished = control.wait_with_output().unwrap();
    assert!(finished.status.success());
    String::from_utf8(finished.stdout).unwrap()
}

fn calls_by_another_convention_are_refused(place: &Place) {
    let finished = place.python(include_str!("../probes/conventions.py")).finish().code(0);
    // getpid by the i386 convention kills (SIGSYS is 31); with the x32 bit it is an unknown call.
    assert_eq!(finished.text().lines().collect::<Vec<_>>(), ["i386: killed by 31", "x32: EPERM"]);
}

fn a_setuid_program_gives_nothing(place: &Place) {
    let script = "cp /bin/busybox /job/; chmod 6755 /job/busybox; /job/busybox id -u; cat /proc/self/status | grep -c 'CapEff:\t0*$'";
    let finished = place.shell(script).finish().code(0);
    let (user, without) = finished.text().split_once('\n').unwrap();
    assert_eq!((place.inside(user), without), (1000, "1"));
    // Programs of the image that are setuid for root, such as su.
    let program = "import os\nfor at in '/bin/su', '/usr/bin/passwd', '/usr/bin/mount':\n  \
                   if os.path.exists(at) and os.stat(at).st_mode & 0o4000 and not os.statvfs(at).f_flag & 2: print(at)";
    assert_eq!(place.python(program).finish().code(0).text(), "", "the root is mounted nosuid");
}

fn a_core_dump_is_not_written(place: &Place) {
    let script =
        "sh -c 'ulimit -c unlimited 2>/dev/null; kill -SEGV $$'; ls -A /job /tmp | grep -c core; ulimit -c";
    let finished = place.shell(script).finish().code(0);
    assert_eq!(finished.text().lines().collect::<Vec<_>>(), ["0", "0"]);
}

//! Who the job is, and what it may become.

#![expect(unsafe_code, reason = "calls by the conventions of other architectures")]

use std::fs;

use nix::{
    errno::Errno,
    sys::signal::Signal,
    unistd::{Uid, geteuid, setresuid},
};

use crate::{
    calls::{Answer, in_child},
    checks::Checks,
    clues::Clues,
};

/// Ids below this belong to the host's own users.
const HOSTS_OWN: u64 = 65536;

/// `getpid` in the table of 32-bit calls.
const I386_GETPID: i64 = 20;
/// What marks a call of the x32 convention.
const X32: i64 = 0x4000_0000;

/// A field of `/proc/self/status`.
fn status(field: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// Root inside maps to nobody outside, or cannot be reached.
pub(crate) fn root_is_nobody_outside(_: &Clues, checks: &mut Checks) {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else {
        return checks.unknown("/proc/self/uid_map cannot be read");
    };
    let outside = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let mapped = map.lines().filter_map(outside).min();
    if mapped.is_some_and(|least| least >= HOSTS_OWN) {
        return checks.holds(true, format!("ids map to {} and above", mapped.unwrap_or_default()));
    }
    // Without a map of its own the job must be somebody whom the host does not know, for good.
    let own = geteuid();
    checks.holds(u64::from(own.as_raw()) >= HOSTS_OWN, format!("no map; the job is {own}"));
    let root = Uid::from_raw(0);
    match in_child(|| setresuid(root, root, root)) {
        Ok(Answer::Returned(got)) => checks.refused("setresuid to 0", got),
        Ok(Answer::Killed) => checks.holds(true, "setresuid to 0: killed"),
        Err(error) => checks.unknown(format!("no child to try setresuid in: {error}")),
    }
}

pub(crate) fn no_capability(_: &Clues, checks: &mut Checks) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        match status(set) {
            Some(value) => checks.holds(value.bytes().all(|digit| digit == b'0'), format!("{set} {value}")),
            None => checks.unknown(format!("{set} is not shown")),
        }
    }
}

pub(crate) fn no_new_privileges(_: &Clues, checks: &mut Checks) {
    match status("NoNewPrivs") {
        Some(value) => checks.holds(value == "1", format!("NoNewPrivs {value}")),
        None => checks.unknown("NoNewPrivs is not shown"),
    }
}

/// A filter is there, and calls by another convention do not pass it by.
pub(crate) fn calls_are_filtered(_: &Clues, checks: &mut Checks) {
    match status("Seccomp") {
        Some(value) => checks.holds(value == "2", format!("Seccomp {value}")),
        None => checks.unknown("Seccomp is not shown"),
    }
    by_another_convention(checks, "getpid by the i386 convention", || {
        let got: i64;
        // SAFETY: a 32-bit getpid takes nothing and touches no memory. Where it is refused this process ends.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") I386_GETPID => got, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        got
    });
    by_another_convention(checks, "getpid by the x32 convention", || {
        // SAFETY: getpid takes nothing and touches no memory.
        let got = unsafe { libc::syscall(X32 | libc::SYS_getpid) };
        if got < 0 { -i64::from(Errno::last_raw()) } else { got }
    });
}

fn by_another_convention(checks: &mut Checks, name: &str, call: impl FnOnce() -> i64) {
    let answer = in_child(|| match call() {
        pid if pid > 0 => Ok(()),
        errno => Err(Errno::from_raw(-errno as i32)),
    });
    match answer {
        Ok(Answer::Returned(Ok(()))) => checks.holds(false, format!("{name} works")),
        Ok(Answer::Returned(Err(errno))) => checks.holds(true, format!("{name}: {errno:?}")),
        // A kernel without that convention ends the caller, too.
        Ok(Answer::Killed) => checks.holds(true, format!("{name}: {}", Signal::SIGSYS)),
        Err(error) => checks.unknown(format!("{name}: no child to try it in: {error}")),
    }
}

pub(crate) fn labelled(_: &Clues, checks: &mut Checks) {
    match fs::read_to_string("/proc/self/attr/current") {
        Ok(label) => {
            let label = label.trim_end_matches(['\0', '\n']);
            checks.holds(!label.is_empty() && !label.starts_with("unconfined"), format!("label {label:?}"));
        }
        Err(error) => checks.unknown(format!("no security module labels processes: {error}")),
    }
}

/// No descriptor is a terminal of the host's.
pub(crate) fn no_terminal(_: &Clues, checks: &mut Checks) {
    for fd in 0..3 {
        // SAFETY: isatty looks at a number and touches no memory.
        let is_terminal = unsafe { libc::isatty(fd) } == 1;
        checks.holds(!is_terminal, format!("{fd} is {} terminal", if is_terminal { "a" } else { "no" }));
    }
    let controlling = fs::File::open("/dev/tty");
    checks.holds(
        controlling.is_err(),
        match controlling {
            Ok(_) => "there is a controlling terminal".to_owned(),
            Err(error) => format!("no controlling terminal: {error}"),
        },
    );
}

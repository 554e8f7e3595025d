//! What the kernel says about itself: rights, filters, and the settings that weaken or slow a sandbox.
//!
//! Each function is one observation and reads only [`Facts`]; none of them runs anything.

use super::facts::Facts;
use super::{Finding, SANDBOX_IDS, State, syscalls};

/// Without any one of these a step of making a sandbox fails (numbers as in capabilities(7)).
const CAPABILITIES: [(u32, &str); 8] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

pub(super) fn rights(facts: &Facts) -> Finding {
    let finding = |state, detail: String| Finding::new("root", "root's rights", state, detail);
    let status = "/proc/self/status";
    let uid = facts.field(status, "Uid").and_then(|ids| ids.split_whitespace().nth(1).map(str::to_owned));
    let held = facts.field(status, "CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0);
    let lacking: Vec<_> =
        CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
    match uid.as_deref() {
        Some("0") if lacking.is_empty() => finding(State::Ok, "uid 0 with every capability it needs".into()),
        Some("0") => finding(State::Missing, format!("uid 0 without {}", lacking.join(", ")))
            .mended_by("run mayfly outside the container, or give the container these capabilities"),
        Some(uid) => finding(State::Missing, format!("this process is uid {uid}")).mended_by("sudo mayfly"),
        None => finding(State::Unknown, format!("{status} cannot be read")),
    }
}

pub(super) fn seccomp(facts: &Facts) -> Finding {
    let finding = |state, detail: String| Finding::new("seccomp", "seccomp filters", state, detail);
    match facts.line("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("kill_process") && actions.contains("errno") => {
            finding(State::Ok, "in the kernel".into())
        }
        Ok(actions) => finding(State::Missing, format!("the kernel offers only: {actions}"))
            .mended_by("boot a kernel since 4.14"),
        // A masked /proc/sys says nothing; this line is there with the filters only.
        Err(_) if facts.field("/proc/self/status", "Seccomp_filters").is_some() => {
            finding(State::Ok, "in the kernel".into())
        }
        Err(_) => finding(State::Missing, "the kernel has none".into())
            .mended_by("boot a kernel built with CONFIG_SECCOMP_FILTER"),
    }
}

pub(super) fn landlock() -> Finding {
    let finding = |state, detail: String| Finding::new("landlock", "Landlock", state, detail);
    if let Ok(abi) = syscalls::landlock_abi() {
        return finding(State::Ok, format!("ABI {abi}"));
    }
    // An extra layer only: namespaces, the filter and the empty capability sets hold without it.
    finding(State::Degraded, "not in this kernel: one layer fewer around a job".into())
        .mended_by("boot with landlock in lsm= (CONFIG_SECURITY_LANDLOCK)")
}

/// Settings that stop no sandbox, and that a careful operator wants to know.
pub(super) fn hygiene(facts: &Facts) -> Vec<Finding> {
    vec![ids(facts), swap(facts), core_dumps(facts), smt(facts), ksm(facts), pressure(facts)]
}

fn ids(facts: &Facts) -> Finding {
    let (first, last) = SANDBOX_IDS.into_inner();
    let mut clashes = Vec::new();
    for path in ["/etc/subuid", "/etc/subgid"] {
        let text = facts.text(path).unwrap_or_default();
        clashes.extend(text.lines().filter(|line| overlaps(line)).map(|line| format!("{path}: {line}")));
    }
    let finding = |state, detail| Finding::new("uid-range", "ids of sandboxes", state, detail);
    if clashes.is_empty() {
        return finding(State::Ok, format!("{first} to {last}, given to nobody else"));
    }
    finding(State::Degraded, format!("{first} to {last} is also given away in {}", clashes.join("; ")))
        .mended_by(format!("move these ranges below {first}"))
}

/// Whether a `name:first:count` line reaches into the ids of sandboxes.
fn overlaps(line: &str) -> bool {
    let mut numbers = line.split(':').skip(1).map(|part| part.trim().parse::<u64>());
    let (Some(Ok(first)), Some(Ok(count))) = (numbers.next(), numbers.next()) else { return false };
    count > 0 && first <= *SANDBOX_IDS.end() && first.saturating_add(count - 1) >= *SANDBOX_IDS.start()
}

fn swap(facts: &Facts) -> Finding {
    let finding = |state, detail: String| Finding::new("swap", "swap", state, detail);
    match facts.text("/proc/swaps") {
        Ok(text) => {
            let areas: Vec<_> =
                text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
            if areas.is_empty() {
                return finding(State::Ok, "off".into());
            }
            let detail = format!("on ({}): what a job held in memory may stay on disk", areas.join(", "));
            finding(State::Degraded, detail).mended_by("swapoff -a, or encrypt it")
        }
        // A kernel without CONFIG_SWAP has no such file.
        Err(_) => finding(State::Ok, "off".into()),
    }
}

fn core_dumps(facts: &Facts) -> Finding {
    let finding = |state, detail: String| Finding::new("core-dumps", "core dumps", state, detail);
    let limit = facts.line("/proc/sys/kernel/core_pipe_limit").unwrap_or_default();
    match facts.line("/proc/sys/kernel/core_pattern") {
        // A piped handler ignores RLIMIT_CORE and runs as root in the host's namespaces, fed by the job: core(5).
        Ok(pattern) if pattern.starts_with('|') => {
            let detail = format!("go to a program on the host ({pattern}; core_pipe_limit {limit})");
            finding(State::Degraded, detail).mended_by("sysctl -w kernel.core_pattern=core")
        }
        Ok(pattern) => finding(State::Ok, format!("go to a file ({pattern}); jobs have RLIMIT_CORE 0")),
        Err(error) => finding(State::Unknown, format!("kernel.core_pattern cannot be read: {error}")),
    }
}

fn smt(facts: &Facts) -> Finding {
    let finding = |state, detail: &str| Finding::new("smt", "SMT", state, detail);
    match facts.line("/sys/devices/system/cpu/smt/active").as_deref() {
        Ok("1") => finding(State::Degraded, "on: jobs of two tenants may share one core's caches")
            .mended_by("echo off > /sys/devices/system/cpu/smt/control"),
        Ok("0") => finding(State::Ok, "off"),
        _ => finding(State::Unknown, "the kernel does not say"),
    }
}

fn ksm(facts: &Facts) -> Finding {
    let finding = |state, detail: &str| Finding::new("ksm", "KSM", state, detail);
    match facts.line("/sys/kernel/mm/ksm/run").as_deref() {
        Ok("1") => finding(State::Degraded, "on: write times tell what other memory holds")
            .mended_by("echo 2 > /sys/kernel/mm/ksm/run"),
        Ok(_) => finding(State::Ok, "off"),
        Err(_) => finding(State::Ok, "not in this kernel"),
    }
}

fn pressure(facts: &Facts) -> Finding {
    let finding = |state, detail: &str| Finding::new("psi", "pressure (PSI)", state, detail);
    match facts.text("/proc/pressure/memory") {
        Ok(_) => finding(State::Ok, "readable"),
        Err(_) => finding(State::Degraded, "not there: a host under pressure is seen later")
            .mended_by("boot with psi=1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(files: &[(&str, &str)], look: impl Fn(&Facts) -> Finding) -> Finding {
        let dir = tempfile::tempdir().unwrap();
        look(&Facts::planted(dir.path(), files))
    }

    #[test]
    fn root_in_a_container_is_told_which_capability_it_lacks() {
        let status = "/proc/self/status";
        let seen = planted(&[(status, "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n")], rights);
        assert_eq!(seen.state, State::Missing);
        assert!(seen.detail.contains("CAP_SYS_ADMIN"), "{}", seen.detail);
        assert!(!seen.detail.contains("CAP_CHOWN"), "{}", seen.detail);
        let full = planted(&[(status, "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n")], rights);
        assert_eq!(full.state, State::Ok);
        let user = planted(&[(status, "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0\n")], rights);
        assert_eq!(user.state, State::Missing);
    }

    #[test]
    fn a_range_in_subuid_that_reaches_into_the_sandboxes_ids_is_named() {
        let seen = planted(&[("/etc/subuid", "alice:100000:65536\nbob:1879048190:3\n")], ids);
        assert_eq!(seen.state, State::Degraded);
        assert!(seen.detail.contains("bob:") && !seen.detail.contains("alice:"), "{}", seen.detail);
        let clear = planted(&[("/etc/subuid", "bob:1879048190:2\nodd line\nzero:1879048192:0\n")], ids);
        assert_eq!(clear.state, State::Ok);
        let above = planted(&[("/etc/subgid", "far:2147418112:65536\n")], ids);
        assert_eq!(above.state, State::Ok);
    }

    #[test]
    fn swap_piped_core_dumps_smt_and_ksm_are_seen() {
        let head = "Filename Type Size Used Priority\n";
        assert_eq!(planted(&[("/proc/swaps", head)], swap).state, State::Ok);
        let on = planted(&[("/proc/swaps", &format!("{head}/dev/sda2 partition 1 0 -2\n"))], swap);
        assert_eq!(on.state, State::Degraded);
        assert!(on.detail.contains("/dev/sda2"));
        let pattern = "/proc/sys/kernel/core_pattern";
        assert_eq!(planted(&[(pattern, "|/usr/bin/catch %p\n")], core_dumps).state, State::Degraded);
        assert_eq!(planted(&[(pattern, "core\n")], core_dumps).state, State::Ok);
        assert_eq!(planted(&[("/sys/devices/system/cpu/smt/active", "1\n")], smt).state, State::Degraded);
        assert_eq!(planted(&[("/sys/kernel/mm/ksm/run", "1\n")], ksm).state, State::Degraded);
        assert_eq!(planted(&[("/sys/kernel/mm/ksm/run", "0\n")], ksm).state, State::Ok);
    }

    #[test]
    fn a_kernel_without_seccomp_filters_is_refused() {
        assert_eq!(planted(&[], seccomp).state, State::Missing);
        let status = "Uid:\t0\t0\t0\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        assert_eq!(planted(&[("/proc/self/status", status)], seccomp).state, State::Ok);
        let actions = "kill_process kill_thread trap errno user_notif trace log allow\n";
        assert_eq!(planted(&[("/proc/sys/kernel/seccomp/actions_avail", actions)], seccomp).state, State::Ok);
    }
}

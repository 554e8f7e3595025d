//! What the job learns that is none of its business.

#![expect(unsafe_code, reason = "syslog(2) and preadv2(2) have no safe form")]

use std::{env, fs, os::fd::AsRawFd};

use nix::errno::Errno;

use crate::{checks::Checks, clues::Clues, files::mounts};

/// `SYSLOG_ACTION_SIZE_BUFFER`: asks for a size and reads nothing.
const SIZE_OF_BUFFER: libc::c_int = 10;

pub(crate) fn no_kernel_log(_: &Clues, checks: &mut Checks) {
    // SAFETY: this action takes no buffer.
    let got = unsafe { libc::klogctl(SIZE_OF_BUFFER, std::ptr::null_mut(), 0) };
    checks.refused("syslog", Errno::result(got));
    let kmsg = fs::File::open("/dev/kmsg");
    checks.holds(
        kmsg.is_err(),
        match kmsg {
            Ok(_) => "/dev/kmsg opens".to_owned(),
            Err(error) => format!("/dev/kmsg: {error}"),
        },
    );
}

/// The agent, whatever the runtime puts above the job, and the job.
pub(crate) fn only_own_processes(_: &Clues, checks: &mut Checks) {
    const MOST: usize = 4;
    let Ok(entries) = fs::read_dir("/proc") else { return checks.unknown("/proc cannot be listed") };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let pids: Vec<_> = names.filter(|name| name.bytes().all(|digit| digit.is_ascii_digit())).collect();
    checks.holds(pids.len() <= MOST, format!("{} processes are listed", pids.len()));
}

/// Nothing of the environment in which mayfly runs.
pub(crate) fn empty_environment(clues: &Clues, checks: &mut Checks) {
    let Some(token) = clues.get("token") else { return checks.unknown("no canary was given") };
    let leaked: Vec<_> = env::vars_os()
        .filter(|(_, value)| value.to_string_lossy().contains(token))
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    if leaked.is_empty() {
        checks.holds(true, format!("{} variables, none of mayfly's own", env::vars_os().count()));
    } else {
        checks.holds(false, format!("the canary is in {}", leaked.join(", ")));
    }
}

/// Figures that no namespace divides. They are seen on a kernel that is shared, and that is said.
pub(crate) fn host_figures(_: &Clues, checks: &mut Checks) {
    for path in ["/proc/loadavg", "/proc/meminfo", "/proc/interrupts", "/proc/cpuinfo", "/proc/stat"] {
        let seen = fs::read(path).is_ok_and(|bytes| !bytes.is_empty());
        checks.holds(!seen, format!("{path} {}", if seen { "is readable" } else { "is not" }));
    }
    let Some(mounts) = mounts() else { return checks.unknown("/proc/self/mountinfo cannot be read") };
    match mounts.iter().find(|mount| mount.is_part_of_a_disk()) {
        Some(mount) => checks.holds(false, format!("mountinfo names the place on a disk of {mount}")),
        None => checks.holds(true, "no mount is part of a larger file system on a disk"),
    }
}

/// Which bytes of a shared file others have read lately.
pub(crate) fn cached_pages(_: &Clues, checks: &mut Checks) {
    let shared = ["/etc/os-release", "/etc/passwd", "/usr/lib/os-release", "/bin/sh"];
    let Some((path, file)) = shared.iter().find_map(|path| Some((path, fs::File::open(path).ok()?))) else {
        return checks.unknown("the image has no file to look at");
    };
    let mut byte = [0_u8; 1];
    let piece = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: one byte is read into a buffer of one byte.
    let got = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, 0, libc::RWF_NOWAIT) };
    match Errno::result(got) {
        // Nothing cached is an answer, too.
        Ok(_) | Err(Errno::EAGAIN) => checks.holds(false, format!("whether {path} is cached can be told")),
        got => checks.refused("preadv2(RWF_NOWAIT)", got),
    }
}

pub(crate) fn no_nested_machines(_: &Clues, checks: &mut Checks) {
    let kvm = fs::metadata("/dev/kvm").is_ok();
    checks.holds(!kvm, format!("/dev/kvm is {}there", if kvm { "" } else { "not " }));
    let Ok(text) = fs::read_to_string("/proc/cpuinfo") else {
        return checks.unknown("/proc/cpuinfo cannot be read");
    };
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    for flag in ["vmx", "svm"] {
        let there = flags.split_whitespace().any(|word| word == flag);
        checks.holds(!there, format!("the flag {flag} is {}there", if there { "" } else { "not " }));
    }
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return };
    for entry in entries.flatten() {
        let Ok(state) = fs::read_to_string(entry.path()) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        checks.holds(!state.starts_with("Vulnerable"), format!("{name}: {}", state.trim()));
    }
}

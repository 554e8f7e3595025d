//! The container's first process, before it is the agent: did systemd-nspawn do all that it was told?
//!
//! The host looks for itself, in `/proc`, at the moment when systemd-nspawn says that its container runs: everything is
//! taken from that process then, and only its exec is to come.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::command::AGENT_NEEDS;
use crate::proof::{check_fields, check_namespaces};

/// Each kind, as `/proc/PID/ns` names it.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// The process behind a pidfd.
pub(super) fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Checks that `leader` is the child of `supervisor`, user `id_base` on the host, and has no more than an agent needs.
pub(super) fn check(leader: i32, supervisor: i32, id_base: u32) -> Result<(), String> {
    let path = format!("/proc/{leader}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    check_status(&status, supervisor, id_base)?;
    check_namespaces(leader, &NAMESPACES)
}

fn check_status(status: &str, supervisor: i32, id_base: u32) -> Result<(), String> {
    let needs = AGENT_NEEDS.iter().fold(0_u64, |set, (_, bit)| set | 1 << bit);
    let needs = format!("{needs:016x}");
    let ids = format!("{id_base} {id_base} {id_base} {id_base}");
    check_fields(
        status,
        &[
            ("PPid", supervisor.to_string()),
            ("Uid", ids.clone()),
            ("Gid", ids),
            // The inheritable set is left full, of these; the agent empties it with the others.
            ("CapPrm", needs.clone()),
            ("CapBnd", needs),
            ("CapAmb", "0000000000000000".to_owned()),
            ("NoNewPrivs", "1".to_owned()),
            ("Seccomp", "2".to_owned()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const STRIPPED: &str = "Name:\t(sd-nspawn)\nPPid:\t4\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\n\
        CapInh:\t0000000000000000\nCapPrm:\t00000000000001e1\nCapEff:\t00000000000001e1\n\
        CapBnd:\t00000000000001e1\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn what_systemd_nspawn_did_not_take_away_is_named() {
        assert_eq!(check_status(STRIPPED, 4, 7), Ok(()));
        for (from, to, field) in [
            ("PPid:\t4", "PPid:\t1", "PPid"),
            ("Uid:\t7\t7\t7\t7", "Uid:\t0\t0\t0\t0", "Uid"),
            // With CAP_SYS_ADMIN.
            ("CapBnd:\t00000000000001e1", "CapBnd:\t00000000002001e1", "CapBnd"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
        ] {
            let complaint = check_status(&STRIPPED.replace(from, to), 4, 7).unwrap_err();
            assert!(complaint.starts_with(field), "{complaint}");
        }
    }

    #[test]
    fn the_process_behind_a_pidfd_is_known() {
        let own = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(pid_of(pidfd.as_fd()).unwrap(), own.as_raw_nonzero().get());
    }
}

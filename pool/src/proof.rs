//! The host looks for itself: is the job's process confined as the agent says?

use std::fs;

use agent::message::Identity;

use crate::sandbox::Sandbox;

/// Checks that agent and job are alone in their cgroups, and the job's process against the kernel's own record of it, see proc(5).
pub(crate) fn check_confined(sandbox: &Sandbox, identity: Identity) -> Result<(), String> {
    let agents = sandbox.cgroup().agent_pids().len();
    if agents != 1 {
        return Err(format!("{agents} processes in the agent's cgroup, not one"));
    }
    check_job(sandbox, identity)
}

/// The half of [`check_confined`] that is about the job's process.
pub(crate) fn check_job(sandbox: &Sandbox, identity: Identity) -> Result<(), String> {
    let pids = sandbox.cgroup().job_pids();
    let [pid] = pids[..] else {
        return Err(format!("{} processes in the job's cgroup, not one", pids.len()));
    };
    let status = status_of(pid)?;
    let uid = sandbox.id_base() + identity.uid;
    let gid = sandbox.id_base() + identity.gid;
    check_status(&status, uid, gid)
}

/// Checks a container's first process: no more rights than the job's.
pub(crate) fn check_stripped(sandbox: &Sandbox, pid: i32, identity: Identity) -> Result<(), String> {
    let status = status_of(pid)?;
    let (uid, gid) = (sandbox.id_base() + identity.uid, sandbox.id_base() + identity.gid);
    check_status(&without_own_group(&status, gid), uid, gid)
}

/// The same of the job's process. Docker lists the own group among the others, and taking it off needs a capability.
pub(crate) fn check_job_of_container(sandbox: &Sandbox, identity: Identity) -> Result<(), String> {
    let pids = sandbox.cgroup().job_pids();
    match pids[..] {
        [pid] => check_stripped(sandbox, pid, identity),
        _ => Err(format!("{} processes in the job's cgroup, not one", pids.len())),
    }
}

/// Checks that a machine's process is alone in its cgroup, nobody on the host, and has nothing of it.
pub(crate) fn check_machine(sandbox: &Sandbox) -> Result<(), String> {
    let pids = sandbox.cgroup().job_pids();
    let [pid] = pids[..] else {
        return Err(format!("{} processes in a machine's cgroup, not one", pids.len()));
    };
    let nobody = sandbox.id_base();
    check_status(&status_of(pid)?, nobody, nobody)?;
    check_namespaces(pid, &["ipc", "mnt", "net", "pid", "uts"])
}

/// The same of one that libvirt has started: it has the mounts of its own that libvirt gives it, and no other namespace.
pub(crate) fn check_domain(sandbox: &Sandbox, gid: u32) -> Result<(), String> {
    let pids = sandbox.cgroup().job_pids();
    let [pid] = pids[..] else {
        return Err(format!("{} processes in a machine's cgroup, not one", pids.len()));
    };
    let status = without_own_group(&status_of(pid)?, gid);
    let expected = expected(sandbox.id_base(), gid).into_iter();
    // It can get no capability back without a new program, and that would give it none.
    let expected: Vec<_> = expected.filter(|(field, _)| *field != "CapBnd").collect();
    check_fields(&status, &expected)?;
    check_namespaces(pid, &["mnt"])
}

fn status_of(pid: i32) -> Result<String, String> {
    let path = format!("/proc/{pid}/status");
    fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))
}

fn without_own_group(status: &str, gid: u32) -> String {
    let own = format!("Groups:\t{gid}");
    let lines = status.lines().map(|line| if line.trim_end() == own { "Groups:" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// Checks that a process is in none of the host's namespaces of these kinds, as `/proc/PID/ns` names them.
pub(crate) fn check_namespaces(pid: i32, kinds: &[&str]) -> Result<(), String> {
    for kind in kinds {
        let of = |pid: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            fs::read_link(&path).map_err(|error| format!("cannot read {path}: {error}"))
        };
        if of(&pid.to_string())? == of("self")? {
            return Err(format!("process {pid} is in the host's {kind} namespace"));
        }
    }
    Ok(())
}

fn check_status(status: &str, uid: u32, gid: u32) -> Result<(), String> {
    check_fields(status, &expected(uid, gid))
}

fn expected(uid: u32, gid: u32) -> [(&'static str, String); 10] {
    let none = "0000000000000000".to_owned();
    [
        ("Uid", format!("{uid} {uid} {uid} {uid}")),
        ("Gid", format!("{gid} {gid} {gid} {gid}")),
        ("Groups", String::new()),
        ("CapInh", none.clone()),
        ("CapPrm", none.clone()),
        ("CapEff", none.clone()),
        ("CapBnd", none.clone()),
        ("CapAmb", none),
        ("NoNewPrivs", "1".to_owned()),
        ("Seccomp", "2".to_owned()),
    ]
}

/// Checks fields of a `/proc/PID/status` against what each must say, words apart by one blank.
pub(crate) fn check_fields(status: &str, expected: &[(&str, String)]) -> Result<(), String> {
    for (field, expected) in expected {
        let found = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name == field)
            .map(|(_, value)| value.split_whitespace().collect::<Vec<_>>().join(" "));
        if found.as_ref() != Some(expected) {
            let found = found.unwrap_or_else(|| "missing".to_owned());
            return Err(format!("{field} is \"{found}\", not \"{expected}\""));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFINED: &str = "Name:\tmayfly-agent\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t\n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn a_confined_process_passes() {
        assert_eq!(check_status(CONFINED, 7, 8), Ok(()));
    }

    #[test]
    fn the_own_group_is_no_group_of_anybody_elses() {
        let listed = CONFINED.replace("Groups:\t", "Groups:\t8 ");
        assert!(check_status(&listed, 7, 8).is_err());
        assert_eq!(check_status(&without_own_group(&listed, 8), 7, 8), Ok(()));
        let another = CONFINED.replace("Groups:\t", "Groups:\t8 9 ");
        assert!(check_status(&without_own_group(&another, 8), 7, 8).is_err());
    }

    #[test]
    fn every_missing_confinement_is_named() {
        for (from, to, field) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t0\t7\t7", "Uid"),
            ("Groups:\t", "Groups:\t4 ", "Groups"),
            ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000001", "CapBnd"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2\n", "", "Seccomp"),
        ] {
            let complaint = check_status(&CONFINED.replace(from, to), 7, 8).unwrap_err();
            assert!(complaint.starts_with(field), "{complaint}");
        }
    }
}

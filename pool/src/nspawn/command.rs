//! The command line of systemd-nspawn: everything that it can take away, taken away.
//!
//! Called without options it gives a container the host's network, 26 capabilities and no user namespace.

use crate::{id::GenerationId, limits::Limits, uids::RANGE, workshop::HOSTNAME};

/// Where the image lies in the mount namespace that systemd-nspawn is started in.
pub(crate) const ROOT: &str = "/run/root";

/// What the agent needs to give the job another user id than its own, to empty the job's bounding set, and to signal it.
/// All of it counts in the container's user namespace only, and the job has none.
pub(super) const AGENT_NEEDS: [(&str, u32); 5] =
    [("CAP_CHOWN", 0), ("CAP_KILL", 5), ("CAP_SETGID", 6), ("CAP_SETUID", 7), ("CAP_SETPCAP", 8)];

/// All others, see capabilities(7). `--drop-capability=all` would take the agent's as well, whatever else is said.
const DROPPED: [&str; 36] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Calls that even the agent cannot make. The job's own filter is an allow-list and narrower.
const REFUSED_CALLS: &str = "~@keyring @debug @module @raw-io @reboot @swap @clock @obsolete @mount bpf userfaultfd \
                             io_uring_setup io_uring_enter io_uring_register";

/// What the job's filter allows and systemd-nspawn's list may lack: the second lock around the job.
const ALLOWED_CALLS: &str = "landlock_create_ruleset landlock_add_rule landlock_restrict_self";

/// A kind of cgroup, file or unit of the host that systemd-nspawn would make, find or tell of, and shall not.
const ALONE: [&str; 9] = [
    "--quiet",
    // Else a file beside the image could weaken all that is said here.
    "--settings=no",
    "--register=no",
    "--keep-unit",
    "--link-journal=no",
    "--resolv-conf=off",
    "--timezone=off",
    // Pipes are handed through; a terminal would take characters pushed into its input.
    "--console=pipe",
    "--read-only",
];

/// All of it, behind the program's name. The generation names the machine, so that a process list tells whose it is.
pub(crate) fn args(generation: GenerationId, id_base: u32, limits: &Limits, agent: &str) -> Vec<String> {
    let mut args: Vec<String> = ALONE.map(ToOwned::to_owned).into();
    args.extend([
        format!("--directory={ROOT}"),
        format!("--machine=mayfly-{generation}"),
        format!("--uuid={generation}"),
        format!("--hostname={HOSTNAME}"),
        format!("--private-users={id_base}:{RANGE}"),
        // Never chown: the image's owners are seen through the mapping and stay what they are.
        "--private-users-ownership=map".to_owned(),
        "--private-network".to_owned(),
        format!("--drop-capability={}", DROPPED.join(",")),
        format!("--capability={}", AGENT_NEEDS.map(|(name, _)| name).join(",")),
        "--no-new-privileges=yes".to_owned(),
        format!("--system-call-filter={ALLOWED_CALLS}"),
        format!("--system-call-filter={REFUSED_CALLS}"),
        "--rlimit=CORE=0".to_owned(),
        format!("--rlimit=NOFILE={}", limits.open_files.max(1024)),
        "--rlimit=MEMLOCK=65536".to_owned(),
        "--rlimit=RTPRIO=0".to_owned(),
        "--rlimit=NICE=0".to_owned(),
        "--".to_owned(),
        agent.to_owned(),
    ]);
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[test]
    fn every_capability_is_either_the_agents_or_dropped() {
        let last: usize =
            std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
        let mut all: Vec<_> = DROPPED.into_iter().chain(AGENT_NEEDS.map(|(name, _)| name)).collect();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > last, "the kernel knows {} capabilities, the lists {}", last + 1, all.len());
    }

    #[test]
    fn the_generation_names_the_machine() {
        let generation = Id::random();
        let args = args(generation, 7, &Limits::default(), "/agent");
        assert!(args.contains(&format!("--machine=mayfly-{generation}")));
        assert!(args.contains(&"--private-users=7:65536".to_owned()), "{args:?}");
        assert_eq!(args.last().unwrap(), "/agent");
    }
}

//! The probes: what is asked, by which mechanism it is to hold, and what is expected of each tier.
//!
//! The questions are about visibility and limits; there is no exploit here.
//! Sources are short names: man pages by themselves, the field's own tests and manuals by three letters (docs/threat-model.md).

use pool::Tier;
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::Way::{After, Beside, Cpu, Deadline, Flood, Host, Look, Memory, Use},
    verdict::Expected::{self, Blocked as B, Contained as C, NotApplicable as N, Own as O, Residual as R},
};

/// How a probe is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// A job looks around.
    Look,
    /// A job uses up what it can.
    Use,
    /// A job takes more memory than it has, which may end it.
    Memory,
    /// A job burns more CPUs than it has. The host counts.
    Cpu,
    /// A job writes more output than it may.
    Flood,
    /// A job does not end at its deadline.
    Deadline,
    /// One job leaves marks, another looks for them beside it.
    Beside,
    /// The same, one after the other.
    After,
    /// From the host: what handles a sandbox's bytes, and what others send.
    Host,
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Its id, which never changes its meaning.
    pub id: &'static str,
    /// How it is asked.
    pub way: Way,
    /// On chroot, nspawn, docker, vm.
    pub expected: [Expected; 4],
    /// What is to be so.
    pub question: &'static str,
    /// What makes it so.
    pub mechanism: &'static str,
    /// Who asks it, too.
    pub source: &'static str,
}

impl Probe {
    /// What is expected of a tier.
    #[must_use]
    pub fn expected_of(&self, tier: Tier) -> Expected {
        let [chroot, nspawn, docker, vm] = self.expected;
        match tier {
            Tier::Chroot => chroot,
            Tier::Nspawn => nspawn,
            Tier::Docker => docker,
            Tier::Vm => vm,
        }
    }

    /// The probe of this id.
    #[must_use]
    pub fn of(id: &str) -> Option<&'static Self> {
        CATALOGUE.iter().find(|probe| probe.id.eq_ignore_ascii_case(id))
    }
}

const fn probe(
    id: &'static str,
    way: Way,
    expected: [Expected; 4],
    question: &'static str,
    mechanism: &'static str,
    source: &'static str,
) -> Probe {
    Probe { id, way, expected, question, mechanism, source }
}

/// All probes, in the order of the report.
#[rustfmt::skip]
pub const CATALOGUE: &[Probe] = &[
    probe("P01", Look, [B, B, B, O], "uid 0 inside maps to an unprivileged host range that no other sandbox has", "userns, unique range", "NSP FCP"),
    probe("P02", Look, [B, B, B, O], "effective, permitted, inheritable, bounding, ambient capability sets are empty", "bounding-set drop", "AMI PSS NSP"),
    probe("P03", Look, [B, B, B, O], "no_new_privs is set, so that no setuid program changes who the job is", "PR_SET_NO_NEW_PRIVS", "PSS prctl(2)"),
    probe("P04", Look, [B, B, B, O], "Seccomp: 2; a canary denied call fails, also by the x32 and i386 ABI", "allow-list with arch check", "seccomp(2) DKS"),
    probe("P05", Look, [B, B, B, O], "a new user namespace is refused", "seccomp; user.max_user_namespaces", "DKS BW"),
    probe("P06", Look, [B, B, B, O], "mount, umount, pivot_root, setns, new mount API refused", "seccomp, no CAP_SYS_ADMIN", "DKS"),
    probe("P07", Look, [B, B, B, O], "add_key, keyctl, request_key refused (keyrings are not namespaced)", "seccomp", "DKS"),
    probe("P08", Look, [B, B, B, O], "bpf, perf_event_open, userfaultfd, io_uring_*, module, kexec, reboot, swap, clock-setting calls refused", "seccomp", "DKS DKIO"),
    probe("P09", Look, [B, B, B, O], "open_by_handle_at refused (an old breakout)", "seccomp, CAP_DAC_READ_SEARCH", "DKS"),
    probe("P10", Look, [B, B, B, O], "ptrace, process_vm_*, pidfd_getfd on anything but own children refused", "seccomp, pid ns", "DKS CDK"),
    probe("P11", Look, [R, R, B, R], "process label present and not unconfined", "AppArmor or SELinux; mayfly brings no profile of its own", "AMI PSS LVD"),
    probe("F01", Look, [B, B, B, B], "host canary unreadable by absolute path, .., /proc/1/root, /proc/*/cwd, /proc/*/fd", "pivot_root, pid ns; VM: no shared fs", "SEB chroot(2)"),
    probe("F02", Look, [B, B, B, O], "second chroot plus cd .. does not leave the root", "pivot_root, no CAP_SYS_CHROOT", "chroot(2)"),
    probe("F03", Look, [B, B, B, N], "open fds: only 0,1,2 and the declared channel", "close_range before exec", "FCJ ISO RC21"),
    probe("F04", Look, [B, B, B, N], "the working directory lies inside the root", "path allow-list; cwd check", "RC21 RCT"),
    probe("F05", Look, [B, B, B, O], "root is read-only; only the listed tmpfs are writable", "ro bind / ReadonlyRootfs / --read-only", "CIS NSP"),
    probe("F06", Look, [B, B, B, O], "writable mounts are nosuid,nodev", "mount flags", "DKD ISO"),
    probe("F07", Look, [B, B, B, O], "kcore, keys, timer_list, sched_debug, latency_stats, acpi, scsi, asound, /sys/firmware unreadable", "masked paths", "DKD OCIT"),
    probe("F08", Look, [B, B, B, O], "/proc/sys, sysrq-trigger, irq, bus, fs not writable; core_pattern, modprobe, uevent_helper writes refused", "read-only paths", "DKD core(5)"),
    probe("F09", Look, [B, B, B, O], "cgroupfs absent or read-only, own cgroup ns; no v1 release_agent reachable", "cgroup ns, no mount, prefer v2", "CG92 cgroups(7)"),
    probe("F10", Look, [B, B, B, O], "/dev holds only null zero full random urandom tty ptmx pts; mknod fails; no mem, kmsg, kvm, fuse, tun, block nodes", "device cgroup, own tmpfs /dev", "DKD CIS"),
    probe("F11", Look, [B, B, B, B], "no docker, containerd, libvirt, D-Bus, systemd or pool-manager socket", "nothing mounted", "CIS CDK SEB"),
    probe("F12", Look, [B, B, B, N], "no undeclared host bind in mountinfo that can be written", "private propagation", "FCT RCT"),
    probe("F13", Host, [B, B, B, B], "/dev entries of the image are not symlinks before the runtime masks paths", "image lint; fixed runc", "RCC"),
    probe("I01", Look, [B, B, B, O], "syslog(2) and kmsg refused", "CAP_SYSLOG, dmesg_restrict", "capabilities(7)"),
    probe("I02", Look, [B, B, B, O], "only own processes are listed", "pid ns, hidepid", "proc(5)"),
    probe("I03", Look, [B, B, B, B], "environment equals the allow-list: no worker, broker or cloud variable", "cleared env", "FCJ ISO CDK"),
    probe("I04", Host, [B, B, B, B], "no secret in inspect output, domain XML, unit properties, argv, snapshot", "inject after start over the channel", "LMV CDK"),
    probe("I05", Look, [R, R, R, O], "un-namespaced host data (load, meminfo, interrupts, cpuinfo, where mounts come from)", "none; publish", "LEAK"),
    probe("I06", Look, [R, R, R, B], "no vmx/svm flag, no /dev/kvm in guest; no \"Vulnerable\" file; SMT and KSM state published", "CPU features off; host setup", "FCT FCP"),
    probe("X01", Beside, [B, B, B, B], "/dev/shm and /tmp of A unseen by B", "own tmpfs", "NSP DKD"),
    probe("X02", Beside, [B, B, B, B], "SysV ids and POSIX queues of A unseen by B", "ipc ns", "ipc_namespaces(7)"),
    probe("X03", Beside, [B, B, B, B], "abstract unix sockets of host and A unseen by B", "net ns", "network_namespaces(7) CTD"),
    probe("X04", After, [B, B, B, B], "file, shm, queue and socket left by job n are absent for job n+1 in that place", "destroy or revert, new generation id", "GHE LAM"),
    probe("X05", Host, [B, B, B, B], "what A is answered through its way out is not kept for B, who asks the same", "no cache and no mirror on the way out; each job has its own session", "OAI"),
    probe("X06", Look, [R, R, R, O], "page-cache residency of shared lower-layer files tells what others run", "none; no shared lower across tenants if it matters", "PGC"),
    probe("X07", Host, [B, B, B, B], "a message of an old generation, or a reused PID/uid, is refused; kills go by pidfd or cgroup", "nonce + epoch", "pidfd_open(2)"),
    probe("X08", Look, [B, B, B, B], "fresh scratch space is empty", "new overlay; no swap", "FCP"),
    probe("N01", Look, [B, B, B, B], "default: loopback only", "empty netns / no NIC", "ISO NSP"),
    probe("N02", Look, [B, B, B, B], "169.254.169.254 and IPv6 metadata unreachable (v4 and v6 for all N rows)", "host drop rule", "FCP"),
    probe("N03", Look, [B, B, B, B], "host gateway, bridge IP, broker, Redis, daemon ports, private ranges unreachable", "host input/forward drop", "FCD DKF"),
    probe("N04", Look, [B, B, B, B], "unlisted DNS name is REFUSED and never forwarded; query volume capped", "own resolver; fixed dockerd", "DKN"),
    probe("N05", Look, [B, B, B, O], "raw, packet and odd socket families refused (Docker grants NET_RAW by default)", "seccomp families, no CAP_NET_RAW", "DKD SDX"),
    probe("N06", Look, [B, B, B, B], "MAC, IP, ARP spoofing dropped", "nwfilter; no shared L2", "LVN"),
    probe("N07", Beside, [B, B, B, B], "neighbour sandbox unreachable", "netns each; icc=false; port isolated", "LVX FCN"),
    probe("N08", Host, [B, B, B, B], "with egress on: unlisted host, IP literal, metadata, redirect to an address of the host's, odd CONNECT port refused; each recorded", "allow-list, address check and record on the host", "OAI GLV"),
    probe("N09", Look, [C, C, C, C], "connection and bandwidth flood is limited", "tc, nft, <bandwidth>", "FCP"),
    probe("R01", Use, [C, C, C, C], "fork bomb stops at pids.max; host stays responsive", "pids.max", "SRC"),
    probe("R02", Memory, [C, C, C, C], "memory bomb: OOM only inside, whole group dies, no swap growth", "memory.max, swap.max=0, oom.group", "SRC"),
    probe("R03", Use, [C, C, C, C], "filling tmpfs or /dev/shm stops at size and counts as memory", "size=, memcg", "tmpfs(5)"),
    probe("R04", Use, [C, C, C, C], "disk fill stops at quota; host free space stays above the floor", "tmpfs, fs quota, disk size", "ISO DKQ"),
    probe("R05", Use, [C, C, C, C], "inode fill stops (Docker has no inode quota)", "nr_inodes; own filesystem", "DKI ISO"),
    probe("R06", Use, [C, C, C, C], "fd exhaustion stops; host file-nr unaffected", "RLIMIT_NOFILE", "FCJ"),
    probe("R07", Cpu, [C, C, C, C], "CPU burn and I/O flood stay within the set share", "cpu.max, io.max, <iotune>", "SRC FCP"),
    probe("R08", Flood, [C, C, C, C], "log or serial flood is cut at a cap with a marker", "ring buffer, local driver, virtlogd", "DKL FCP"),
    probe("R09", Deadline, [C, C, C, C], "deadline kills SIGTERM-ignoring, double-forked, setsid and stopped tasks", "pid-ns init, cgroup.kill, VM destroy", "pid_namespaces(7) LWK"),
    probe("R10", Use, [C, C, C, C], "core dump: RLIMIT_CORE is not enforced for a piped core_pattern, which runs in the host's namespaces", "core_pipe_limit, handler off", "core(5)"),
    probe("R11", Use, [C, C, C, C], "namespace and cgroup counts are limited and return to the baseline after the job", "user.max_*, cgroup.max.*", "namespaces(7)"),
    probe("A01", Host, [B, B, B, B], "symlink in the output directory to a host file is not followed", "openat2 RESOLVE_BENEATH+NO_SYMLINKS, pathrs", "openat2(2) PRS"),
    probe("A02", Host, [B, B, B, B], "directory swapped for a symlink during collection gains nothing", "fd-relative walk on a frozen or dead sandbox", "LWP"),
    probe("A03", Host, [B, B, B, B], "archive with absolute, .., hardlink-out, device, fifo, duplicate entries is rejected", "strict reader: files and directories only", "TAR"),
    probe("A04", Host, [B, B, B, B], "PAX/ustar size mismatch is rejected (tokio-tar is unmaintained and unpatched)", "maintained crate, reject malformed", "TAR"),
    probe("A05", Host, [B, B, B, B], "expansion: ratio, bytes, entry count, sparse size limited before write", "hard caps", "INS"),
    probe("A06", Host, [B, B, B, B], "fifo, socket or device as \"artifact\" does not block the collector; mode, xattr, ACL stripped", "O_NONBLOCK, fstat, regular files only", "own"),
    probe("A07", Host, [B, B, B, B], "terminal escapes, forged log lines, control bytes in names are neutral on display", "structured fields, strip C0/C1", "CW"),
    probe("A08", Host, [N, N, N, B], "a guest-written disk is never mounted or format-probed on the host", "explicit format and backing format", "LVF"),
    probe("C01", Host, [B, B, B, B], "agent reply that is oversize, garbage, late, duplicate, or for another job is refused in bounded time", "length cap, nonce, own deadline", "QGA"),
    probe("C02", Look, [B, B, B, N], "no host tty enters the sandbox (TIOCSTI)", "pipes, setsid", "BW NSP"),
    probe("C03", Host, [B, B, B, N], "no root tool enters a sandbox in which hostile code ran", "results leave by channel only", "RC57 RC21"),
    probe("C04", Host, [N, N, B, N], "runtime version floor: runc ≥ 1.2.8 / 1.3.3 / 1.4.0-rc.3 or a distro build that lists CVE-2025-31133, -52565, -52881", "start-up check", "RCC"),
    probe("M01", Host, [B, B, B, B], "guest/default account absent; no plaintext off loopback (a 2026 CVE let remote clients pass the loopback check)", "own users, TLS", "RQA RQ57"),
    probe("M02", Host, [B, B, B, B], "tenant in the body that differs from the broker-validated user-id is refused; missing user-id is refused", "validated user-id", "RQU"),
    probe("M03", Host, [B, B, B, B], "producer cannot declare, bind, consume, or publish results", "per-vhost permissions", "RQA"),
    probe("M04", Host, [B, B, B, B], "replayed or forged job or result id yields one terminal result", "unique key, MAC, epoch", "K8J"),
    probe("M05", Host, [B, B, B, B], "oversize body is dead-lettered (broker default limit is 16 MiB since 4.0)", "own cap far below", "RQS"),
    probe("M06", Host, [B, B, B, B], "JSON: depth, duplicate keys, unknown fields, huge numbers → typed refusal", "serde_json depth 128, deny_unknown_fields", "SRD"),
    probe("M07", Host, [B, B, B, B], "poison message ends at the delivery limit (20 by default since 4.0) and still gets a terminal result", "DLX at-least-once", "RQ4 RQQ"),
    probe("M08", Host, [B, B, B, B], "job cannot ask for a weaker tier, privileged, host mounts, raw image refs or odd env names", "allow-list schema, tenant floor", "PSS CIS"),
    probe("M09", Host, [B, B, B, B], "Redis: other user's keys and admin commands refused; unreachable from sandboxes", "ACL, bind, TLS", "RED"),
    probe("M10", Host, [B, B, B, B], "one tenant's flood leaves the other tenant's wait bounded", "queue per tenant, max-length + reject-publish", "RQQ"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_is_there_once() {
        let ids: BTreeSet<_> = CATALOGUE.iter().map(|probe| probe.id).collect();
        assert_eq!((ids.len(), CATALOGUE.len()), (80, 80));
    }

    #[test]
    fn no_question_no_mechanism_and_no_source_is_left_out() {
        for probe in CATALOGUE {
            let texts = [probe.question, probe.mechanism, probe.source];
            assert!(texts.iter().all(|text| !text.is_empty()), "{}", probe.id);
        }
    }

    #[test]
    fn the_threat_model_names_every_probe() {
        let page = include_str!("../../docs/threat-model.md");
        let (promises, _) = page.split_once("## One host's answer").unwrap();
        // The range of the queue's and store's is written as one.
        let names = |id: &str| promises.contains(id) || matches!(id, "M02" | "M03" | "M04");
        let left_out: Vec<_> = CATALOGUE.iter().map(|probe| probe.id).filter(|id| !names(id)).collect();
        assert_eq!(left_out, [""; 0]);
    }

    #[test]
    fn a_limit_is_never_excused_by_a_kernel_of_its_own() {
        let limits = CATALOGUE.iter().filter(|probe| probe.id.starts_with('R'));
        assert!(limits.flat_map(|probe| probe.expected).all(|expected| expected == C));
    }
}

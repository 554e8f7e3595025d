//! The probes: what is asked, by which mechanism it is to hold, and what is expected of each tier.
//!
//! The questions are about visibility and limits; there is no exploit here. Sources are the field's own tests and manuals.

use pool::Tier;

use crate::verdict::Expected::{self, Blocked as B, Contained as C, NotApplicable as N, Residual as R};

/// Where a probe looks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From inside, as a job.
    Inside,
    /// From the host: what handles a sandbox's bytes, and what others send.
    Host,
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Its id, which never changes its meaning.
    pub id: &'static str,
    /// What is to be so.
    pub question: &'static str,
    /// What makes it so.
    pub mechanism: &'static str,
    /// Where it looks from.
    pub place: Place,
    /// On chroot, nspawn, docker, vm.
    pub expected: [Expected; 4],
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
}

/// All probes, in the order of the report.
pub const CATALOGUE: &[Probe] = &[
    Probe {
        id: "P01",
        question: "uid 0 inside maps to an unprivileged host range that no other sandbox has",
        mechanism: "userns, unique range",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P02",
        question: "effective, permitted, inheritable, bounding, ambient capability sets are empty (T2: exactly the declared list)",
        mechanism: "bounding-set drop",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P03",
        question: "NoNewPrivs: 1; a setuid canary in the image does not change euid",
        mechanism: "PR_SET_NO_NEW_PRIVS",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P04",
        question: "Seccomp: 2; a canary denied call fails, also by the x32 and i386 ABI",
        mechanism: "allow-list with arch check",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P05",
        question: "a new user namespace is refused",
        mechanism: "seccomp; user.max_user_namespaces",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P06",
        question: "mount, umount, pivot_root, setns, new mount API refused",
        mechanism: "seccomp, no CAP_SYS_ADMIN",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P07",
        question: "add_key, keyctl, request_key refused (keyrings are not namespaced)",
        mechanism: "seccomp",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P08",
        question: "bpf, perf_event_open, userfaultfd, io_uring_*, module, kexec, reboot, swap, clock-setting calls refused",
        mechanism: "seccomp",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P09",
        question: "open_by_handle_at refused (an old breakout)",
        mechanism: "seccomp, CAP_DAC_READ_SEARCH",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P10",
        question: "ptrace, process_vm_*, pidfd_getfd on anything but own children refused",
        mechanism: "seccomp, pid ns",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "P11",
        question: "LSM label present and not unconfined (T4: on the QEMU process)",
        mechanism: "AppArmor or SELinux/sVirt",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "F01",
        question: "host canary unreadable by absolute path, .., /proc/1/root, /proc/*/cwd, /proc/*/fd",
        mechanism: "pivot_root, pid ns; VM: no shared fs",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "F02",
        question: "second chroot plus cd .. does not leave the root",
        mechanism: "pivot_root, no CAP_SYS_CHROOT",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F03",
        question: "open fds: only 0,1,2 and the declared channel",
        mechanism: "close_range before exec",
        place: Place::Inside,
        expected: [B, B, B, N],
    },
    Probe {
        id: "F04",
        question: "cwd is inside the root; a job workdir such as /proc/self/fd/N is refused at admission",
        mechanism: "path allow-list; cwd check",
        place: Place::Inside,
        expected: [B, B, B, N],
    },
    Probe {
        id: "F05",
        question: "root is read-only; only the listed tmpfs are writable",
        mechanism: "ro bind / ReadonlyRootfs / --read-only",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F06",
        question: "writable mounts are nosuid,nodev",
        mechanism: "mount flags",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F07",
        question: "kcore, keys, timer_list, sched_debug, latency_stats, acpi, scsi, asound, /sys/firmware unreadable",
        mechanism: "masked paths",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F08",
        question: "/proc/sys, sysrq-trigger, irq, bus, fs not writable; core_pattern, modprobe, uevent_helper writes refused",
        mechanism: "read-only paths",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F09",
        question: "cgroupfs absent or read-only, own cgroup ns; no v1 release_agent reachable",
        mechanism: "cgroup ns, no mount, prefer v2",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F10",
        question: "/dev holds only null zero full random urandom tty ptmx pts; mknod fails; no mem, kmsg, kvm, fuse, tun, block nodes",
        mechanism: "device cgroup, own tmpfs /dev",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "F11",
        question: "no docker, containerd, libvirt, D-Bus, systemd or pool-manager socket",
        mechanism: "nothing mounted",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "F12",
        question: "no undeclared host bind in mountinfo; host mount count unchanged after the job (overlay lowerdir strings: R)",
        mechanism: "private propagation",
        place: Place::Inside,
        expected: [B, B, B, N],
    },
    Probe {
        id: "F13",
        question: "/dev entries of the image are not symlinks before the runtime masks paths",
        mechanism: "image lint; fixed runc",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "I01",
        question: "syslog(2) and kmsg refused",
        mechanism: "CAP_SYSLOG, dmesg_restrict",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "I02",
        question: "only own processes are listed",
        mechanism: "pid ns, hidepid",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "I03",
        question: "environment equals the allow-list: no worker, broker or cloud variable",
        mechanism: "cleared env",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "I04",
        question: "no secret in inspect output, domain XML, unit properties, argv, snapshot",
        mechanism: "inject after start over the channel",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "I05",
        question: "un-namespaced host data (load, meminfo, interrupts, cpuinfo)",
        mechanism: "none; publish",
        place: Place::Inside,
        expected: [R, R, R, C],
    },
    Probe {
        id: "I06",
        question: "no vmx/svm flag, no /dev/kvm in guest; no \"Vulnerable\" file; SMT and KSM state published",
        mechanism: "CPU features off; host setup",
        place: Place::Inside,
        expected: [R, R, R, B],
    },
    Probe {
        id: "X01",
        question: "/dev/shm and /tmp of A unseen by B",
        mechanism: "own tmpfs",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "X02",
        question: "SysV ids and POSIX queues of A unseen by B",
        mechanism: "ipc ns",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "X03",
        question: "abstract unix sockets of host and A unseen by B",
        mechanism: "net ns",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "X04",
        question: "generation canary: file, process, shm, keyring, timer, firewall rule left by job n is absent for job n+1 in that slot",
        mechanism: "destroy or revert, new generation id",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "X05",
        question: "A cannot leave data that B reads in a mirror, cache, proxy or artifact store",
        mechanism: "per-tenant or read-only services",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "X06",
        question: "page-cache residency of shared lower-layer files tells what others run",
        mechanism: "none; no shared lower across tenants if it matters",
        place: Place::Inside,
        expected: [R, R, R, C],
    },
    Probe {
        id: "X07",
        question: "a message of an old generation, or a reused PID/uid, is refused; kills go by pidfd or cgroup",
        mechanism: "nonce + epoch",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "X08",
        question: "fresh scratch space reads zero; swap is off or encrypted",
        mechanism: "new overlay; no swap",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N01",
        question: "default: loopback only",
        mechanism: "empty netns / no NIC",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N02",
        question: "169.254.169.254 and IPv6 metadata unreachable (v4 and v6 for all N rows)",
        mechanism: "host drop rule",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N03",
        question: "host gateway, bridge IP, broker, Redis, daemon ports, private ranges unreachable",
        mechanism: "host input/forward drop",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N04",
        question: "unlisted DNS name is REFUSED and never forwarded; query volume capped",
        mechanism: "own resolver; fixed dockerd",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N05",
        question: "raw, packet and odd socket families refused (Docker grants NET_RAW by default)",
        mechanism: "seccomp families, no CAP_NET_RAW",
        place: Place::Inside,
        expected: [B, B, B, C],
    },
    Probe {
        id: "N06",
        question: "MAC, IP, ARP spoofing dropped",
        mechanism: "nwfilter; no shared L2",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N07",
        question: "neighbour sandbox unreachable",
        mechanism: "netns each; icc=false; port isolated",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N08",
        question: "with egress on: unlisted host, IP literal, redirect to private address, odd CONNECT port refused; every reached host recorded",
        mechanism: "allow-list proxy",
        place: Place::Inside,
        expected: [B, B, B, B],
    },
    Probe {
        id: "N09",
        question: "connection and bandwidth flood is limited",
        mechanism: "tc, nft, <bandwidth>",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R01",
        question: "fork bomb stops at pids.max; host stays responsive",
        mechanism: "pids.max",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R02",
        question: "memory bomb: OOM only inside, whole group dies, no swap growth",
        mechanism: "memory.max, swap.max=0, oom.group",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R03",
        question: "filling tmpfs or /dev/shm stops at size and counts as memory",
        mechanism: "size=, memcg",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R04",
        question: "disk fill stops at quota; host free space stays above the floor",
        mechanism: "tmpfs, fs quota, disk size",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R05",
        question: "inode fill stops (Docker has no inode quota)",
        mechanism: "nr_inodes; own filesystem",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R06",
        question: "fd exhaustion stops; host file-nr unaffected",
        mechanism: "RLIMIT_NOFILE",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R07",
        question: "CPU burn and I/O flood stay within the set share",
        mechanism: "cpu.max, io.max, <iotune>",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R08",
        question: "log or serial flood is cut at a cap with a marker",
        mechanism: "ring buffer, local driver, virtlogd",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R09",
        question: "deadline kills SIGTERM-ignoring, double-forked, setsid and stopped tasks",
        mechanism: "pid-ns init, cgroup.kill, VM destroy",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R10",
        question: "core dump: RLIMIT_CORE is not enforced for a piped core_pattern, which runs in the host's namespaces",
        mechanism: "core_pipe_limit, handler off",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "R11",
        question: "namespace and cgroup counts are limited and return to the baseline after the job",
        mechanism: "user.max_*, cgroup.max.*",
        place: Place::Inside,
        expected: [C, C, C, C],
    },
    Probe {
        id: "A01",
        question: "symlink in the output directory to a host file is not followed",
        mechanism: "openat2 RESOLVE_BENEATH+NO_SYMLINKS, pathrs",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A02",
        question: "directory swapped for a symlink during collection gains nothing",
        mechanism: "fd-relative walk on a frozen or dead sandbox",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A03",
        question: "archive with absolute, .., hardlink-out, device, fifo, duplicate entries is rejected",
        mechanism: "strict reader: files and directories only",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A04",
        question: "PAX/ustar size mismatch is rejected (tokio-tar is unmaintained and unpatched)",
        mechanism: "maintained crate, reject malformed",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A05",
        question: "expansion: ratio, bytes, entry count, sparse size limited before write",
        mechanism: "hard caps",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A06",
        question: "fifo, socket or device as \"artifact\" does not block the collector; mode, xattr, ACL stripped",
        mechanism: "O_NONBLOCK, fstat, regular files only",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A07",
        question: "terminal escapes, forged log lines, control bytes in names are neutral on display",
        mechanism: "structured fields, strip C0/C1",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "A08",
        question: "a guest-written disk is never mounted or format-probed on the host",
        mechanism: "explicit format and backing format",
        place: Place::Host,
        expected: [N, N, N, B],
    },
    Probe {
        id: "C01",
        question: "agent reply that is oversize, garbage, late, duplicate, or for another job is refused in bounded time",
        mechanism: "length cap, nonce, own deadline",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "C02",
        question: "no host tty enters the sandbox (TIOCSTI)",
        mechanism: "pipes, setsid",
        place: Place::Inside,
        expected: [B, B, B, N],
    },
    Probe {
        id: "C03",
        question: "no root tool enters a sandbox in which hostile code ran",
        mechanism: "results leave by channel only",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "C04",
        question: "runtime version floor: runc ≥ 1.2.8 / 1.3.3 / 1.4.0-rc.3 or a distro build that lists CVE-2025-31133, -52565, -52881",
        mechanism: "start-up check",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M01",
        question: "guest/default account absent; no plaintext off loopback (a 2026 CVE let remote clients pass the loopback check)",
        mechanism: "own users, TLS",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M02",
        question: "tenant in the body that differs from the broker-validated user-id is refused; missing user-id is refused",
        mechanism: "validated user-id",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M03",
        question: "producer cannot declare, bind, consume, or publish results",
        mechanism: "per-vhost permissions",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M04",
        question: "replayed or forged job or result id yields one terminal result",
        mechanism: "unique key, MAC, epoch",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M05",
        question: "oversize body is dead-lettered (broker default limit is 16 MiB since 4.0)",
        mechanism: "own cap far below",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M06",
        question: "JSON: depth, duplicate keys, unknown fields, huge numbers → typed refusal",
        mechanism: "serde_json depth 128, deny_unknown_fields",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M07",
        question: "poison message ends at the delivery limit (20 by default since 4.0) and still gets a terminal result",
        mechanism: "DLX at-least-once",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M08",
        question: "job cannot ask for a weaker tier, privileged, host mounts, raw image refs or odd env names",
        mechanism: "allow-list schema, tenant floor",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M09",
        question: "Redis: other user's keys and admin commands refused; unreachable from sandboxes",
        mechanism: "ACL, bind, TLS",
        place: Place::Host,
        expected: [B, B, B, B],
    },
    Probe {
        id: "M10",
        question: "one tenant's flood leaves the other tenant's wait bounded",
        mechanism: "queue per tenant, max-length + reject-publish",
        place: Place::Host,
        expected: [B, B, B, B],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_is_there_once() {
        let ids: BTreeSet<_> = CATALOGUE.iter().map(|probe| probe.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
    }

    #[test]
    fn no_question_and_no_mechanism_is_left_out() {
        assert!(CATALOGUE.iter().all(|probe| !probe.question.is_empty() && !probe.mechanism.is_empty()));
    }
}

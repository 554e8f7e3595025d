//! What every sandbox finds in its root beside the image, whoever puts it there: the host on the tiers that share its
//! kernel, the agent itself in a virtual machine.

/// Directories of the throw-away disk: name on it, place in the root, mode, whether the job owns it.
pub const SCRATCH: [(&str, &str, u32, bool); 3] =
    [("tmp", "tmp", 0o1777, false), ("job", "job", 0o755, true), ("shm", "dev/shm", 0o1777, false)];

/// Unreadable in every sandbox: Docker's list (moby `oci/defaults.go`), those of /proc.
pub const MASKED: [&str; 11] = [
    "asound",
    "acpi",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "scsi",
    "kallsyms",
];

/// Readable but never writable: Docker's list.
pub const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Name, major and minor number: the nodes that Docker gives every container, without ptmx (see [`LINKS`]).
pub const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in /dev, and where they lead.
pub const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

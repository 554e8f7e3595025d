//! The system calls that a job may make: the one table behind the seccomp filter.
//!
//! It began as Docker's default profile without any capability (moby/profiles, `seccomp/default.json`) and is
//! narrower where a comment or a reason says so. What is not in [`ALLOWED`] or [`ALLOWED_WHEN`] answers EPERM;
//! [`REFUSED`] is not compiled, it says why the well-known absentees are absent, and the build fails if a call
//! stands in both. Numbers that carry the x32 bit match nothing here, so they answer EPERM as well; a call by
//! the i386 convention kills the process.

use std::ops::RangeInclusive;

/// What one argument must be. The first number is the argument's position.
pub(crate) enum Arg {
    Is(u8, u64),
    IsNot(u8, u64),
    /// Position, mask, value.
    Masked(u8, u64, u64),
}

/// A call that is allowed when all arguments of any one alternative hold.
pub(crate) struct When {
    pub(crate) call: i64,
    pub(crate) any_of: &'static [&'static [Arg]],
}

macro_rules! calls {
    ($($name:ident)+) => { &[$(libc::$name),+] };
}

// Newer than the libc crate that we are held to.
const SYS_IO_PGETEVENTS: i64 = 333;
const SYS_URETPROBE: i64 = 335;
const SYS_CACHESTAT: i64 = 451;
const SYS_MAP_SHADOW_STACK: i64 = 453;
const SYS_FUTEX_WAKE: i64 = 454;
const SYS_FUTEX_WAIT: i64 = 455;
const SYS_FUTEX_REQUEUE: i64 = 456;
const SYS_STATMOUNT: i64 = 457;
const SYS_LISTMOUNT: i64 = 458;
const SYS_LSM_GET_SELF_ATTR: i64 = 459;
const SYS_LSM_SET_SELF_ATTR: i64 = 460;
const SYS_LSM_LIST_MODULES: i64 = 461;
const SYS_SETXATTRAT: i64 = 463;
const SYS_GETXATTRAT: i64 = 464;
const SYS_LISTXATTRAT: i64 = 465;
const SYS_REMOVEXATTRAT: i64 = 466;
const SYS_OPEN_TREE_ATTR: i64 = 467;

#[rustfmt::skip]
pub(crate) const ALLOWED: &[(&str, &[i64])] = &[
    ("files: open, read, write", calls![
        SYS_open SYS_openat SYS_openat2 SYS_creat SYS_close SYS_close_range SYS_read SYS_pread64 SYS_readv SYS_preadv
        SYS_preadv2 SYS_write SYS_pwrite64 SYS_writev SYS_pwritev SYS_pwritev2 SYS_lseek SYS_dup SYS_dup2 SYS_dup3
        SYS_fcntl SYS_flock SYS_fsync SYS_fdatasync SYS_sync SYS_syncfs SYS_sync_file_range SYS_fallocate
        SYS_fadvise64 SYS_readahead SYS_truncate SYS_ftruncate SYS_sendfile SYS_splice SYS_tee SYS_vmsplice
        SYS_copy_file_range SYS_pipe SYS_pipe2 SYS_memfd_create SYS_memfd_secret
    ]),
    ("files: names and attributes", calls![
        SYS_access SYS_faccessat SYS_faccessat2 SYS_stat SYS_fstat SYS_lstat SYS_newfstatat SYS_statx SYS_statfs
        SYS_fstatfs SYS_getdents SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_mkdir SYS_mkdirat SYS_rmdir
        SYS_rename SYS_renameat SYS_renameat2 SYS_link SYS_linkat SYS_symlink SYS_symlinkat SYS_unlink SYS_unlinkat
        SYS_readlink SYS_readlinkat SYS_chmod SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_chown SYS_fchown SYS_lchown
        SYS_fchownat SYS_umask SYS_utime SYS_utimes SYS_utimensat SYS_futimesat SYS_mknod SYS_mknodat SYS_getxattr
        SYS_lgetxattr SYS_fgetxattr SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_listxattr SYS_llistxattr
        SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr SYS_inotify_init SYS_inotify_init1
        SYS_inotify_add_watch SYS_inotify_rm_watch
    ]),
    ("files: what the libc crate does not name yet", &[
        SYS_CACHESTAT, SYS_SETXATTRAT, SYS_GETXATTRAT, SYS_LISTXATTRAT, SYS_REMOVEXATTRAT,
        // They read the own mount namespace only, as /proc/self/mountinfo does.
        SYS_STATMOUNT, SYS_LISTMOUNT,
    ]),
    ("waiting for several things", calls![
        SYS_poll SYS_ppoll SYS_select SYS_pselect6 SYS_epoll_create SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_wait
        SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd SYS_eventfd2 SYS_signalfd SYS_signalfd4 SYS_io_setup
        SYS_io_destroy SYS_io_getevents SYS_io_submit SYS_io_cancel
    ]),
    ("waiting: what the libc crate does not name", &[SYS_IO_PGETEVENTS]),
    ("memory", calls![
        SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_mincore SYS_msync SYS_mlock SYS_mlock2
        SYS_mlockall SYS_munlock SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
        SYS_remap_file_pages SYS_mseal
    ]),
    ("memory and locks: what the libc crate does not name yet", &[
        SYS_MAP_SHADOW_STACK, SYS_FUTEX_WAKE, SYS_FUTEX_WAIT, SYS_FUTEX_REQUEUE,
    ]),
    ("processes and threads", calls![
        SYS_fork SYS_vfork SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid
        SYS_gettid SYS_getpgid SYS_getpgrp SYS_setpgid SYS_getsid SYS_setsid SYS_set_tid_address SYS_set_robust_list
        SYS_get_robust_list SYS_futex SYS_futex_waitv SYS_rseq SYS_arch_prctl SYS_prctl SYS_pidfd_open
        SYS_getrusage SYS_times SYS_getrlimit SYS_setrlimit SYS_getpriority SYS_ioprio_get SYS_getcpu
        SYS_sched_yield SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
        SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_seccomp
        SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    ]),
    // The kernel makes it on behalf of a probe that the host's administrator set; refused, the program dies.
    ("probes of the host", &[SYS_URETPROBE]),
    // Every set of capabilities is empty, so these change nothing that is not the process's own already.
    ("identity", calls![
        SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid SYS_setgid
        SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid SYS_capget
        SYS_capset
    ]),
    ("signals and timers", calls![
        SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
        SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_kill SYS_tkill SYS_tgkill SYS_pidfd_send_signal
        SYS_pause SYS_alarm SYS_getitimer SYS_setitimer SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime
        SYS_clock_getres SYS_gettimeofday SYS_time SYS_timer_create SYS_timer_settime SYS_timer_gettime
        SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
        SYS_restart_syscall
    ]),
    ("sockets, once made", calls![
        SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_shutdown SYS_getsockname SYS_getpeername
        SYS_getsockopt SYS_setsockopt SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_recvfrom SYS_recvmsg SYS_recvmmsg
    ]),
    // In the sandbox's own ipc namespace.
    ("System V and POSIX ipc", calls![
        SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget SYS_msgsnd
        SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
        SYS_mq_getsetattr
    ]),
    ("the system", calls![SYS_uname SYS_sysinfo SYS_getrandom]),
];

/// Every `CLONE_NEW*` flag that `clone` knows.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// `CLONE_NEWTIME`, which only `unshare` and `clone3` know: in `clone` the bit is part of the exit signal.
const NEW_TIME: u64 = 0x80;
/// The part of a socket's type beside `SOCK_NONBLOCK` and `SOCK_CLOEXEC`.
const TYPE: u64 = 0xf;

use Arg::{Is, IsNot, Masked};

const ON_SELF: &[&[Arg]] = &[&[Is(0, 0)]];

#[rustfmt::skip]
pub(crate) const ALLOWED_WHEN: &[When] = &[
    When { call: libc::SYS_clone, any_of: &[&[Masked(0, NEW_NAMESPACES, 0)]] },
    When { call: libc::SYS_unshare, any_of: &[&[Masked(0, NEW_NAMESPACES | NEW_TIME, 0)]] },
    // Asking, and the two values that change nothing. READ_IMPLIES_EXEC and ADDR_NO_RANDOMIZE weaken a program.
    When { call: libc::SYS_personality, any_of: &[&[Is(0, 0)], &[Is(0, 0xffff_ffff)]] },
    // Both push characters into a terminal's input.
    When { call: libc::SYS_ioctl, any_of: &[&[IsNot(1, libc::TIOCSTI), IsNot(1, libc::TIOCLINUX)]] },
    // Stream, datagram and ping sockets of the internet families, local sockets, and netlink for routes, which
    // `getaddrinfo` needs. Other protocols (SCTP, MPTCP, DCCP …) would load kernel modules.
    When { call: libc::SYS_socket, any_of: &[
        &[Is(0, 1)],
        &[Is(0, 2), Masked(1, TYPE, 1), Is(2, 0)], &[Is(0, 2), Masked(1, TYPE, 1), Is(2, 6)],
        &[Is(0, 2), Masked(1, TYPE, 2), Is(2, 0)], &[Is(0, 2), Masked(1, TYPE, 2), Is(2, 17)],
        &[Is(0, 2), Masked(1, TYPE, 2), Is(2, 1)],
        &[Is(0, 10), Masked(1, TYPE, 1), Is(2, 0)], &[Is(0, 10), Masked(1, TYPE, 1), Is(2, 6)],
        &[Is(0, 10), Masked(1, TYPE, 2), Is(2, 0)], &[Is(0, 10), Masked(1, TYPE, 2), Is(2, 17)],
        &[Is(0, 10), Masked(1, TYPE, 2), Is(2, 58)],
        &[Is(0, 16), Is(2, 0)],
    ] },
    When { call: libc::SYS_socketpair, any_of: &[&[Is(0, 1)]] },
    // On itself only: where the agent is the same user, the job could throttle or kill it through these
    // (`prlimit(1, RLIMIT_CPU, 1)`). A program that names itself by its own pid is refused as well.
    When { call: libc::SYS_prlimit64, any_of: ON_SELF },
    When { call: libc::SYS_sched_setaffinity, any_of: ON_SELF },
    When { call: libc::SYS_sched_setattr, any_of: ON_SELF },
    When { call: libc::SYS_sched_setparam, any_of: ON_SELF },
    When { call: libc::SYS_sched_setscheduler, any_of: ON_SELF },
    // PRIO_PROCESS and IOPRIO_WHO_PROCESS: "every process of the user" would mean the agent too.
    When { call: libc::SYS_setpriority, any_of: &[&[Is(0, 0), Is(1, 0)]] },
    When { call: libc::SYS_ioprio_set, any_of: &[&[Is(0, 1), Is(1, 0)]] },
];

#[rustfmt::skip]
pub(crate) const REFUSED: &[(&str, &[i64])] = &[
    ("they change what the sandbox sees of the file system", calls![
        SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_move_mount
        SYS_open_tree SYS_mount_setattr
    ]),
    ("the same, newer", &[SYS_OPEN_TREE_ATTR]),
    ("they enter another namespace", calls![SYS_setns]),
    ("keyrings are not namespaced", calls![SYS_add_key SYS_keyctl SYS_request_key]),
    ("large kernel surface with a history of holes, or a view of the whole machine", calls![
        SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
        SYS_lookup_dcookie SYS_fanotify_init SYS_fanotify_mark SYS_syslog
    ]),
    ("they change the kernel or the machine", calls![
        SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load SYS_reboot SYS_swapon
        SYS_swapoff SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime SYS_sethostname
        SYS_setdomainname SYS_acct SYS_quotactl SYS_quotactl_fd SYS_iopl SYS_ioperm SYS_vhangup
    ]),
    ("file handles reach files outside of the sandbox's mounts", calls![SYS_open_by_handle_at SYS_name_to_handle_at]),
    ("they reach into other processes; a filter cannot tell a child from the agent, so all are refused and debuggers \
      do not work", calls![
        SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_getfd SYS_process_madvise SYS_kcmp
        SYS_process_mrelease SYS_move_pages SYS_migrate_pages
    ]),
    ("memory policy is the host's, as in Docker without CAP_SYS_NICE", calls![
        SYS_mbind SYS_get_mempolicy SYS_set_mempolicy SYS_set_mempolicy_home_node
    ]),
    ("16-bit code segments: only old emulators want them, and espfix had holes", calls![SYS_modify_ldt]),
    ("security modules are the host's", &[SYS_LSM_GET_SELF_ATTR, SYS_LSM_SET_SELF_ATTR, SYS_LSM_LIST_MODULES]),
    ("obsolete", calls![SYS_uselib SYS_ustat SYS_sysfs SYS__sysctl SYS_nfsservctl]),
];

/// Calls that answer ENOSYS, so that a C library falls back to what it knew before: `clone3`, whose flags lie in
/// memory where no filter can read them, and calls younger than this table.
pub(crate) const UNKNOWN: &[RangeInclusive<i64>] = &[libc::SYS_clone3..=libc::SYS_clone3, 468..=511];

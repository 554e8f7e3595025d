//! Calls made from behind the filters. Each refused one is also made without them and must answer otherwise
//! there: a canary that dies of something else proves nothing.

#![expect(unsafe_code, reason = "raw system calls, and a fork to confine")]

use std::arch::asm;

use libc::{EPERM, c_long};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::confine;

/// A call and its first four arguments. Pointers are null and ids are nobody's: nothing happens when one gets through.
type Call = (&'static str, c_long, [u64; 4]);

/// No process, no descriptor.
const NO_PID: u64 = 0x3fff_fffe;
const NO_FD: u64 = u32::MAX as u64;

const X32_GETPID: c_long = 0x4000_0000 + libc::SYS_getpid;

#[rustfmt::skip]
const REFUSED: &[Call] = &[
    ("a new user namespace", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0]),
    ("a new time namespace", libc::SYS_unshare, [0x80, 0, 0, 0]),
    ("a new namespace by clone", libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::CLONE_FS) as u64, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("umount2", libc::SYS_umount2, [0; 4]),
    ("pivot_root", libc::SYS_pivot_root, [0; 4]),
    ("chroot", libc::SYS_chroot, [0; 4]),
    ("fsopen", libc::SYS_fsopen, [0; 4]),
    ("open_tree", libc::SYS_open_tree, [NO_FD, 0, 0, 0]),
    ("move_mount", libc::SYS_move_mount, [NO_FD, 0, NO_FD, 0]),
    ("setns", libc::SYS_setns, [NO_FD, 0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [9999, 0, 0, 0]),
    ("add_key", libc::SYS_add_key, [0; 4]),
    ("request_key", libc::SYS_request_key, [0; 4]),
    ("bpf", libc::SYS_bpf, [9999, 0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
    ("userfaultfd", libc::SYS_userfaultfd, [9999, 0, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ("swapon", libc::SYS_swapon, [0; 4]),
    ("reboot", libc::SYS_reboot, [0; 4]),
    ("clock_settime", libc::SYS_clock_settime, [0; 4]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [NO_FD, 0, 0, 0]),
    ("name_to_handle_at", libc::SYS_name_to_handle_at, [NO_FD, 0, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_PEEKDATA as u64, NO_PID, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [NO_PID, 0, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [NO_FD, 0, 0, 0]),
    ("process_madvise", libc::SYS_process_madvise, [NO_FD, 0, 0, 0]),
    ("kcmp", libc::SYS_kcmp, [NO_PID, NO_PID, 0, 0]),
    ("personality without address randomisation", libc::SYS_personality, [0x004_0000, 0, 0, 0]),
    ("TIOCSTI", libc::SYS_ioctl, [NO_FD, libc::TIOCSTI, 0, 0]),
    ("TIOCLINUX behind high bits", libc::SYS_ioctl, [NO_FD, 0x1_0000_0000 | libc::TIOCLINUX, 0, 0]),
    ("a packet socket", libc::SYS_socket, [17, 3, 0, 0]),
    ("a raw socket", libc::SYS_socket, [2, 3, 1, 0]),
    ("a raw socket that closes on exec", libc::SYS_socket, [10, 3 | 0x8_0000, 58, 0]),
    ("a crypto socket", libc::SYS_socket, [38, 5, 0, 0]),
    ("a vsock socket", libc::SYS_socket, [40, 1, 0, 0]),
    ("netlink for anything but routes", libc::SYS_socket, [16, 3, 15, 0]),
    ("SCTP", libc::SYS_socket, [2, 1, 132, 0]),
    ("another's limits", libc::SYS_prlimit64, [NO_PID, 7, 0, 0]),
    ("another's priority", libc::SYS_setpriority, [0, NO_PID, 0, 0]),
    ("a whole user's priority", libc::SYS_setpriority, [2, NO_PID, 0, 0]),
    ("another's CPUs", libc::SYS_sched_setaffinity, [NO_PID, 0, 0, 0]),
    ("another's scheduler", libc::SYS_sched_setscheduler, [NO_PID, 0, 0, 0]),
    ("another's io priority", libc::SYS_ioprio_set, [1, NO_PID, 0, 0]),
    ("a call by its x32 number", X32_GETPID, [0; 4]),
];

#[rustfmt::skip]
const ALLOWED: &[Call] = &[
    ("a local socket", libc::SYS_socket, [1, 2, 0, 0]),
    ("a TCP socket", libc::SYS_socket, [2, 1 | 0x8_0000, 6, 0]),
    ("a UDP socket", libc::SYS_socket, [2, 2 | 0x800, 0, 0]),
    ("netlink for routes", libc::SYS_socket, [16, 3 | 0x8_0000, 0, 0]),
    ("the own limits", libc::SYS_prlimit64, [0, 7, 0, 0]),
    ("the own CPUs", libc::SYS_sched_setaffinity, [0, 0, 0, 0]),
    ("the own priority", libc::SYS_setpriority, [0, 0, 5, 0]),
    ("asking for the personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
    ("unshare of what is no namespace", libc::SYS_unshare, [libc::CLONE_FS as u64, 0, 0, 0]),
    ("any other ioctl", libc::SYS_ioctl, [NO_FD, libc::TCGETS, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0, 0, 0, 0]),
    ("membarrier", libc::SYS_membarrier, [0; 4]),
    ("statx", libc::SYS_statx, [NO_FD, 0, 0, 0]),
    ("faccessat2", libc::SYS_faccessat2, [NO_FD, 0, 0, 0]),
    ("close_range", libc::SYS_close_range, [NO_FD, NO_FD, 0, 0]),
    ("copy_file_range", libc::SYS_copy_file_range, [NO_FD, 0, NO_FD, 0]),
    ("epoll_pwait2", libc::SYS_epoll_pwait2, [NO_FD, 0, 1, 0]),
    ("getrandom", libc::SYS_getrandom, [0; 4]),
    ("pidfd_open", libc::SYS_pidfd_open, [NO_PID, 0, 0, 0]),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, [0, 0, 1, 0]),
];

/// Runs `body` in a process of its own and returns how it ended. Between fork and exit it makes system calls only.
fn in_a_child(body: impl FnOnce() -> i32) -> WaitStatus {
    // SAFETY: the child allocates nothing and takes no lock.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            let code = body();
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => waitpid(child, None).expect("it ends"),
    }
}

fn lock() {
    if prctl::set_no_new_privs().and_then(|()| confine()).is_err() {
        // SAFETY: ends the process.
        unsafe { libc::_exit(100) }
    }
}

/// The errno of a call, 0 if it worked.
fn errno_of((_, number, [a, b, c, d]): &Call) -> i32 {
    // SAFETY: all pointers are null, so no memory of ours is at stake.
    let result = unsafe { libc::syscall(*number, *a, *b, *c, *d, 0, 0) };
    Errno::result(result).map_or_else(|errno| errno as i32, |_| 0)
}

/// The errno of one call in a fresh process, with or without the filters.
fn answer(call: &Call, filtered: bool) -> i32 {
    let status = in_a_child(|| {
        if filtered {
            lock();
        }
        errno_of(call)
    });
    match status {
        WaitStatus::Exited(_, code) => code,
        other => panic!("{}: {other:?}", call.0),
    }
}

#[test]
fn what_is_refused_is_refused_by_the_filter_and_nothing_else() {
    for call in REFUSED {
        assert_ne!(answer(call, false), EPERM, "{} answers EPERM even without a filter", call.0);
        assert_eq!(answer(call, true), EPERM, "{}", call.0);
    }
}

#[test]
fn what_programs_need_is_not_refused() {
    for call in ALLOWED {
        let errno = answer(call, true);
        assert!(errno != EPERM && errno != libc::ENOSYS, "{} answers {errno}", call.0);
        assert_eq!(errno, answer(call, false), "{}", call.0);
    }
}

#[test]
fn clone3_and_calls_of_the_future_are_unknown() {
    let clone3 = ("clone3", libc::SYS_clone3, [0; 4]);
    assert_eq!(answer(&clone3, false), libc::EINVAL);
    assert_eq!(answer(&clone3, true), libc::ENOSYS);
    assert_eq!(answer(&("the last of its range", 511, [0; 4]), true), libc::ENOSYS);
}

#[test]
fn a_call_by_the_i386_convention_ends_the_process() {
    let getpid = || {
        let mut eax = 20_u32;
        // SAFETY: i386's getpid takes nothing and changes nothing but eax.
        unsafe {
            asm!("int 0x80", inlateout("eax") eax, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        };
        eax
    };
    let status = in_a_child(|| {
        lock();
        getpid();
        0
    });
    assert!(matches!(status, WaitStatus::Signaled(..)), "{status:?}");
}

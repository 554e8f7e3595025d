//! Calls that no job needs, with arguments that do nothing where they get through.

#![expect(
    unsafe_code,
    reason = "raw system calls, and a child for each of those that would change the caller"
)]

use std::{ffi::CStr, io};

use libc::c_long;
use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

use crate::{checks::Checks, clues::Clues};

/// An argument that no call has a use for.
const NONSENSE: c_long = -1;

#[derive(Debug, Clone, Copy)]
enum Arg {
    Number(c_long),
    Text(&'static CStr),
}

use Arg::{Number as N, Text as T};

/// Name, number, arguments.
type Call = (&'static str, c_long, &'static [Arg]);

const USER_NAMESPACE: &[Call] = &[
    ("unshare(CLONE_NEWUSER)", libc::SYS_unshare, &[N(libc::CLONE_NEWUSER as c_long)]),
    (
        "clone(CLONE_NEWUSER)",
        libc::SYS_clone,
        &[N((libc::CLONE_NEWUSER | libc::SIGCHLD) as c_long), N(0), N(0), N(0), N(0)],
    ),
    ("clone3", libc::SYS_clone3, &[N(0), N(0)]),
];

const MOUNTING: &[Call] = &[
    ("mount", libc::SYS_mount, &[T(c"none"), T(c"/tmp"), T(c"no such file system"), N(0), N(0)]),
    ("umount2", libc::SYS_umount2, &[T(c"/nowhere"), N(0)]),
    ("pivot_root", libc::SYS_pivot_root, &[T(c"/nowhere"), T(c"/nowhere")]),
    ("setns", libc::SYS_setns, &[N(NONSENSE), N(0)]),
    ("unshare(CLONE_NEWNS)", libc::SYS_unshare, &[N(libc::CLONE_NEWNS as c_long)]),
    ("fsopen", libc::SYS_fsopen, &[T(c"no such file system"), N(0)]),
    ("fsmount", libc::SYS_fsmount, &[N(NONSENSE), N(0), N(0)]),
    ("move_mount", libc::SYS_move_mount, &[N(NONSENSE), T(c""), N(NONSENSE), T(c""), N(0)]),
    ("open_tree", libc::SYS_open_tree, &[N(NONSENSE), T(c"nowhere"), N(0)]),
    ("mount_setattr", libc::SYS_mount_setattr, &[N(NONSENSE), T(c"nowhere"), N(0), N(0), N(0)]),
];

const KEYRINGS: &[Call] = &[
    // KEYCTL_GET_KEYRING_ID of the session's keyring, which is not to be made.
    ("keyctl", libc::SYS_keyctl, &[N(0), N(-3), N(0)]),
    ("add_key", libc::SYS_add_key, &[T(c"no such type"), T(c"x"), N(0), N(0), N(-3)]),
    ("request_key", libc::SYS_request_key, &[T(c"no such type"), T(c"x"), N(0), N(0)]),
];

const KERNEL_DOORS: &[Call] = &[
    ("bpf", libc::SYS_bpf, &[N(9999), N(0), N(0)]),
    ("perf_event_open", libc::SYS_perf_event_open, &[N(0), N(0), N(-1), N(-1), N(0)]),
    ("userfaultfd", libc::SYS_userfaultfd, &[N(0xffff)]),
    ("io_uring_setup", libc::SYS_io_uring_setup, &[N(0), N(0)]),
    ("io_uring_enter", libc::SYS_io_uring_enter, &[N(NONSENSE), N(0), N(0), N(0), N(0)]),
    ("io_uring_register", libc::SYS_io_uring_register, &[N(NONSENSE), N(0), N(0), N(0)]),
    ("init_module", libc::SYS_init_module, &[N(0), N(0), N(0)]),
    ("finit_module", libc::SYS_finit_module, &[N(NONSENSE), N(0), N(0)]),
    ("delete_module", libc::SYS_delete_module, &[T(c"no such module"), N(0)]),
    ("kexec_load", libc::SYS_kexec_load, &[N(0), N(0), N(0), N(0xffff)]),
    // Without the magic numbers it does nothing.
    ("reboot", libc::SYS_reboot, &[N(0), N(0), N(0), N(0)]),
    ("swapon", libc::SYS_swapon, &[T(c"/nowhere"), N(0)]),
    ("swapoff", libc::SYS_swapoff, &[T(c"/nowhere")]),
    ("clock_settime", libc::SYS_clock_settime, &[N(0), N(0)]),
    ("settimeofday", libc::SYS_settimeofday, &[N(0), N(0)]),
    ("adjtimex", libc::SYS_adjtimex, &[N(0)]),
    ("acct", libc::SYS_acct, &[T(c"/nowhere")]),
    ("iopl", libc::SYS_iopl, &[N(9)]),
    ("quotactl", libc::SYS_quotactl, &[N(0), N(0), N(0), N(0)]),
];

const FILE_HANDLES: &[Call] = &[
    ("open_by_handle_at", libc::SYS_open_by_handle_at, &[N(NONSENSE), N(0), N(0)]),
    ("name_to_handle_at", libc::SYS_name_to_handle_at, &[N(NONSENSE), T(c"nowhere"), N(0), N(0), N(0)]),
];

const TRACING: &[Call] = &[
    ("ptrace", libc::SYS_ptrace, &[N(libc::PTRACE_TRACEME as c_long), N(0), N(0), N(0)]),
    ("process_vm_readv", libc::SYS_process_vm_readv, &[N(0), N(0), N(0), N(0), N(0), N(0)]),
    ("process_vm_writev", libc::SYS_process_vm_writev, &[N(0), N(0), N(0), N(0), N(0), N(0)]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, &[N(NONSENSE), N(0), N(0)]),
];

pub(crate) fn no_new_user_namespace(_: &Clues, checks: &mut Checks) {
    try_all(USER_NAMESPACE, checks);
}

pub(crate) fn no_mounting(_: &Clues, checks: &mut Checks) {
    try_all(MOUNTING, checks);
}

pub(crate) fn no_keyrings(_: &Clues, checks: &mut Checks) {
    try_all(KEYRINGS, checks);
}

pub(crate) fn no_kernel_doors(_: &Clues, checks: &mut Checks) {
    try_all(KERNEL_DOORS, checks);
}

pub(crate) fn no_file_handles(_: &Clues, checks: &mut Checks) {
    try_all(FILE_HANDLES, checks);
}

pub(crate) fn no_tracing(_: &Clues, checks: &mut Checks) {
    try_all(TRACING, checks);
}

fn try_all(calls: &[Call], checks: &mut Checks) {
    for (name, number, args) in calls {
        match in_child(|| call(*number, args)) {
            Ok(Answer::Returned(got)) => checks.refused(name, got),
            // A filter may end who calls instead of answering.
            Ok(Answer::Killed) => checks.holds(true, format!("{name}: killed")),
            Err(error) => checks.unknown(format!("{name}: no child to try it in: {error}")),
        }
    }
}

fn call(number: c_long, args: &[Arg]) -> Result<(), Errno> {
    let mut words = [0; 6];
    for (word, arg) in words.iter_mut().zip(args) {
        *word = match arg {
            Arg::Number(number) => *number,
            Arg::Text(text) => text.as_ptr() as c_long,
        };
    }
    // SAFETY: texts are static and end with a zero; where memory is written to, the pointer is null and the call fails.
    let got = unsafe { libc::syscall(number, words[0], words[1], words[2], words[3], words[4], words[5]) };
    Errno::result(got).map(drop)
}

/// What became of a call.
pub(crate) enum Answer {
    Returned(Result<(), Errno>),
    Killed,
}

/// Does something in a child, because it would change the caller, or end it.
pub(crate) fn in_child(act: impl FnOnce() -> Result<(), Errno>) -> io::Result<Answer> {
    // SAFETY: this program has one thread, so the child may do all that its parent may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = match act() {
                Ok(()) => 0,
                // Every number fits: they end at 133.
                Err(errno) => errno as i32,
            };
            // SAFETY: it ends this process and does nothing else.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Answer::Returned(Ok(())),
            WaitStatus::Exited(_, code) => Answer::Returned(Err(Errno::from_raw(code))),
            _ => Answer::Killed,
        }),
    }
}

//! The actor's steps: what each is called, what its failure means, and the calls themselves.
//!
//! The functions run in a forked copy of a process that may have had threads: none of them may allocate.

use std::ffi::CStr;
use std::io::{PipeWriter, pipe};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chdir, mkdir, pivot_root, setresgid, setresuid, write};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};

use super::super::{Finding, State};
use super::{Ended, NOT_REACHED, child, errno, next_report, raw, report};

/// One step, and what its outcome means.
pub(super) struct Step {
    id: &'static str,
    title: &'static str,
    good: &'static str,
    fix: &'static str,
    /// What is lost where it fails, if sandboxes can be made all the same.
    lost: Option<&'static str>,
}

/// In the order of [`perform`].
pub(super) const STEPS: [Step; 6] = [
    Step {
        id: "namespaces",
        title: "all namespaces",
        good: "mount, pid, net, ipc, uts, cgroup and time",
        fix: "no user.max_*_namespaces may be 0; the kernel must be 5.6 or later; or leave the container",
        lost: None,
    },
    Step {
        id: "no-nested-namespaces",
        title: "nested ones",
        good: "can be forbidden inside",
        fix: "leave the container, or mount its /proc/sys read-write",
        lost: None,
    },
    Step {
        id: "tmpfs",
        title: "tmpfs inside",
        good: "mounted in a user namespace",
        fix: "boot a kernel with CONFIG_TMPFS",
        lost: None,
    },
    Step {
        id: "procfs",
        title: "a fresh /proc inside",
        good: "mounted in a user namespace",
        fix: "leave the container, or have its /proc unmasked (docker: --security-opt systempaths=unconfined)",
        lost: None,
    },
    Step {
        id: "overlayfs",
        title: "overlayfs inside",
        good: "mounted in a user namespace, over an id-mapped layer",
        fix: "modprobe overlay; the kernel must be 5.19 or later",
        lost: Some("no images with root = \"writable\""),
    },
    Step {
        id: "pivot-root",
        title: "pivot_root",
        good: "works",
        fix: "boot with a real root filesystem, not from an initramfs",
        lost: None,
    },
];

impl Step {
    pub(super) fn is_needed(&self) -> bool {
        self.lost.is_none()
    }

    pub(super) fn finding(&self, outcome: Option<&Result<(), Errno>>) -> Finding {
        let finding = |state, detail: String| Finding::new(self.id, self.title, state, detail);
        match (outcome, self.lost) {
            (Some(Ok(())), _) => finding(State::Ok, self.good.to_owned()),
            (Some(Err(error)), None) => finding(State::Missing, error.desc().to_owned()).mended_by(self.fix),
            (Some(Err(error)), Some(lost)) => {
                finding(State::Degraded, format!("{lost}: {}", error.desc())).mended_by(self.fix)
            }
            (None, _) => finding(State::Unknown, NOT_REACHED.to_owned()),
        }
    }
}

/// The actor's whole life.
pub(super) fn perform(tells: &PipeWriter, userns: BorrowedFd<'_>, layer: Option<BorrowedFd<'_>>) {
    let told = |outcome| {
        report(tells, outcome);
        outcome
    };
    // Stops at the first failure of a need: what comes after it could only fail for the same reason.
    let _ = (|| {
        told(enter(userns))?;
        told(forbid_nested())?;
        told(tmpfs())?;
        told(fresh_proc())?;
        let _ = told(overlay(layer));
        told(pivot())
    })();
}

fn enter(userns: BorrowedFd<'_>) -> Result<(), Errno> {
    setns(userns, CloneFlags::CLONE_NEWUSER)?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP
            // The one that nix does not name.
            | CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
    )?;
    mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&CStr>)
}

/// The limit is that of the user namespace which was entered, and ends with it.
fn forbid_nested() -> Result<(), Errno> {
    let file = open(c"/proc/sys/user/max_user_namespaces", OFlag::O_WRONLY, Mode::empty())?;
    write(file, b"0").map(drop)
}

/// Covers `/tmp`, in this mount namespace only: the one directory that every host has and nothing here needs.
fn tmpfs() -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(c"tmpfs"), c"/tmp", Some(c"tmpfs"), flags, Some(c"size=64k,mode=700"))?;
    for directory in [c"/tmp/lower", c"/tmp/upper", c"/tmp/work", c"/tmp/root", c"/tmp/proc"] {
        mkdir(directory, Mode::S_IRWXU)?;
    }
    Ok(())
}

/// A process namespace has its first process only after a fork, and `/proc` is mounted by one inside.
fn fresh_proc() -> Result<(), Errno> {
    let (mut told, tells) = pipe().map_err(|error| errno(&error))?;
    let mounter = child(|| {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        report(&tells, mount(Some(c"proc"), c"/tmp/proc", Some(c"proc"), flags, None::<&CStr>));
    })?;
    let _mounter = Ended(mounter);
    drop(tells);
    next_report(&mut told)
}

fn overlay(layer: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    if let Some(layer) = layer {
        move_mount(layer, c"", CWD, c"/tmp/lower", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(raw)?;
    }
    let options = c"lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work";
    mount(Some(c"overlay"), c"/tmp/root", Some(c"overlay"), MsFlags::empty(), Some(options))
}

fn pivot() -> Result<(), Errno> {
    chdir(c"/tmp")?;
    pivot_root(c".", c".")
}

//! The file systems of a sandbox, each made detached and put in its place.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use agent::layout::{MASKED, READ_ONLY, SCRATCH};
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags},
};

use super::{
    kernel,
    plan::{Failed, Plan, Step},
};

/// A directory of the host to mount on.
pub(crate) fn place(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Puts a detached mount on `place`, relative to `root`.
pub(crate) fn attach(mount: &OwnedFd, root: &OwnedFd, place: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", root, place, flags)?)
}

/// Puts the directories of the one throw-away disk where the job may write.
///
/// The disk itself stays attached outside the new root and goes with the host's root: before Linux 6.15 a
/// clone can be taken of an attached mount only.
pub(crate) fn attach_scratch(scratch: &OwnedFd, root: &OwnedFd) -> Result<(), Failed> {
    for (name, target, _, _) in SCRATCH {
        let part = clone_tree(scratch, name).step("open a directory of the throw-away disk")?;
        attach(&part, root, target).step("attach a directory of the throw-away disk")?;
    }
    Ok(())
}

/// Hides what a sandbox must not read in /proc and locks what it must not write.
pub(crate) fn mask_proc(root: &OwnedFd) -> Result<(), Failed> {
    for name in MASKED {
        let place = format!("proc/{name}");
        // An empty directory of the image, or the null device: both are there and say nothing.
        let cover = match kind(root, &place) {
            None => continue,
            Some(Kind::Directory) => "sys",
            Some(Kind::File) => "dev/null",
        };
        let cover = clone_tree(root, cover).step("open a cover for /proc")?;
        kernel::set_mount_attributes(&cover, libc::MOUNT_ATTR_RDONLY, None).step("lock a cover for /proc")?;
        attach(&cover, root, &place).step("mask a part of /proc")?;
    }
    let locked =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    for name in READ_ONLY {
        let place = format!("proc/{name}");
        if kind(root, &place).is_none() {
            continue;
        }
        let part = clone_tree(root, &place).step("open a part of /proc")?;
        kernel::set_mount_attributes(&part, locked, None).step("lock a part of /proc")?;
        attach(&part, root, &place).step("make a part of /proc read-only")?;
    }
    Ok(())
}

enum Kind {
    Directory,
    File,
}

fn kind(root: &OwnedFd, place: &str) -> Option<Kind> {
    let stat = rustix::fs::statat(root, place, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
    Some(if directory { Kind::Directory } else { Kind::File })
}

/// A copy of the mount at a place, detached.
pub(crate) fn clone_tree(at: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(at, path, flags)?)
}

/// The throw-away disk: one tmpfs for everything that the job may write, so that one size bounds it all.
///
/// `root` is the sandbox's uid 0 as the caller sees it.
pub(crate) fn scratch(plan: &Plan, root: u32) -> Result<OwnedFd, Failed> {
    let disk = disk(plan, root).step("make the throw-away disk")?;
    for (name, _, mode, jobs) in SCRATCH {
        let (uid, gid) = if jobs { (plan.job_uid, plan.job_gid) } else { (0, 0) };
        directory(&disk, name, mode, root + uid, root + gid)
            .step("make a directory of the throw-away disk")?;
    }
    Ok(disk)
}

/// A root whose changes go to the throw-away disk. Gives the root and the disk.
///
/// It is made by the host's root, because tmpfs learnt the extended attributes that an overlay inside a user
/// namespace needs only in Linux 6.6.
pub(crate) fn writable_root(plan: &Plan, image: &OwnedFd) -> Result<(OwnedFd, OwnedFd), Failed> {
    let disk = scratch(plan, plan.id_base)?;
    for name in ["upper", "work"] {
        directory(&disk, name, 0o755, plan.id_base, plan.id_base).step("make the root's upper layer")?;
    }
    overlay(plan, image, &disk).step("make the writable root")
}

fn overlay(plan: &Plan, image: &OwnedFd, disk: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    // Overlay takes its layers by path, so both are attached in the spawner's mount namespace for a moment.
    let lower = Attached::on(image, &plan.root_point)?;
    let upper = Attached::on(disk, &plan.disk_point)?;
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "lowerdir", lower.0)?;
    rustix::mount::fsconfig_set_string(&fs, "upperdir", format!("{}/upper", upper.0))?;
    rustix::mount::fsconfig_set_string(&fs, "workdir", format!("{}/work", upper.0))?;
    rustix::mount::fsconfig_create(&fs)?;
    // A mount that was attached once cannot be attached again elsewhere, a clone of it can.
    let disk = clone_tree(CWD, upper.0)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok((rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?, disk))
}

/// A mount that is attached for as long as this lives.
struct Attached<'a>(&'a str);

impl<'a> Attached<'a> {
    fn on(mount: &OwnedFd, place: &'a str) -> io::Result<Self> {
        rustix::mount::move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(Self(place))
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // Only this process sees the place; a mount that stays would be covered by the next.
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn disk(plan: &Plan, root: u32) -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let root = root.to_string();
    for (key, value) in [
        ("size", plan.disk.to_string().as_str()),
        ("nr_inodes", plan.inodes.to_string().as_str()),
        ("mode", "0755"),
        ("uid", &root),
        ("gid", &root),
    ] {
        rustix::mount::fsconfig_set_string(&fs, key, value)?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn directory(at: &OwnedFd, name: &str, mode: u32, uid: u32, gid: u32) -> io::Result<()> {
    mkdirat(at, name, Mode::from_raw_mode(mode))?;
    // The umask that mayfly was started with must not narrow a world-writable /tmp.
    rustix::fs::chmodat(at, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Processes of this sandbox only, and to each user only his own.
pub(crate) fn proc() -> Result<OwnedFd, Failed> {
    let made = || -> io::Result<OwnedFd> {
        let fs = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&fs, "hidepid", "invisible")?;
        rustix::mount::fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    made().step("make /proc")
}

/// Terminals of this sandbox only.
pub(crate) fn devpts() -> Result<OwnedFd, Failed> {
    let made = || -> io::Result<OwnedFd> {
        let fs = rustix::mount::fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&fs, "ptmxmode", "0666")?;
        rustix::mount::fsconfig_set_string(&fs, "mode", "0620")?;
        rustix::mount::fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    made().step("make /dev/pts")
}

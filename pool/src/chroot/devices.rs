//! The template of every sandbox's `/dev`: made once by the spawner, cloned read-only for each sandbox.

use std::{io, os::fd::OwnedFd};

use agent::layout::{LINKS, NODES};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mkdirat, mknodat, symlinkat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags},
};

/// Mount points of what each sandbox gets of its own.
pub(super) const PTS: &str = "pts";
pub(super) const SHM: &str = "shm";

/// Makes the template and attaches it in the spawner's own mount namespace.
///
/// It lies over `/dev/shm`, a directory that every Linux host has and the spawner does not use: before Linux
/// 6.15 a tree can only be cloned from a mount that is attached somewhere.
pub(super) fn mount_template() -> io::Result<OwnedFd> {
    let everyone = Mode::from_raw_mode(0o666);
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "size", "64k")?;
    rustix::mount::fsconfig_set_string(&fs, "mode", "0755")?;
    rustix::mount::fsconfig_create(&fs)?;
    let dev = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    for (name, major, minor) in NODES {
        mknodat(&dev, name, FileType::CharacterDevice, everyone, makedev(major, minor))?;
        // mknod is subject to the umask that mayfly was started with.
        rustix::fs::chmodat(&dev, name, everyone, rustix::fs::AtFlags::empty())?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name)?;
    }
    for directory in [PTS, SHM] {
        mkdirat(&dev, directory, Mode::from_raw_mode(0o755))?;
    }
    rustix::mount::move_mount(&dev, "", CWD, "/dev/shm", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(dev)
}

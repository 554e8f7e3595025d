//! The root of the sandbox inside the machine: the same as on the tiers that share the host's kernel.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::Path;

use agent::layout::{LINKS, MASKED, NODES, READ_ONLY, SCRATCH};
use agent::message::Bounds;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{chdir, chroot};

use super::life::{Name, Names};
use super::{Owner, drivers};
use crate::failure::{At, Failure};

const IMAGE: &str = "/image";
const SCRATCH_DISK: &str = "/scratch";
const NAMES: &str = "/names";
const ROOT: &str = "/root";

/// Until the host says what the job may have.
const SMALLEST: &str = "size=64k,nr_inodes=64,mode=0755";

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const INERT: MsFlags = SAFE.union(MsFlags::MS_NOEXEC);

/// Makes the root and goes there for good.
pub(super) fn enter(owner: Owner) -> Result<Names, Failure> {
    // Modes of files are said here, each by itself.
    umask(Mode::empty());
    // 1. The image, and the one disk that bounds all that the job writes.
    drivers::await_disk()?;
    fresh(drivers::DISK, IMAGE, "erofs", SAFE | MsFlags::MS_RDONLY, "")?;
    fresh("scratch", SCRATCH_DISK, "tmpfs", SAFE, SMALLEST)?;
    for (name, _, mode, jobs) in SCRATCH {
        let path = format!("{SCRATCH_DISK}/{name}");
        directory_of(&path, mode)?;
        let (uid, gid) = if jobs { (owner.identity.uid, owner.identity.gid) } else { (0, 0) };
        chown(&path, Some(uid), Some(gid))
            .map_err(|error| Failure::of_io("own the throw-away disk", &error))?;
    }
    if owner.writable_root {
        for name in ["upper", "work"] {
            directory(&format!("{SCRATCH_DISK}/{name}"))?;
        }
        let layers = format!("lowerdir={IMAGE},upperdir={SCRATCH_DISK}/upper,workdir={SCRATCH_DISK}/work");
        fresh("root", ROOT, "overlay", SAFE, &layers)?;
    } else {
        directory(ROOT)?;
        bind(IMAGE, ROOT)?;
    }

    // 2. What lies on it.
    devices()?;
    for (name, place, _, _) in SCRATCH {
        bind(&format!("{SCRATCH_DISK}/{name}"), &format!("{ROOT}/{place}"))?;
    }
    proc()?;
    let names = names()?;

    // 3. Nothing else stays within reach: not the nodes of this machine's devices, not the drivers.
    umount2("/dev", MntFlags::MNT_DETACH).at("let go of the first /dev")?;
    for leftover in ["/init", "/modules", "/dev"] {
        let path = Path::new(leftover);
        let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        gone.map_err(|error| Failure::of_io("free the memory of the first root", &error))?;
    }

    // 4. There is no way to pivot away from a kernel's first root: it is covered.
    chdir(ROOT).at("enter the new root")?;
    let nothing = None::<&str>;
    mount(Some(ROOT), "/", nothing, MsFlags::MS_MOVE, nothing).at("cover the first root")?;
    chroot(".").at("make the new root the root")?;
    chdir("/").at("enter the root directory")?;
    Ok(names)
}

/// Gives the throw-away disk the size that the job may have.
pub(super) fn resize(bounds: &Bounds) -> Result<(), Failure> {
    let size = format!("size={},nr_inodes={}", bounds.disk, bounds.inodes);
    let nothing = None::<&str>;
    mount(nothing, "/tmp", nothing, MsFlags::MS_REMOUNT | SAFE, Some(size.as_str()))
        .at("give the throw-away disk its size")
}

fn devices() -> Result<(), Failure> {
    let dev = format!("{ROOT}/dev");
    attach("dev", &dev, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "size=64k,mode=0755")?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_bits_retain(0o666);
        let number = makedev(u64::from(major), u64::from(minor));
        mknod(format!("{dev}/{name}").as_str(), SFlag::S_IFCHR, mode, number).at("make a device")?;
    }
    for (name, target) in LINKS {
        symlink(target, format!("{dev}/{name}"))
            .map_err(|error| Failure::of_io("make a link in /dev", &error))?;
    }
    directory(&format!("{dev}/pts"))?;
    directory(&format!("{dev}/shm"))?;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    attach("pts", &format!("{dev}/pts"), "devpts", terminals, "ptmxmode=0666,mode=0620,newinstance")?;
    remount(&dev, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)
}

fn proc() -> Result<(), Failure> {
    let proc = format!("{ROOT}/proc");
    attach("proc", &proc, "proc", INERT, "hidepid=invisible")?;
    fs::write(format!("{proc}/sys/user/max_user_namespaces"), "0")
        .map_err(|error| Failure::of_io("forbid user namespaces", &error))?;
    // The job's limit is its cgroup's, as everywhere: not the size of a machine that it does not know it is in.
    fs::write(format!("{proc}/sys/vm/overcommit_memory"), "1")
        .map_err(|error| Failure::of_io("let programs ask for memory", &error))?;
    for name in MASKED {
        let place = format!("{proc}/{name}");
        let path = Path::new(&place);
        // An empty directory of the image, or the null device: both are there and say nothing.
        if path.is_dir() {
            bind(&format!("{IMAGE}/sys"), &place)?;
        } else if path.exists() {
            bind(&format!("{ROOT}/dev/null"), &place)?;
            remount(&place, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
        }
    }
    for name in READ_ONLY {
        let place = format!("{proc}/{name}");
        if Path::new(&place).exists() {
            bind(&place, &place)?;
            remount(&place, INERT)?;
        }
    }
    Ok(())
}

/// Puts files that can be written anew over those that the kernel and the image would name the machine by.
fn names() -> Result<Names, Failure> {
    fresh("names", NAMES, "tmpfs", INERT, "size=64k,nr_inodes=8,mode=0755")?;
    let file = |name: &str, over: &str| -> Result<Name, Failure> {
        let path = format!("{NAMES}/{name}");
        let of_io = |error: std::io::Error| Failure::of_io("make a file for a name", &error);
        let file = File::create_new(&path).map_err(of_io)?;
        file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(of_io)?;
        let place = format!("{ROOT}{over}");
        if Path::new(&place).is_file() {
            bind(&path, &place)?;
            remount(&place, INERT)?;
        }
        Ok(Name::of(file))
    };
    Ok(Names {
        boot_id: file("boot-id", "/proc/sys/kernel/random/boot_id")?,
        machine_id: file("machine-id", "/etc/machine-id")?,
    })
}

/// Mounts a file system on a directory that is made for it.
fn fresh(source: &str, place: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), Failure> {
    directory(place)?;
    attach(source, place, kind, flags, options)
}

fn attach(source: &str, place: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), Failure> {
    mount(Some(source), place, Some(kind), flags, Some(options)).at(&format!("mount {kind} on {place}"))
}

fn bind(from: &str, to: &str) -> Result<(), Failure> {
    let nothing = None::<&str>;
    mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).at(&format!("bind {from} to {to}"))
}

/// Makes a mount read-only.
fn remount(place: &str, flags: MsFlags) -> Result<(), Failure> {
    let nothing = None::<&str>;
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(nothing, place, nothing, flags, nothing).at(&format!("lock {place}"))
}

/// A directory for the machine's own use.
pub(super) fn directory(path: &str) -> Result<(), Failure> {
    directory_of(path, 0o755)
}

fn directory_of(path: &str, mode: u32) -> Result<(), Failure> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.raw_os_error() != Some(Errno::EEXIST as i32) => {
            Err(Failure::of_io(&format!("make {path}"), &error))
        }
        _ => Ok(()),
    }
}

//! Where QEMU runs: a process of its own user with nothing of the host but its program, in its own cgroup and namespaces.
//!
//! This file runs in the spawner. What a guest that breaks out of its QEMU finds is an empty root with the program and its
//! libraries, no network, no other process, no capability, and the system calls that QEMU's own filter leaves.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::symlink,
    },
};

use nix::{
    sys::{
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Gid, Uid, setresgid, setresuid},
};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    thread::CapabilitySet,
};
use serde::{Deserialize, Serialize};

use crate::{
    chroot::{
        kernel::{self, Cloned},
        mounts,
        plan::{Answer, Entries, Failed, Outcome, Step},
        setup,
        spawner::send,
    },
    nspawn::{hear, tale},
};

const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// What QEMU's program and its libraries may lie in. Where one is a link, it stays one.
const SHOWN: [&str; 5] = ["usr", "bin", "lib", "lib32", "lib64"];

/// Name, major and minor number.
const NODES: [(&str, u32, u32); 3] = [("null", 1, 3), ("random", 1, 8), ("urandom", 1, 9)];
const KVM: (&str, u32, u32) = ("kvm", 10, 232);

/// The first number of the descriptors that QEMU is given; they follow each other.
const FIRST: i32 = super::super::machine::AGENT_FD;

/// How to start QEMU.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) program: String,
    /// Behind the program's name.
    pub(crate) args: Vec<String>,
    /// Its user and group, which nobody else on the host has.
    pub(crate) uid: u32,
    /// Whether it finds `/dev/kvm`.
    pub(crate) kvm: bool,
    /// How many of the descriptors it keeps: where it complains, then those from [`FIRST`] on in their order.
    pub(crate) descriptors: u8,
    pub(crate) entries: Entries,
    /// The empty directory on which the new root is put before it becomes the root.
    pub(crate) root_point: String,
}

/// Runs in the spawner.
pub(crate) fn launch(launch: &Launch, mut fds: Vec<OwnedFd>) -> Outcome {
    let kept = usize::from(launch.descriptors);
    if fds.len() <= kept {
        return Err(Failed { step: "count the descriptors of a machine", errno: libc::EINVAL }.into());
    }
    let mut tasks = fds.split_off(kept);
    let directory = matches!(launch.entries, Entries::Directories).then(|| tasks.pop()).flatten();
    let (ours, theirs) = tale()?;
    let cloned = kernel::clone_into(NAMESPACES as u64, directory.as_ref().map(AsFd::as_fd));
    match cloned.step("clone into a machine's namespaces")? {
        Cloned::Child => {
            drop(ours);
            let Err(failed) = become_qemu(launch, fds, tasks, theirs.as_fd());
            let _ = send(theirs.as_fd(), &failed.into(), &[]);
            setup::leave()
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let told = hear(ours.as_fd(), "start a machine's process");
            if told.is_err() {
                // It may hang in what it does; SIGKILL through the pidfd cannot hit another process.
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
            told.map(|_| vec![pidfd])
        }
    }
}

fn become_qemu(
    launch: &Launch,
    fds: Vec<OwnedFd>,
    tasks: Vec<OwnedFd>,
    tells: BorrowedFd<'_>,
) -> Result<Infallible, Failed> {
    // 1. Into the job's cgroups, so that all that the guest does is charged to it.
    for tasks in tasks {
        fs::File::from(tasks).write_all(b"0").step("enter a machine's cgroups")?;
    }

    // 2. A root in which there is nothing but the program.
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step("make mounts private")?;
    change_root(launch)?;

    // 3. The descriptors, under their numbers and no others, and silence.
    let program = c_string(&launch.program)?;
    let mut argv = vec![program.clone()];
    for arg in &launch.args {
        argv.push(c_string(arg)?);
    }
    let tells = lay_out(fds, tells)?;

    // 4. Nobody, with no way back.
    for resource in [Resource::RLIMIT_CORE, Resource::RLIMIT_MSGQUEUE] {
        setrlimit(resource, 0, 0).step("limit a machine's process")?;
    }
    drop_bounding_set()?;
    let (uid, gid) = (Uid::from_raw(launch.uid), Gid::from_raw(launch.uid));
    setresgid(gid, gid, gid).step("become a machine's group")?;
    setresuid(uid, uid, uid).step("become a machine's user")?;
    nix::sys::prctl::set_no_new_privs().step("set no_new_privs")?;
    kernel::heed_children().step("heed children again")?;
    // A change of ids clears it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).step("die with the spawner")?;

    // 5. What fails from here on shows on the monitor, which is never opened.
    send(tells.as_fd(), &Answer::Done, &[]).step("report")?;
    nix::unistd::execve(&program, &argv, &[c"HOME=/", c"LC_ALL=C"]).step("start QEMU")
}

fn c_string(text: &str) -> Result<CString, Failed> {
    CString::new(text).step("read a machine's command line")
}

fn change_root(launch: &Launch) -> Result<(), Failed> {
    let point = launch.root_point.as_str();
    let flags = MountFlags::NOSUID;
    rustix::mount::mount("root", point, "tmpfs", flags, c"size=64k,nr_inodes=64,mode=0755")
        .step("make a machine's root")?;
    show_program(point).step("show a machine its program")?;
    devices(point, launch.kvm).step("make a machine's devices")?;
    rustix::process::chdir(point).step("enter a machine's root")?;
    rustix::process::pivot_root(".", ".").step("pivot to a machine's root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("let go of the host's root")?;
    rustix::process::chdir("/").step("enter the root directory")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Its memory is opened by way of its own descriptors.
    rustix::mount::mount("proc", "/proc", "proc", flags, c"hidepid=invisible")
        .step("mount a machine's /proc")?;
    rustix::mount::mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, c"")
        .step("lock a machine's root")
}

fn show_program(root: &str) -> io::Result<()> {
    for name in SHOWN {
        let (host, place) = (format!("/{name}"), format!("{root}/{name}"));
        match fs::symlink_metadata(&host) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(meta) if meta.is_symlink() => symlink(fs::read_link(&host)?, &place)?,
            meta => {
                meta?;
                fs::create_dir(&place)?;
                let tree = mounts::clone_tree(CWD, &host)?;
                let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
                kernel::set_mount_attributes(&tree, attributes, None)?;
                mounts::attach(&tree, &mounts::place(&place)?, "")?;
            }
        }
    }
    fs::create_dir(format!("{root}/proc"))
}

fn devices(root: &str, kvm: bool) -> io::Result<()> {
    let dev = format!("{root}/dev");
    fs::create_dir(&dev)?;
    for (name, major, minor) in NODES.into_iter().chain(kvm.then_some(KVM)) {
        let (path, everyone) = (format!("{dev}/{name}"), Mode::from_raw_mode(0o666));
        mknodat(CWD, path.as_str(), FileType::CharacterDevice, everyone, makedev(major, minor))?;
        // mknod is subject to the umask that mayfly was started with.
        rustix::fs::chmod(path.as_str(), everyone)?;
    }
    Ok(())
}

/// Leaves open the standard descriptors, which lead nowhere, those for QEMU, and the one to report by until QEMU begins.
fn lay_out(fds: Vec<OwnedFd>, tells: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    let high = FIRST + fds.len() as i32 + 16;
    // Out of the way first: a source may stand where another one's place is.
    let raise = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, high).step("raise a descriptor");
    let tells = raise(tells)?;
    let raised = fds.iter().map(|fd| raise(fd.as_fd())).collect::<Result<Vec<_>, _>>()?;
    let silence = fs::File::options().read(true).write(true).open("/dev/null").step("open /dev/null")?;
    nix::unistd::dup2_stdin(&silence).step("place stdin")?;
    nix::unistd::dup2_stdout(&silence).step("place stdout")?;
    drop(fds);
    let mut raised = raised.into_iter();
    let complaints = raised.next().ok_or(Failed { step: "place stderr", errno: libc::EBADF })?;
    nix::unistd::dup2_stderr(&complaints).step("place stderr")?;
    for (fd, number) in raised.zip(FIRST..) {
        kernel::place(&fd, number).step("place a descriptor")?;
    }
    // All others of this process close when QEMU begins.
    debug_assert!(tells.as_raw_fd() >= high);
    Ok(tells)
}

fn drop_bounding_set() -> Result<(), Failed> {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Past the kernel's last capability.
            Err(rustix::io::Errno::INVAL) if bit > 0 => break,
            Err(error) => return Err(error).step("empty the bounding set"),
        }
    }
    Ok(())
}

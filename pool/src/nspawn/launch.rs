//! How systemd-nspawn is started: in a clone of the spawner, with cgroups, clocks and mounts of its own.
//!
//! It leaves much on a host that ends it by force: lock files, directories to hand mounts on, cgroups. All of that
//! goes to file systems that end with this process, and to cgroups that the sandbox owns.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
};

use nix::sys::{
    signal::Signal,
    socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use rustix::{
    fs::CWD,
    mount::{MountFlags, MountPropagationFlags},
};

use super::command::ROOT;
use crate::chroot::{
    kernel::{self, Cloned},
    mounts,
    plan::{Answer, Entries, Failed, Launch, MAX_ANSWER, Outcome, Step},
    setup,
    spawner::{receive_with_fds, send},
};

/// Where systemd-nspawn says that its container runs.
const NOTIFY: &str = "/run/notify";

/// No system call of these takes a second. Whoever waits here keeps every other sandbox waiting.
const PATIENCE_SECONDS: i64 = 10;

/// What the process is born with beside its orders.
struct Descriptors {
    stdio: [OwnedFd; 3],
    /// cgroup v1: `tasks` files.
    tasks: Vec<OwnedFd>,
    tells: OwnedFd,
}

/// Runs in the spawner.
pub(crate) fn launch(launch: &Launch, fds: Vec<OwnedFd>) -> Outcome {
    let mut fds = fds.into_iter();
    let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
        return Err(Failed { step: "count the descriptors of systemd-nspawn", errno: libc::EINVAL }.into());
    };
    let mut tasks: Vec<_> = fds.collect();
    let directory = matches!(launch.entry, Entries::Directories).then(|| tasks.pop()).flatten();
    let stdio = [stdin, stdout, stderr];
    let (ours, theirs) = tale()?;
    let cloned = kernel::clone_into(libc::CLONE_NEWNS as u64, directory.as_ref().map(AsFd::as_fd));
    match cloned.step("clone into new mounts")? {
        Cloned::Child => {
            drop(ours);
            become_nspawn(launch, Descriptors { stdio, tasks, tells: theirs })
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let told = hear(ours.as_fd(), "start systemd-nspawn");
            if told.is_err() {
                // It may hang in what it does; SIGKILL through the pidfd cannot hit another process.
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
            let mut fds = told?;
            fds.insert(0, pidfd);
            Ok(fds)
        }
    }
}

/// On which a clone says how it went.
pub(crate) fn tale() -> Result<(OwnedFd, OwnedFd), Failed> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .step("make the socket to a clone")?;
    setsockopt(&ours, ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))
        .step("limit the wait for a clone")?;
    Ok((ours, theirs))
}

/// A clone's one word. One that ended without a word failed in `step`.
pub(crate) fn hear(from: BorrowedFd<'_>, step: &'static str) -> Outcome {
    let mut buffer = [0; MAX_ANSWER];
    let (length, fds) = receive_with_fds(from, &mut buffer).step(step)?;
    match postcard::from_bytes(&buffer[..length]) {
        Ok(Answer::Done) => Ok(fds),
        Ok(failed) => Err(failed),
        Err(_) => Err(Failed { step, errno: libc::ECHILD }.into()),
    }
}

fn become_nspawn(launch: &Launch, descriptors: Descriptors) -> ! {
    let Ok(mut stderr) = descriptors.stdio[2].try_clone().map(fs::File::from) else { setup::leave() };
    let Ok(tells) = descriptors.tells.try_clone() else { setup::leave() };
    let Err(failed) = run(launch, descriptors);
    // Whoever reads either is told; once `run` has reported, only stderr is read.
    let _ = writeln!(stderr, "cannot {}: {}", failed.step, io::Error::from_raw_os_error(failed.errno));
    let _ = send(tells.as_fd(), &failed.into(), &[]);
    setup::leave()
}

fn run(launch: &Launch, descriptors: Descriptors) -> Result<Infallible, Failed> {
    // 1. Into the agent's cgroups: systemd-nspawn, and the agent with it.
    for tasks in descriptors.tasks {
        fs::File::from(tasks).write_all(b"0").step("enter the agent's cgroups")?;
    }

    // 2. systemd-nspawn knows no time namespace, and inherits this one.
    setup::start_clocks_anew()?;

    // 3. What it may find of the host's files, and where it may leave its own.
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step("make mounts private")?;
    prepare_mounts(launch)?;

    // 4. It tells when the container runs.
    let notify = UnixDatagram::bind(NOTIFY).step("make the socket for its notice")?;
    send(descriptors.tells.as_fd(), &Answer::Done, &[notify.into()]).step("report")?;

    // 5. Nothing of the spawner's but its orders and three pipes.
    let [stdin, stdout, stderr] = descriptors.stdio;
    nix::unistd::dup2_stdin(&stdin).step("place stdin")?;
    nix::unistd::dup2_stdout(&stdout).step("place stdout")?;
    nix::unistd::dup2_stderr(&stderr).step("place stderr")?;
    kernel::heed_children().step("heed children again")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).step("die with the spawner")?;
    exec(launch)
}

fn prepare_mounts(launch: &Launch) -> Result<(), Failed> {
    // Taken before anything is covered: either may lie below what is.
    let image = mounts::clone_tree(CWD, launch.rootfs.as_str()).step("open the image")?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    kernel::set_mount_attributes(&image, attributes, None).step("lock the image")?;
    let tree = launch.legacy_tree.as_deref().map(|tree| mounts::clone_tree(CWD, tree)).transpose();
    let tree = tree.step("open the cgroup for its tree")?;

    cover("/run").step("cover /run")?;
    place(&image, ROOT).step("attach the image")?;
    if let Some(tree) = tree {
        // It would make cgroups at the top of whatever it finds here.
        cover("/sys/fs/cgroup").step("cover /sys/fs/cgroup")?;
        place(&tree, "/sys/fs/cgroup/systemd").step("attach the cgroup for its tree")?;
    }
    Ok(())
}

/// Hides a directory under a small empty one.
fn cover(path: &str) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("tmpfs", path, "tmpfs", flags, c"size=1m,nr_inodes=256,mode=0755")?)
}

fn place(mount: &OwnedFd, path: &str) -> io::Result<()> {
    fs::create_dir(path)?;
    let place = mounts::place(path)?;
    mounts::attach(mount, &place, "")
}

fn exec(launch: &Launch) -> Result<Infallible, Failed> {
    let c_string = |text: &str| CString::new(text).step("read its command line");
    let program = c_string(&launch.program)?;
    let mut argv = vec![program.clone()];
    for arg in &launch.args {
        argv.push(c_string(arg)?);
    }
    let env = [
        c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        c_string(&format!("NOTIFY_SOCKET={NOTIFY}"))?,
        // Images need not say which system they are.
        c"SYSTEMD_NSPAWN_CHECK_OS_RELEASE=0".to_owned(),
        // It would write all of the host's dirty pages to disk at each end.
        c"SYSTEMD_SUPPRESS_SYNC=1".to_owned(),
    ];
    nix::unistd::execve(&program, &argv, &env).step("start systemd-nspawn")
}

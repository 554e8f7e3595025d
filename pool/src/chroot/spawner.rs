//! The small process that clones every sandbox of one mayfly that runs on the host's kernel.
//!
//! It has one thread on purpose. A parent-death signal follows the *thread* that made a child, and the
//! threads of an async runtime come and go; this one lives as long as its mayfly. It keeps its own mount
//! namespace, so no mount of ours is ever seen on the host, and a killed mayfly leaves none behind. When the
//! pool's end of its socket closes it exits, and the kernel ends what it made.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    cmsg_space,
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
        socketpair,
    },
    unistd::setgroups,
};
use rustix::mount::MountPropagationFlags;

use super::{
    devices,
    kernel::{self, Cloned},
    mounts::{self, clone_tree},
    plan::{Answer, Entries, Failed, Kind, MAX_FDS, MAX_PLAN, Outcome, Plan, Step, Task},
    setup::{self, Descriptors, Trees},
};
use crate::{enclose::enclose, nspawn, uids::RANGE, vm};

/// Everything but the cgroup and time namespaces, which the child enters by itself once it is where it belongs.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

const SOCKET: i32 = 0;

/// Serves plans from the socket at descriptor 0 until it closes. Never call this in a process with threads.
pub(super) fn serve() -> Result<(), Failed> {
    let socket = borrow_socket();
    let devices = prepare()?;
    let mut buffer = vec![0; MAX_PLAN];
    while let Some((task, fds)) = receive(socket, &mut buffer).step("receive a task")? {
        let (answer, fds) = match perform(&task, fds, devices.as_fd()) {
            Ok(fds) => (Answer::Done, fds),
            Err(failed) => (failed, Vec::new()),
        };
        send(socket, &answer, &fds).step("answer a task")?;
    }
    Ok(())
}

fn perform(task: &Task, fds: Vec<OwnedFd>, devices: BorrowedFd<'_>) -> Outcome {
    match task {
        Task::Chroot(plan) => Ok(vec![spawn(plan, fds, devices)?]),
        Task::Nspawn(launch) => nspawn::launch(launch, fds),
        Task::Machine(launch) => vm::launch(launch, fds),
        Task::Enclose { plan, kind, leader } => {
            let trees = match kind {
                Kind::OwnUsers => Trees::make(plan, &users_of(*leader)?, devices)?,
                Kind::HostsUsers => {
                    Trees::make(plan, &shifted_users(plan.id_base)?, devices)?.with_scratch(plan)?
                }
            };
            enclose(plan, trees, *leader, *kind)
        }
    }
}

/// Makes this process fit to be the parent of sandboxes.
fn prepare() -> Result<OwnedFd, Failed> {
    kernel::ignore_children().step("leave dead sandboxes to the kernel")?;
    // What a sandbox's own parent leaves behind is not left to an init that may look only now and then.
    nix::sys::prctl::set_child_subreaper(true).step("become the parent of orphans")?;
    // A sandbox cannot drop supplementary groups once setgroups is denied in its user namespace.
    setgroups(&[]).step("drop supplementary groups")?;
    unshare(CloneFlags::CLONE_NEWNS).step("unshare the spawner's mounts")?;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step("make the spawner's mounts private")?;
    devices::mount_template().step("make the template of /dev")
}

fn spawn(plan: &Plan, mut fds: Vec<OwnedFd>, devices: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    let (agent_count, job_count) = match plan.entries {
        Entries::Tasks(count) => (usize::from(count), usize::from(count)),
        Entries::Directories => (1, 1),
    };
    if fds.len() != 1 + agent_count + job_count {
        return Err(Failed { step: "count the plan's descriptors", errno: libc::EINVAL });
    }
    let job_entry = fds.split_off(1 + agent_count);
    let agent_entry = fds.split_off(1);
    let stream = fds.remove(0);
    let into = matches!(plan.entries, Entries::Directories).then(|| agent_entry[0].as_fd());

    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
        .step("make the socket to the sandbox")?;
    match kernel::clone_into(NAMESPACES as u64, into).step("clone into new namespaces")? {
        Cloned::Child => {
            drop(ours);
            let tasks = if into.is_some() { Vec::new() } else { agent_entry };
            setup::become_agent(plan, Descriptors { stream, tasks, job_entry, trees: theirs })
        }
        Cloned::Parent { pid, pidfd } => match equip(plan, pid, devices, ours.as_fd()) {
            Ok(()) => Ok(pidfd),
            Err(failed) => {
                // The child waits for what will never come; SIGKILL through the pidfd cannot hit another process.
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                Err(failed)
            }
        },
    }
}

/// Does for the child what only the host's root may: its id maps and its mounts.
fn equip(plan: &Plan, pid: i32, devices: BorrowedFd<'_>, child: BorrowedFd<'_>) -> Result<(), Failed> {
    map_users(pid, plan.id_base)?;
    Trees::make(plan, &users_of(pid)?, devices)?.send(child)
}

/// Maps the first ids of a user namespace to the range that begins at `id_base`.
fn map_users(pid: i32, id_base: u32) -> Result<(), Failed> {
    let proc = format!("/proc/{pid}");
    let map = format!("0 {id_base} {RANGE}\n");
    fs::write(format!("{proc}/setgroups"), "deny").step("deny setgroups")?;
    fs::write(format!("{proc}/uid_map"), &map).step("write the uid map")?;
    fs::write(format!("{proc}/gid_map"), &map).step("write the gid map")
}

fn users_of(pid: i32) -> Result<fs::File, Failed> {
    fs::File::open(format!("/proc/{pid}/ns/user")).step("open the user namespace")
}

/// A user namespace in which nobody is: what the owners of files are mapped by where the sandbox has none.
fn shifted_users(id_base: u32) -> Result<fs::File, Failed> {
    match kernel::clone_into(libc::CLONE_NEWUSER as u64, None).step("clone into new users")? {
        Cloned::Child => {
            // Before it rests: nobody would end it if the spawner were killed in between.
            let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
            loop {
                nix::unistd::pause();
            }
        }
        Cloned::Parent { pid, pidfd } => {
            let users = map_users(pid, id_base).and_then(|()| users_of(pid));
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            users
        }
    }
}

impl Trees {
    /// Makes what only the host's root can, with owners as a user namespace maps them.
    fn make(plan: &Plan, users: &fs::File, devices: BorrowedFd<'_>) -> Result<Self, Failed> {
        let image = clone_tree(rustix::fs::CWD, plan.rootfs.as_str()).step("open the image")?;
        let read_only = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        kernel::set_mount_attributes(&image, read_only, Some(users.as_fd()))
            .step("map the image's owners")?;

        let (root, scratch) = if plan.writable_root {
            let (root, scratch) = mounts::writable_root(plan, &image)?;
            (root, Some(scratch))
        } else {
            (image, None)
        };
        let dev = clone_tree(devices, "").step("open the devices")?;
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        // Not id-mapped: tmpfs allows that since Linux 6.3 only, and nodes that all may use need no owner inside.
        kernel::set_mount_attributes(&dev, attributes, None).step("lock the devices")?;
        Ok(Self { root, dev, scratch })
    }

    /// The throw-away disk too, for a sandbox in which the host's root cannot speak for the sandbox's.
    fn with_scratch(mut self, plan: &Plan) -> Result<Self, Failed> {
        if self.scratch.is_none() {
            self.scratch = Some(mounts::scratch(plan, plan.id_base)?);
        }
        Ok(self)
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<(Task, Vec<OwnedFd>)>> {
    let (length, fds) = receive_with_fds(socket, buffer)?;
    if length == 0 {
        return Ok(None);
    }
    let task = postcard::from_bytes(&buffer[..length]).map_err(io::Error::other)?;
    Ok(Some((task, fds)))
}

pub(crate) fn send(socket: BorrowedFd<'_>, answer: &Answer, fds: &[OwnedFd]) -> io::Result<()> {
    let bytes = postcard::to_stdvec(answer).map_err(io::Error::other)?;
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    send_with_fds(socket, &bytes, &fds)
}

pub(crate) fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[i32]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[expect(unsafe_code, reason = "takes ownership of received descriptors")]
pub(crate) fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([i32; MAX_FDS]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

#[expect(unsafe_code, reason = "descriptor 0 is given by the parent")]
fn borrow_socket() -> BorrowedFd<'static> {
    // SAFETY: the pool starts this process with the socket as its stdin, and nothing here closes it.
    unsafe { BorrowedFd::borrow_raw(SOCKET) }
}

//! The last step to a sandbox whose namespaces another program has made: the root of a chroot sandbox instead of theirs.
//!
//! What systemd-nspawn and Docker put into every container is more than a job may have, and not the same: host files such
//! as `os-release` and `resolv.conf`, `/sys`, cgroup trees, sockets, mounts shared with whoever joins, the agent visible in
//! `/proc`, several disks where one has to bound all. So a clone of the spawner enters the container's namespaces before
//! the agent there is spoken to, puts the one root together that the chroot tier has, and pivots. `pivot_root` moves every
//! process of the container along.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::{Gid, Uid, setresgid, setresuid},
};

use crate::{
    chroot::{
        kernel::{self, Cloned},
        mounts,
        plan::{Answer, Failed, Kind, Outcome, Plan, Step},
        setup::{self, Trees},
        spawner::send,
    },
    nspawn::{hear, tale},
};

impl Kind {
    /// Directories that every such container has, to put mounts on until they are in their places.
    fn points(self) -> (&'static str, &'static str) {
        match self {
            Self::OwnUsers => ("/tmp", "/run"),
            Self::HostsUsers => ("/tmp", "/dev/shm"),
        }
    }
}

/// The container's namespaces, opened while this is the host's root.
///
/// A pidfd would do only once the first process has become the agent: until then it is a copy of systemd-nspawn, whose
/// memory is the host's, and the kernel asks for the right to trace it.
struct Namespaces {
    /// None where its users are the host's.
    user: Option<File>,
    /// Mounts, pids, network, ipc.
    others: [File; 4],
}

/// Runs in the spawner.
pub(crate) fn enclose(plan: &Plan, trees: Trees, leader: i32, kind: Kind) -> Outcome {
    let namespaces = Namespaces::of(leader, kind).step("open the container's namespaces")?;
    let (ours, theirs) = tale()?;
    match kernel::clone_into(0, None).step("clone")? {
        Cloned::Child => {
            drop(ours);
            let entered = namespaces
                .enter()
                .and_then(|()| kernel::clone_into(0, None).step("clone into the container"));
            match entered {
                // In the container's pid namespace, as the maker of its /proc must be.
                Ok(Cloned::Child) => report(&theirs, change_root(plan, trees, kind)),
                Ok(Cloned::Parent { .. }) => setup::leave(),
                Err(failed) => report(&theirs, Err(failed)),
            }
        }
        Cloned::Parent { .. } => {
            drop(theirs);
            hear(ours.as_fd(), "enter the container")
        }
    }
}

impl Namespaces {
    fn of(leader: i32, kind: Kind) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{leader}/ns/{name}"));
        let user = matches!(kind, Kind::OwnUsers).then(|| open("user")).transpose()?;
        Ok(Self { user, others: [open("mnt")?, open("pid")?, open("net")?, open("ipc")?] })
    }

    fn enter(&self) -> Result<(), Failed> {
        if let Some(user) = &self.user {
            become_its_root(user)?;
        }
        let any_kind = CloneFlags::empty();
        self.others
            .iter()
            .try_for_each(|namespace| setns(namespace, any_kind))
            .step("enter the container's namespaces")
    }
}

fn become_its_root(user: &File) -> Result<(), Failed> {
    setns(user, CloneFlags::CLONE_NEWUSER).step("enter the container's user namespace")?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).step("become the container's group 0")?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).step("become the container's user 0")?;
    // While the host's /proc is still there: the container's is locked.
    setup::forbid_nested()
}

fn report(to: &OwnedFd, outcome: Result<(), Failed>) -> ! {
    let answer = outcome.map_or_else(Answer::from, |()| Answer::Done);
    let _ = send(to.as_fd(), &answer, &[]);
    setup::leave()
}

fn change_root(plan: &Plan, trees: Trees, kind: Kind) -> Result<(), Failed> {
    let (root_point, disk_point) = kind.points();
    let root_point = mounts::place(root_point).step("open the place for the root")?;
    let disk_point = mounts::place(disk_point).step("open the place for the throw-away disk")?;
    setup::change_root(plan, trees, &root_point, &disk_point)
}

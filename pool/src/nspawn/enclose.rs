//! The last step to a sandbox that systemd-nspawn has made: the root of a chroot sandbox instead of its own.
//!
//! What it puts into every container is more than a job may have: a writable `/run`, the host's `os-release`, a socket to
//! itself, `/sys`, cgroup trees, mounts shared with whoever joins, the agent visible in `/proc`. So a clone of the
//! spawner enters the container's namespaces before the agent there is spoken to, puts the one root together that the
//! chroot tier has, and pivots. `pivot_root` moves every process of the container along.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::{Gid, Uid, setresgid, setresuid},
};

use super::launch::{hear, tale};
use crate::chroot::{
    kernel::{self, Cloned},
    mounts,
    plan::{Answer, Failed, Outcome, Plan, Step},
    setup::{self, Trees},
    spawner::send,
};

/// Directories of every container of systemd-nspawn, to put mounts on until they are in their places.
const ROOT_POINT: &str = "/tmp";
const DISK_POINT: &str = "/run";

/// The container's namespaces, opened while this is the host's root.
///
/// A pidfd would do only once the first process has become the agent: until then it is a copy of systemd-nspawn, whose
/// memory is the host's, and the kernel asks for the right to trace it.
struct Namespaces {
    user: File,
    /// Mounts, pids, network, ipc.
    others: [File; 4],
}

/// Runs in the spawner.
pub(crate) fn enclose(plan: &Plan, trees: Trees, leader: i32) -> Outcome {
    let namespaces = Namespaces::of(leader).step("open the container's namespaces")?;
    let (ours, theirs) = tale()?;
    match kernel::clone_into(0, None).step("clone")? {
        Cloned::Child => {
            drop(ours);
            let entered = namespaces
                .enter()
                .and_then(|()| kernel::clone_into(0, None).step("clone into the container"));
            match entered {
                // In the container's pid namespace, as the maker of its /proc must be.
                Ok(Cloned::Child) => report(&theirs, change_root(plan, trees)),
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
    fn of(leader: i32) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{leader}/ns/{name}"));
        Ok(Self { user: open("user")?, others: [open("mnt")?, open("pid")?, open("net")?, open("ipc")?] })
    }

    fn enter(&self) -> Result<(), Failed> {
        setns(&self.user, CloneFlags::CLONE_NEWUSER).step("enter the container's user namespace")?;
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))
            .step("become the container's group 0")?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))
            .step("become the container's user 0")?;
        // While the host's /proc is still there: the container's is locked.
        setup::forbid_nested()?;
        let any_kind = CloneFlags::empty();
        self.others
            .iter()
            .try_for_each(|namespace| setns(namespace, any_kind))
            .step("enter the container's namespaces")
    }
}

fn report(to: &OwnedFd, outcome: Result<(), Failed>) -> ! {
    let answer = outcome.map_or_else(Answer::from, |()| Answer::Done);
    let _ = send(to.as_fd(), &answer, &[]);
    setup::leave()
}

fn change_root(plan: &Plan, trees: Trees) -> Result<(), Failed> {
    let root_point = mounts::place(ROOT_POINT).step("open the place for the root")?;
    let disk_point = mounts::place(DISK_POINT).step("open the place for the throw-away disk")?;
    setup::change_root(plan, trees, &root_point, &disk_point)
}

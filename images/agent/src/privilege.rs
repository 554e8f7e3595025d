//! Giving up privilege, and proving that it is gone.
//!
//! One path for every tier: drop what can be dropped, then read back what is left. Where the tier already took a
//! privilege away the drop fails and the proof holds; where neither is so, the sandbox is refused.

use agent::message::Identity;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getegid, getgroups, setfsgid, setfsuid, setgroups, setresgid, setresuid};

use crate::failure::{At, Failure};
use crate::sys::{self, Capabilities};

const CAP_KILL: u64 = 1 << 5;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_TIME: u64 = 1 << 25;
/// What an agent of its own user id still needs: to signal the job, and to open files as the job.
const AGENT_KEEPS: u64 = CAP_KILL | CAP_SETGID | CAP_SETUID;

/// What the agent of a machine needs beside them until a job's first byte: to become somebody new, and to size the
/// throw-away disk.
pub(crate) const MACHINE_KEEPS: u64 = CAP_SYS_ADMIN | CAP_SYS_TIME;

/// No capabilities for user id 0 at exec, none kept over a change of user id, none ambient; and all that for good.
const SECUREBITS: libc::c_ulong = (libc::SECBIT_NOROOT
    | libc::SECBIT_NOROOT_LOCKED
    | libc::SECBIT_KEEP_CAPS_LOCKED
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED) as libc::c_ulong;

/// Unreadable and untraceable for processes of the same user, and gone when the parent is.
///
/// A change of user id undoes both, so this comes again after each one.
pub(crate) fn guard_process() -> Result<(), Errno> {
    prctl::set_dumpable(false)?;
    prctl::set_pdeathsig(Signal::SIGKILL)
}

/// Leaves no supplementary group, for this process and those it makes.
pub(crate) fn clear_groups() -> Result<(), Failure> {
    let Err(errno) = setgroups(&[]) else { return Ok(()) };
    // Denied in most user namespaces. The own group again adds nothing, and docker lists it.
    let own = getegid();
    match getgroups() {
        Ok(groups) if groups.iter().all(|group| *group == own) => Ok(()),
        _ => Err(errno).at("clear supplementary groups"),
    }
}

/// Makes this process the job's user without any capability, and proves it.
pub(crate) fn become_job(identity: Option<Identity>) -> Result<(), Failure> {
    // 1. The sets that outlast a change of user id, while the right to empty them is still there.
    empty_bounding_set();
    // 2. Refused without CAP_SETPCAP; then the tier has no privilege to lock away either, as step 5 proves.
    let _ = sys::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0);
    // 3. The user.
    if let Some(identity) = identity {
        change_user(identity.uid, identity.gid).at("become the job's user")?;
    }
    // 4. Whatever is left.
    clear_ambient().at("clear ambient capabilities")?;
    sys::capset(Capabilities::default()).at("clear capabilities")?;
    // 5. Read back.
    prove_empty()
}

/// Leaves this process no more than an agent needs, and for now `more`.
pub(crate) fn confine_agent(identity: Option<Identity>, more: u64) -> Result<(), Failure> {
    if let Some(identity) = identity {
        become_agent(identity, more)?;
        // Once more: the change of user undid it.
        guard_process().at("guard the agent")?;
    }
    prctl::set_no_new_privs().at("set the agent's no_new_privs")?;
    // Modes of files are the host's to say.
    umask(Mode::empty());
    Ok(())
}

/// Gives up what an agent was left for a while, but for `more`, and proves it.
pub(crate) fn keep(more: u64) -> Result<(), Failure> {
    let kept = agent_keeps(more);
    sys::capset(kept).at("limit the agent's capabilities")?;
    if sys::capget().at("read capabilities")? == kept {
        Ok(())
    } else {
        Err(Failure::Unproved("the agent has other capabilities than it should keep".into()))
    }
}

fn agent_keeps(more: u64) -> Capabilities {
    let kept = AGENT_KEEPS | more;
    Capabilities { effective: kept, permitted: kept, inheritable: 0 }
}

/// Makes this process the agent's own user, which can signal the job and open files as the job.
fn become_agent(identity: Identity, more: u64) -> Result<(), Failure> {
    empty_bounding_set();
    prctl::set_keepcaps(true).at("keep capabilities")?;
    change_user(identity.agent, identity.gid).at("become the agent's user")?;
    prctl::set_keepcaps(false).at("stop keeping capabilities")?;
    clear_ambient().at("clear the agent's ambient capabilities")?;
    sys::capset(agent_keeps(more)).at("limit the agent's capabilities")?;
    if !Set::Bounding.is_empty().at("read the agent's bounding set")? {
        return Err(Failure::Unproved("the agent's bounding set is not empty".into()));
    }
    // Files are the job's business only, so the agent has no other face to the file system from here on.
    setfsgid(Gid::from_raw(identity.gid));
    setfsuid(Uid::from_raw(identity.uid));
    // They report no error; asking again tells. An id that is no id changes nothing.
    let now = (setfsuid(Uid::from_raw(u32::MAX)).as_raw(), setfsgid(Gid::from_raw(u32::MAX)).as_raw());
    if now != (identity.uid, identity.gid) {
        return Err(Failure::Unproved(format!("the agent opens files as {}:{}", now.0, now.1)));
    }
    Ok(())
}

fn change_user(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The group first: without the user's privilege it could not be changed any more.
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn empty_bounding_set() {
    for capability in 0..64 {
        // EINVAL past the last capability; EPERM without CAP_SETPCAP. `prove_empty` has the last word.
        if sys::prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            break;
        }
    }
}

fn clear_ambient() -> Result<(), Errno> {
    match sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0) {
        // A kernel without an ambient set, such as gVisor's: there is nothing to clear.
        Err(Errno::EINVAL) => Ok(()),
        cleared => cleared.map(drop),
    }
}

/// All five capability sets are empty, or the sandbox is refused.
fn prove_empty() -> Result<(), Failure> {
    if sys::capget().at("read capabilities")? != Capabilities::default() {
        return Err(Failure::Unproved("the job's capability sets are not empty".into()));
    }
    for set in [Set::Bounding, Set::Ambient] {
        if !set.is_empty().at("read back capabilities")? {
            return Err(Failure::Unproved(format!("the job's {set:?} capability set is not empty")));
        }
    }
    Ok(())
}

/// The two sets that are read one capability at a time.
#[derive(Debug, Clone, Copy)]
enum Set {
    Bounding,
    Ambient,
}

impl Set {
    fn is_empty(self) -> Result<bool, Errno> {
        for capability in 0..64 {
            let found = match self {
                Self::Bounding => sys::prctl(libc::PR_CAPBSET_READ, capability, 0),
                Self::Ambient => {
                    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET as libc::c_ulong, capability)
                }
            };
            match found {
                Ok(0) => {}
                Ok(_) => return Ok(false),
                // Past the kernel's last capability, or a kernel without an ambient set.
                Err(Errno::EINVAL) if capability > 0 || matches!(self, Self::Ambient) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}

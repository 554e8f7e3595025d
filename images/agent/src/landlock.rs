//! Landlock, a second lock behind the mounts: the job reads and runs what it finds, and writes to few places.
//!
//! The mounts decide what is there at all. Were one of them writable by mistake, this still would not be.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::failure::{At, Failure};
use crate::sys;

/// The newest ABI whose rights are known here. A newer kernel is asked for these only.
const KNOWN_ABI: u32 = 7;

/// Where a job may write while the root is read-only. `/proc` for the likes of `/proc/self/comm`; `/dev` for its
/// null and its terminals.
const WRITABLE: [&str; 4] = ["/tmp", "/job", "/dev", "/proc"];

const EXECUTE: u64 = 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const READING: u64 = EXECUTE | READ_FILE | READ_DIR;

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`: the job reaches itself and its children only.
const SCOPES: u64 = 0b11;

/// All file system rights that an ABI knows.
fn every_right(abi: u32) -> u64 {
    // Bits in the order of their arrival: 13 at first, then REFER, TRUNCATE and IOCTL_DEV.
    let bits = match abi {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << bits) - 1
}

/// Confines this process and returns the ABI that was enforced, 0 where the kernel has no Landlock.
pub(crate) fn confine(writable_root: bool) -> Result<u32, Failure> {
    let abi = match sys::landlock_abi() {
        Ok(abi) => abi.min(KNOWN_ABI),
        // Not built, not enabled, or refused by a filter that the tier put around the agent: the host sees the 0.
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => return Ok(0),
        Err(errno) => return Err(errno).at("landlock: ask for the ABI"),
    };
    let all = every_right(abi);
    let scoped = if abi >= 6 { SCOPES } else { 0 };
    let ruleset =
        sys::landlock_ruleset(&sys::RulesetAttr { handled_access_fs: all, handled_access_net: 0, scoped })
            .at("landlock: make a ruleset")?;
    let allow = |path: &str, access: u64| match open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(parent) => sys::landlock_allow(&ruleset, parent, access),
        // An image without /job has nothing there to allow.
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    };
    allow("/", if writable_root { all } else { READING }).at("landlock: allow /")?;
    for path in WRITABLE {
        allow(path, all).at("landlock: allow a writable directory")?;
    }
    sys::landlock_restrict(&ruleset).at("landlock: restrict")?;
    Ok(abi)
}

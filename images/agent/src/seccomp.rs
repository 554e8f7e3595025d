//! The job's seccomp filters, compiled by `build.rs` from `syscalls.rs`.

use nix::errno::Errno;

use crate::sys;

#[expect(clippy::unreadable_literal, reason = "instructions, written by build.rs for no reader")]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// Confines this process, for good, to the calls of `syscalls.rs`.
pub(crate) fn confine() -> Result<(), Errno> {
    sys::seccomp(&compiled::ALLOW_LIST)?;
    // Second, because of two refusals the newest filter's errno is the one that the caller sees.
    sys::seccomp(&compiled::UNKNOWN_CALLS)
}

#[cfg(test)]
mod canaries;

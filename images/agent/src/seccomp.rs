//! The job's seccomp filter, compiled by `build.rs` from `syscalls.rs`.

use nix::errno::Errno;

use crate::sys;

#[expect(clippy::unreadable_literal, reason = "instructions, written by build.rs for no reader")]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// Confines this process, for good, to the calls of `syscalls.rs`.
pub(crate) fn confine() -> Result<(), Errno> {
    sys::seccomp(&compiled::FILTER)
}

#[cfg(test)]
mod canaries;
#[cfg(test)]
mod verdicts;

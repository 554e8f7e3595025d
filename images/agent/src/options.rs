//! The agent's command line: `mayfly-agent [--job-tasks FD]… [--job-cgroup FD]`.

use std::ffi::OsString;
use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::arm::JobCgroups;
use crate::failure::{At, Failure};
use crate::sys;

/// Reads the command line, and closes every descriptor that it does not declare.
pub(crate) fn parse(mut args: impl Iterator<Item = OsString>) -> Result<JobCgroups, Failure> {
    let mut cgroups = JobCgroups::default();
    let mut declared = Vec::new();
    while let Some(option) = args.next() {
        let mut descriptor = || {
            let fd = number(args.next(), &declared)?;
            declared.push(fd);
            sys::inherit(fd).at("take a descriptor of the command line")
        };
        match option.to_str() {
            Some("--job-tasks") => cgroups.tasks.push(descriptor()?),
            Some("--job-cgroup") if cgroups.directory.is_none() => cgroups.directory = Some(descriptor()?),
            _ => return Err(Failure::Usage(format!("unknown or repeated option {}", option.display()))),
        }
    }
    close_others(declared).at("close undeclared descriptors")?;
    Ok(cgroups)
}

/// A descriptor's number. Each is taken once, and never a standard one.
fn number(arg: Option<OsString>, declared: &[RawFd]) -> Result<RawFd, Failure> {
    let arg = arg.ok_or_else(|| Failure::Usage("an option without its descriptor".into()))?;
    match arg.to_str().and_then(|arg| arg.parse().ok()) {
        Some(fd) if fd > 2 && !declared.contains(&fd) => Ok(fd),
        _ => Err(Failure::Usage(format!("{} is no descriptor above 2, or said twice", arg.display()))),
    }
}

fn close_others(mut declared: Vec<RawFd>) -> Result<(), Errno> {
    declared.sort_unstable();
    let mut first = 3;
    for fd in declared {
        if fd > first {
            sys::close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    sys::close_range(first, RawFd::MAX)
}

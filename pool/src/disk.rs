//! The size of a sandbox's throw-away disk, changed from the host.

use std::io;

use rustix::{fs::CWD, mount::FsPickFlags};

use crate::limits::Limits;

/// Gives the throw-away disk of the sandbox in which `process` is another size.
///
/// Through a path below `/proc`, so before anything hostile is in there: `/tmp` is still the disk's own.
pub(crate) fn resize(process: i32, limits: &Limits) -> io::Result<()> {
    let disk = format!("/proc/{process}/root/tmp");
    let fs = rustix::mount::fspick(CWD, disk, FsPickFlags::FSPICK_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "size", limits.disk.to_string())?;
    rustix::mount::fsconfig_set_string(&fs, "nr_inodes", limits.inodes.to_string())?;
    Ok(rustix::mount::fsconfig_reconfigure(&fs)?)
}

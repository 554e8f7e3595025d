//! The kernel calls of the rehearsal that no crate wraps, each safe to call with any argument.

#![expect(unsafe_code, reason = "no crate wraps landlock_create_ruleset and mount_setattr")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Landlock's ABI version, or why there is none.
pub(super) fn landlock_abi() -> Result<i64, Errno> {
    const VERSION_ONLY: libc::c_uint = 1;
    // SAFETY: with a null attribute, size 0 and this flag the kernel reads nothing and returns a number.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION_ONLY)
    })
}

/// Makes a detached mount show its owners through the maps of a user namespace.
pub(super) fn idmap(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: userns.as_raw_fd() as u64,
    };
    // SAFETY: the path is empty and NUL-terminated, and the struct has the size that is passed.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

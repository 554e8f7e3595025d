//! Paths inside the sandbox, opened one name at a time.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::message::FileError;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, PROC_SUPER_MAGIC, fstatfs};

const SYSFS_MAGIC: FsType = FsType(0x6265_6572);

/// What an `errno` means to one who asked for a file.
pub(crate) fn file_error(errno: Errno) -> FileError {
    match errno {
        Errno::ENOENT => FileError::NotFound,
        Errno::ELOOP => FileError::Symlink,
        Errno::EISDIR | Errno::ENOTDIR => FileError::Directory,
        Errno::ENXIO | Errno::ENODEV => FileError::NotRegular,
        Errno::EACCES | Errno::EPERM => FileError::Denied,
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => FileError::Full,
        Errno::EROFS => FileError::ReadOnly,
        other => FileError::Os(other as i32),
    }
}

/// The names of an absolute path, or what is wrong with it.
pub(crate) fn names(path: &[u8]) -> Result<Vec<CString>, FileError> {
    let relative = path.strip_prefix(b"/").ok_or(FileError::BadPath)?;
    relative
        .split(|byte| *byte == b'/')
        .map(|name| match name {
            b"" | b"." | b".." => Err(FileError::BadPath),
            name => CString::new(name).map_err(|_| FileError::BadPath),
        })
        .collect()
}

/// The root, as a place to start from.
pub(crate) fn root() -> Result<OwnedFd, FileError> {
    open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(file_error)
}

/// The directory `name` in `dir`, opened with `how`: for looking things up in it, or for listing it.
fn open_directory(dir: BorrowedFd<'_>, name: &CStr, how: OFlag) -> Result<OwnedFd, FileError> {
    let flags = how | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        Ok(opened) if is_made_up(&opened)? => Err(FileError::NotRegular),
        Ok(opened) => Ok(opened),
        // What stands there is no directory; a link deserves its own name.
        Err(Errno::ENOTDIR) => match look(dir, name) {
            Ok(stat) if kind(&stat) == SFlag::S_IFLNK => Err(FileError::Symlink),
            Ok(_) | Err(_) => Err(FileError::Directory),
        },
        Err(errno) => Err(file_error(errno)),
    }
}

/// Steps into a directory that need not be readable.
pub(crate) fn enter(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, FileError> {
    open_directory(dir, name, OFlag::O_PATH)
}

/// Opens a directory for listing.
pub(crate) fn open_listing(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, FileError> {
    open_directory(dir, name, OFlag::O_RDONLY)
}

/// What stands at `name`, itself and not what it links to.
pub(crate) fn look(dir: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Errno> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// The file type bits of a `stat`.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Whether a directory's files are made up by the kernel, for whoever opens them.
fn is_made_up(dir: impl AsFd) -> Result<bool, FileError> {
    let found = fstatfs(dir).map_err(file_error)?.filesystem_type();
    Ok([PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&found))
}

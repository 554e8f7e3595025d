//! Writes into a root file system that is being made, and never outside it.
//!
//! The tree may hold symlinks that somebody else chose, so no path is ever walked by plain string: the parent is
//! opened by `openat2` with the resolution that fits, and the last step is taken from that descriptor.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};

/// How symlinks among the parents of a path are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Links {
    /// A symlink ends it with an error.
    Refuse,
    /// They are followed, with the tree's root as `/`.
    Inside,
}

/// Owner and permission bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owned {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owned {
    pub(crate) fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }
}

/// The root of a tree that is being made.
pub(crate) struct Rootfs {
    dir: OwnedFd,
    path: PathBuf,
    links: Links,
}

impl Rootfs {
    pub(crate) fn open(path: &Path, links: Links) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { dir, path: path.to_owned(), links })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn open_below(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = match self.links {
            Links::Refuse => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            Links::Inside => ResolveFlags::IN_ROOT,
        } | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }

    /// The parent directory, and a path through its descriptor to the entry itself.
    fn entry(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let Some(Component::Normal(name)) = path.components().next_back() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = self.open_below(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let entry = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        Ok((dir, entry))
    }

    /// Makes a directory, or gives the one that is there its owner and mode. Anything else there is an error.
    pub(crate) fn directory(&self, path: &Path, owned: Owned) -> io::Result<()> {
        if !path.as_os_str().is_empty() {
            let (_parent, entry) = self.entry(path)?;
            match fs::create_dir(&entry) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            // Follows nothing, whatever the parents' symlinks mean: this step must be the directory itself.
            if !fs::symlink_metadata(&entry)?.is_dir() {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
        }
        let dir = File::from(self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY)?);
        own(&dir, owned)
    }

    /// Makes the directories that are missing on the way to a path.
    pub(crate) fn parents(&self, path: &Path) -> io::Result<()> {
        for parent in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            match self.open_below(parent, OFlags::PATH | OFlags::DIRECTORY) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.directory(parent, Owned::root(0o755))?;
                }
                opened => drop(opened?),
            }
        }
        Ok(())
    }

    /// Makes a file that must not be there yet and gives it what the reader has.
    pub(crate) fn file(&self, path: &Path, content: &mut dyn Read, owned: Owned) -> io::Result<u64> {
        let (_parent, entry) = self.entry(path)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(entry)?;
        let written = io::copy(content, &mut file)?;
        own(&file, owned)?;
        Ok(written)
    }

    /// Puts a file in the place of whatever file or symlink is there. Never writes into a file: another image may
    /// share its bytes.
    pub(crate) fn replace(&self, path: &Path, content: &[u8], owned: Owned) -> io::Result<()> {
        self.parents(path)?;
        let (_parent, entry) = self.entry(path)?;
        match fs::remove_file(entry) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        self.file(path, &mut &*content, owned).map(drop)
    }

    pub(crate) fn symlink(&self, path: &Path, target: &Path, uid: u32, gid: u32) -> io::Result<()> {
        let (_parent, entry) = self.entry(path)?;
        std::os::unix::fs::symlink(target, &entry)?;
        lchown(entry, Some(uid), Some(gid))
    }

    /// Another name for a file of this tree.
    pub(crate) fn hard_link(&self, path: &Path, first: &Path) -> io::Result<()> {
        let (_first_parent, first) = self.entry(first)?;
        if !fs::symlink_metadata(&first)?.is_file() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let (_parent, entry) = self.entry(path)?;
        fs::hard_link(first, entry)
    }

    /// A name in this tree for a file of another, of which it will share the bytes.
    pub(crate) fn share(&self, path: &Path, other: &Path) -> io::Result<()> {
        let (_parent, entry) = self.entry(path)?;
        fs::hard_link(other, entry)
    }

    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::from(self.open_below(path, OFlags::RDONLY | OFlags::NONBLOCK)?).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn set_xattr(&self, path: &Path, name: &OsStr, value: &[u8]) -> io::Result<()> {
        let (_parent, entry) = self.entry(path)?;
        Ok(rustix::fs::lsetxattr(entry, name, value, XattrFlags::empty())?)
    }

    pub(crate) fn remove_xattr(&self, path: &Path, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::lremovexattr(self.path.join(path), name)?)
    }

    pub(crate) fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        let file = File::from(self.open_below(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?);
        file.set_permissions(Permissions::from_mode(mode))
    }

    pub(crate) fn set_mtime(&self, path: &Path, seconds: i64) -> io::Result<()> {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let (parent, name) = match path.file_name() {
            Some(name) => (self.open_below(path.parent().unwrap_or(Path::new("")), OFlags::PATH)?, name),
            None => (self.dir.try_clone()?, OsStr::from_bytes(b".")),
        };
        Ok(rustix::fs::utimensat(parent.as_fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Takes away what is at a path, with all below it. Nothing there is fine.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let gone =
            |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
        let (_parent, entry) = match self.entry(path) {
            Ok(found) => found,
            Err(error) => return gone(error),
        };
        match fs::symlink_metadata(&entry) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(entry),
            Ok(_) => fs::remove_file(entry),
            Err(error) => gone(error),
        }
    }
}

/// Changing the owner clears the mode's upper bits, so the mode comes last; and the umask has no say in it.
fn own(file: &File, owned: Owned) -> io::Result<()> {
    fchown(file, Some(owned.uid), Some(owned.gid))?;
    file.set_permissions(Permissions::from_mode(owned.mode))
}

/// Everything that was written below this directory is on the disk when this returns.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    let dir =
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_in_the_tree_never_leads_a_write_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../../../..", tree.path().join("up")).unwrap();

        let refusing = Rootfs::open(tree.path(), Links::Refuse).unwrap();
        let inside = Rootfs::open(tree.path(), Links::Inside).unwrap();
        for path in ["out/x", "up/x"] {
            assert!(refusing.replace(Path::new(path), b"x", Owned::root(0o644)).is_err(), "{path}");
        }
        inside.replace(Path::new("up/x"), b"x", Owned::root(0o644)).unwrap();
        assert!(tree.path().join("x").exists(), "`..` stops at the tree's root");
        assert!(inside.directory(Path::new("out"), Owned::root(0o755)).is_err(), "a symlink is no directory");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

//! A strict tar reader. An archive may come from anywhere: only directories, files, symlinks and hard links get
//! through, each once, each inside, and never more than the limits.

mod headers;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use crate::IoError;
use crate::error::At;
use crate::lint::{HIGHEST_ID, MOUNT_POINTS};
use crate::rootfs::{Owned, Rootfs};
use crate::tree;

pub(crate) use headers::{Header, Headers};

/// An archive that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It cannot be read, or is no tar archive.
    #[error("the archive cannot be read: {0}")]
    Read(io::Error),
    /// It ends in the middle of something, or has something behind its end.
    #[error("the archive is cut short or has bytes behind its end")]
    End,
    /// A path that is absolute, has `..` in it, or is no path.
    #[error("the archive has an entry outside of the image: `{0}`")]
    Outside(String),
    /// The same path twice.
    #[error("the archive has `{0}` twice")]
    Duplicate(String),
    /// A device, fifo, sparse file or whatever else.
    #[error("the archive has `{path}`, which is {what}")]
    Kind {
        /// The entry's path.
        path: String,
        /// What it is.
        what: String,
    },
    /// A hard link to something that is not a file of this archive, before it.
    #[error("the archive has a hard link `{path}` to `{target}`, which is no earlier file of it")]
    HardLink {
        /// The link's path.
        path: String,
        /// What it should lead to.
        target: String,
    },
    /// An owner beyond what the tiers can map.
    #[error("the archive has `{path}`, which belongs to {uid}:{gid}, beyond {HIGHEST_ID}")]
    Owner {
        /// The entry's path.
        path: String,
        /// Its user id.
        uid: u64,
        /// Its group id.
        gid: u64,
    },
    /// More entries than allowed.
    #[error("the archive has more than {0} entries")]
    TooMany(u64),
    /// More bytes than allowed.
    #[error("the archive has more than {0} bytes")]
    TooLarge(u64),
    /// An entry cannot be written.
    #[error(transparent)]
    Write(#[from] IoError),
}

/// How much an archive may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// More than any image has, and less than fills a host's disk unnoticed.
pub(crate) const LIMITS: Limits = Limits { entries: 4_000_000, bytes: 64 << 30 };

/// Writes an archive's entries into a tree.
pub(crate) struct Unpacker<'a> {
    rootfs: &'a Rootfs,
    limits: Limits,
    entries: u64,
    bytes: u64,
    seen: HashSet<PathBuf>,
    files: HashSet<PathBuf>,
}

impl<'a> Unpacker<'a> {
    /// The tree must refuse symlinks among parents: an archive could bring its own.
    pub(crate) fn new(rootfs: &'a Rootfs, limits: Limits) -> Self {
        Self { rootfs, limits, entries: 0, bytes: 0, seen: HashSet::new(), files: HashSet::new() }
    }

    /// Adds one entry. `path` is the entry's own, checked by [`inside`].
    pub(crate) fn add(
        &mut self,
        path: &Path,
        header: &Header,
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        let name = || tree::escaped(path.as_os_str());
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UnpackError::TooMany(self.limits.entries));
        }
        if !self.seen.insert(path.to_owned()) {
            return Err(UnpackError::Duplicate(name()));
        }
        let owned = owned(path, header)?;
        let full = self.rootfs.path().join(path);
        self.rootfs.parents(path).at("make the parents of", &full)?;
        match header.kind {
            EntryType::Directory => self.rootfs.directory(path, owned).at("make", &full)?,
            EntryType::Regular | EntryType::Continuous => {
                self.bytes = self.bytes.saturating_add(header.size);
                if self.bytes > self.limits.bytes {
                    return Err(UnpackError::TooLarge(self.limits.bytes));
                }
                let written = self.rootfs.file(path, content, owned).at("write", &full)?;
                if written != header.size {
                    return Err(UnpackError::End);
                }
                self.files.insert(path.to_owned());
            }
            EntryType::Symlink => {
                let target = Path::new(OsStr::from_bytes(&header.link));
                self.rootfs.symlink(path, target, owned.uid, owned.gid).at("make the link", &full)?;
            }
            EntryType::Link => {
                let target = inside(&header.link)?;
                if !self.files.contains(&target) {
                    return Err(UnpackError::HardLink {
                        path: name(),
                        target: tree::escaped(target.as_os_str()),
                    });
                }
                self.rootfs.hard_link(path, &target).at("make the link", &full)?;
                return Ok(());
            }
            other => return Err(UnpackError::Kind { path: name(), what: what(other) }),
        }
        for (key, value) in header.xattrs.iter().filter(|(key, _)| tree::is_content(key)) {
            self.rootfs.set_xattr(path, key, value).at("set an extended attribute of", &full)?;
        }
        if header.kind != EntryType::Directory {
            self.rootfs.set_mtime(path, header.mtime).at("set the time of", &full)?;
        }
        Ok(())
    }
}

fn owned(path: &Path, header: &Header) -> Result<Owned, UnpackError> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id <= HIGHEST_ID);
    match (id(header.uid), id(header.gid)) {
        (Some(uid), Some(gid)) => Ok(Owned { mode: header.mode & 0o7777, uid, gid }),
        _ => Err(UnpackError::Owner {
            path: tree::escaped(path.as_os_str()),
            uid: header.uid,
            gid: header.gid,
        }),
    }
}

fn what(kind: EntryType) -> String {
    match kind {
        EntryType::Char => "a character device".to_owned(),
        EntryType::Block => "a block device".to_owned(),
        EntryType::Fifo => "a fifo".to_owned(),
        EntryType::GNUSparse => "a sparse file".to_owned(),
        other => format!("of the unknown type {:?}", char::from(other.as_byte())),
    }
}

/// A path of an archive as one below the tree's root.
pub(crate) fn inside(path: &[u8]) -> Result<PathBuf, UnpackError> {
    let outside = || UnpackError::Outside(path.escape_ascii().to_string());
    let mut rest = path.strip_suffix(b"/").unwrap_or(path);
    while let Some(shorter) = rest.strip_prefix(b"./") {
        rest = shorter;
    }
    if rest == b"." || (rest.is_empty() && path != b"/" && !path.is_empty()) {
        return Ok(PathBuf::new());
    }
    let refused = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.contains(&0);
    if rest.split(|byte| *byte == b'/').any(refused) {
        return Err(outside());
    }
    Ok(PathBuf::from(OsStr::from_bytes(rest)))
}

/// Unpacks a whole archive as a root file system. What it has below the mount points is left out: an image made
/// elsewhere often has nodes in `/dev`.
pub(crate) fn root_tree(archive: impl Read, rootfs: &Rootfs) -> Result<(), UnpackError> {
    let mut archive = tar::Archive::new(archive);
    unpack_root(&mut archive, rootfs)?;
    only_zeros(archive.into_inner())
}

fn unpack_root<R: Read>(archive: &mut tar::Archive<R>, rootfs: &Rootfs) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker::new(rootfs, LIMITS);
    let mut headers = Headers::of(archive)?;
    while let Some((header, mut content)) = headers.next()? {
        let path = inside(&header.path)?;
        let hidden = MOUNT_POINTS.iter().any(|point| path.starts_with(point) && path != Path::new(point));
        if !hidden {
            unpacker.add(&path, &header, &mut content)?;
        }
    }
    Ok(())
}

/// What stands behind the end of an archive is padding or an attempt to hide something.
pub(crate) fn only_zeros(mut rest: impl Read) -> Result<(), UnpackError> {
    let mut block = [0; 8192];
    loop {
        match rest.read(&mut block).map_err(UnpackError::Read)? {
            0 => return Ok(()),
            read if block[..read].iter().any(|byte| *byte != 0) => return Err(UnpackError::End),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_only_when_it_stays_inside() {
        for (path, inside_path) in [("./a/b", "a/b"), ("a/b/", "a/b"), ("./", ""), (".", ""), ("..a", "..a")]
        {
            assert_eq!(inside(path.as_bytes()).unwrap(), Path::new(inside_path), "{path}");
        }
        for path in ["", "/", "/etc", "..", "a/..", "../a", "a//b", "a/./b", ".//a", "a/../../b", "a\0b"] {
            assert!(inside(path.as_bytes()).is_err(), "{path:?}");
        }
    }
}

//! A root file system as a canonical list: every entry with all that counts, in one order, and nothing that does
//! not (times, inode numbers). The image's digest is taken over its listing, and `--verify` compares listings.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use serde::Serialize;

use crate::error::At;
use crate::{Digest, IoError};

/// One entry of a tree.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Relative to the root; the root itself is the empty path.
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    /// Those that belong to the content, and those that no image may have. What a host's security module adds
    /// to every file is neither.
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File {
        size: u64,
    },
    Symlink {
        target: PathBuf,
    },
    /// Another name of a file that comes earlier.
    HardLink {
        first: PathBuf,
    },
    /// A device, fifo or socket, by what it is called.
    Special(&'static str),
}

/// A tree that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// The first place where a tree is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// An entry that should be there.
    #[error("{path} is missing")]
    Missing {
        /// Its path in the image.
        path: String,
    },
    /// An entry that should not be there.
    #[error("{path} was added")]
    Added {
        /// Its path in the image.
        path: String,
    },
    /// An entry that is not what it was.
    #[error("{path} was changed: expected `{expected}`, found `{found}`")]
    Changed {
        /// Its path in the image.
        path: String,
        /// Type, mode, owner, group, size and digest or target, as built.
        expected: String,
        /// The same, as it is now.
        found: String,
    },
}

/// Reads a tree, parents before children, each directory's entries by name. Below `barren` directories nothing is read.
pub(crate) fn read(root: &Path, barren: &[&str]) -> Result<Vec<Entry>, TreeError> {
    let mut walk = Walk { root, barren, entries: Vec::new(), first_names: HashMap::new() };
    walk.visit(Path::new(""))?;
    Ok(walk.entries)
}

struct Walk<'a> {
    root: &'a Path,
    barren: &'a [&'a str],
    entries: Vec<Entry>,
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &Path) -> Result<(), TreeError> {
        let full = self.root.join(path);
        let meta = fs::symlink_metadata(&full).at("look at", &full)?;
        let kind = self.kind(path, &full, &meta)?;
        let descend = kind == Kind::Directory && !self.barren.iter().any(|barren| path == Path::new(barren));
        self.entries.push(Entry {
            kind,
            mode: meta.permissions().mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: meta.mtime(),
            xattrs: xattrs(&full)?,
            path: path.to_owned(),
        });
        if !descend {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&full).at("list", &full)? {
            names.push(entry.at("list", &full)?.file_name());
        }
        names.sort();
        names.into_iter().try_for_each(|name| self.visit(&path.join(name)))
    }

    fn kind(&mut self, path: &Path, full: &Path, meta: &Metadata) -> Result<Kind, TreeError> {
        let kind = meta.file_type();
        Ok(if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            Kind::Symlink { target: fs::read_link(full).at("read the link", full)? }
        } else if kind.is_file() {
            let first = (meta.nlink() > 1)
                .then(|| self.first_names.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned()));
            match first {
                Some(first) if first != path => Kind::HardLink { first: first.clone() },
                _ => Kind::File { size: meta.size() },
            }
        } else if kind.is_block_device() {
            Kind::Special("a block device")
        } else if kind.is_char_device() {
            Kind::Special("a character device")
        } else if kind.is_fifo() {
            Kind::Special("a fifo")
        } else {
            Kind::Special("a socket")
        })
    }
}

/// Whether an extended attribute is part of an image's content. `user.overlay.` would speak to the kernel.
pub(crate) fn is_content(xattr: &OsStr) -> bool {
    let name = xattr.as_bytes();
    name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
}

/// Whether an extended attribute is something that a host's security module gives to every file by itself.
fn is_the_hosts(xattr: &OsStr) -> bool {
    let name = xattr.as_bytes();
    name.starts_with(b"security.") && name != b"security.capability"
}

fn xattrs(path: &Path) -> Result<Vec<(OsString, Vec<u8>)>, IoError> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length.at("list the extended attributes of", path)?,
    };
    let names =
        names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(OsStr::from_bytes);
    let mut found = Vec::new();
    for name in names.filter(|name| !is_the_hosts(name)) {
        let mut value = vec![0; 64 << 10];
        let length =
            rustix::fs::lgetxattr(path, name, &mut value[..]).at("read an extended attribute of", path)?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    found.sort();
    Ok(found)
}

/// The canonical listing, one line an entry, with the digest of every file. Reads all bytes, on all cores.
pub(crate) fn listing(root: &Path, entries: &[Entry]) -> Result<String, TreeError> {
    let next = Mutex::new(entries.iter().enumerate());
    let lines = Mutex::new(vec![String::new(); entries.len()]);
    let work = || {
        // The lock is held to take an entry, never while one is hashed.
        while let Some((index, entry)) = next.lock().expect("no holder panics").next() {
            let line = line(root, entry)?;
            lines.lock().expect("no holder panics")[index] = line;
        }
        Ok::<_, TreeError>(())
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("hashing does not panic"))
    })?;
    Ok(lines.into_inner().expect("no holder panics").concat())
}

fn line(root: &Path, entry: &Entry) -> Result<String, TreeError> {
    let (letter, rest) = match &entry.kind {
        Kind::Directory => ('d', String::new()),
        Kind::File { .. } => {
            let full = root.join(&entry.path);
            let file = File::open(&full).at("open", &full)?;
            // Not the size that the walk saw: what is hashed is what is there now.
            let size = file.metadata().at("look at", &full)?.len();
            ('f', format!(" {size} {}", Digest::of_reader(file).at("read", &full)?))
        }
        Kind::Symlink { target } => ('l', format!(" {}", escaped(target.as_os_str()))),
        Kind::HardLink { first } => ('h', format!(" /{}", escaped(first.as_os_str()))),
        Kind::Special(what) => ('s', format!(" {}", escaped(OsStr::new(what)))),
    };
    let Entry { mode, uid, gid, .. } = entry;
    let mut line = format!("/{} {letter} {mode:04o} {uid} {gid}{rest}", escaped(entry.path.as_os_str()));
    for (name, value) in &entry.xattrs {
        let _ = write!(line, " {}={}", escaped(name), Digest::of(value));
    }
    line.push('\n');
    Ok(line)
}

/// No space and no newline is left in it, so a line has one reading only.
pub(crate) fn escaped(name: &OsStr) -> String {
    name.as_bytes().escape_ascii().to_string().replace(' ', "\\x20")
}

/// The first difference between two listings.
pub(crate) fn difference(expected: &str, found: &str) -> Option<Difference> {
    let path = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let rest = |line: &str| line.split_once(' ').map_or_else(String::new, |(_, rest)| rest.to_owned());
    let mut pairs = expected.lines().map(Some).chain([None]).zip(found.lines().map(Some).chain([None]));
    match pairs.find(|(expected, found)| expected != found)? {
        (Some(old), Some(new)) if path(old) == path(new) => {
            Some(Difference::Changed { path: path(old), expected: rest(old), found: rest(new) })
        }
        (Some(old), new) if new.is_none_or(|_| !found.lines().any(|line| path(line) == path(old))) => {
            Some(Difference::Missing { path: path(old) })
        }
        (_, Some(new)) => Some(Difference::Added { path: path(new) }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let old = "/ d\n/a f 1\n/b f 2\n";
        let changed = Difference::Changed { path: "/a".into(), expected: "f 1".into(), found: "f 9".into() };
        assert_eq!(difference(old, "/ d\n/a f 9\n/b f 2\n"), Some(changed));
        assert_eq!(difference(old, "/ d\n/b f 2\n"), Some(Difference::Missing { path: "/a".into() }));
        assert_eq!(difference(old, "/ d\n/a f 1\n"), Some(Difference::Missing { path: "/b".into() }));
        assert_eq!(
            difference(old, "/ d\n/a f 1\n/aa f\n/b f 2\n"),
            Some(Difference::Added { path: "/aa".into() })
        );
        assert_eq!(
            difference(old, "/ d\n/a f 1\n/b f 2\n/c f\n"),
            Some(Difference::Added { path: "/c".into() })
        );
        assert_eq!(difference(old, old), None);
    }

    #[test]
    fn a_name_cannot_forge_another_line_or_field() {
        assert_eq!(escaped(OsStr::new("a b\n/c d\\x20")), "a\\x20b\\n/c\\x20d\\\\x20");
    }
}

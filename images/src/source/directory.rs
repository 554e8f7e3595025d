//! A root file system that is there already: a directory of the host, copied, or another image, shared.

use std::fs::File;
use std::path::Path;

use super::SourceError;
use crate::Digest;
use crate::error::At;
use crate::lint::{self, MOUNT_POINTS};
use crate::rootfs::{Links, Owned, Rootfs};
use crate::tree::{self, Entry, Kind};

/// What lies below the mount points is never looked at: it may be a live `/proc`.
fn entries(from: &Path) -> Result<Vec<Entry>, SourceError> {
    let entries = tree::read(from, MOUNT_POINTS)?;
    let findings = lint::unmendable(&entries);
    if findings.is_empty() { Ok(entries) } else { Err(SourceError::Unfit(findings)) }
}

pub(super) fn fingerprint(from: &Path) -> Result<Digest, SourceError> {
    Ok(Digest::of(tree::listing(from, &entries(from)?)?.as_bytes()))
}

pub(super) fn copy(from: &Path, root: &Path) -> Result<(), SourceError> {
    let rootfs = Rootfs::open(root, Links::Refuse).at("open", root)?;
    for entry in entries(from)? {
        let (path, full) = (&entry.path, from.join(&entry.path));
        match &entry.kind {
            Kind::File { .. } => {
                let mut file = File::open(&full).at("open", &full)?;
                rootfs.file(path, &mut file, owned(&entry)).at("copy", &full)?;
            }
            Kind::HardLink { first } => {
                rootfs.hard_link(path, first).at("copy", &full)?;
                continue;
            }
            _ => shape(&rootfs, &entry, &full)?,
        }
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| tree::is_content(name)) {
            rootfs.set_xattr(path, name, value).at("copy an extended attribute of", &full)?;
        }
        // Needed until the bytecode of Python has been compared with its source.
        if entry.kind != Kind::Directory {
            rootfs.set_mtime(path, entry.mtime).at("set the time of", &full)?;
        }
    }
    Ok(())
}

/// The same files under other names: an image's bytes never change, so two images can have them.
pub(super) fn share(from: &Path, root: &Path) -> Result<(), SourceError> {
    let rootfs = Rootfs::open(root, Links::Refuse).at("open", root)?;
    for entry in entries(from)? {
        let full = from.join(&entry.path);
        match &entry.kind {
            Kind::File { .. } | Kind::HardLink { .. } => {
                rootfs.share(&entry.path, &full).at("share", &full)?;
            }
            _ => shape(&rootfs, &entry, &full)?,
        }
    }
    Ok(())
}

fn shape(rootfs: &Rootfs, entry: &Entry, full: &Path) -> Result<(), SourceError> {
    let made = match &entry.kind {
        Kind::Directory => rootfs.directory(&entry.path, owned(entry)),
        Kind::Symlink { target } => rootfs.symlink(&entry.path, target, entry.uid, entry.gid),
        Kind::File { .. } | Kind::HardLink { .. } | Kind::Special(_) => Ok(()),
    };
    Ok(made.at("copy", full)?)
}

fn owned(entry: &Entry) -> Owned {
    Owned { mode: entry.mode, uid: entry.uid, gid: entry.gid }
}

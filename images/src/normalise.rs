//! Makes any root file system into one that the tiers can use, and the same content into the same image: mount
//! points, the job's user, added files, the agent, no privileges, one time for everything.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use agent::message::AGENT_PATH;

use crate::definition::ImagePath;
use crate::error::At;
use crate::lint::MOUNT_POINTS;
use crate::rootfs::{Links, Owned, Rootfs};
use crate::tree::{self, Entry, Kind, TreeError};
use crate::{AGENT, ImageConfig, IoError};

/// Every file's modification time: the first second of 2025. Not 0, which archivers and build tools take for unset.
pub(crate) const MTIME: i64 = 1_735_689_600;

/// The name of the job's user and group, where the image has none for their ids.
const JOB_NAME: &str = "job";

/// Brings the tree below `root` into the form that [`crate::lint`] asks for, as far as it can be mended.
pub(crate) fn normalise(
    root: &Path,
    config: &ImageConfig,
    files: &BTreeMap<ImagePath, String>,
) -> Result<(), TreeError> {
    let rootfs = Rootfs::open(root, Links::Inside).at("open", root)?;
    mount_points(&rootfs, config)?;
    accounts(&rootfs, config)?;
    for (path, text) in files {
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        let path = Path::new(path.relative());
        rootfs.replace(path, text.as_bytes(), Owned::root(mode)).at("add", root.join(path))?;
    }
    place_agent(&rootfs)?;

    let entries = tree::read(root, &[])?;
    drop_privileges(&rootfs, &entries)?;
    keep_bytecode(&rootfs, &entries)?;
    same_times(&rootfs, &entries)
}

/// What an image has below a mount point would never be seen, and in `/dev` it could be a symlink or a node.
fn mount_points(rootfs: &Rootfs, config: &ImageConfig) -> Result<(), IoError> {
    for name in MOUNT_POINTS {
        let (path, full) = (Path::new(name), rootfs.path().join(name));
        if full.is_symlink() {
            // Left as it is for the lint to name: whoever made it meant something by it.
            continue;
        }
        rootfs.remove(path).at("empty", &full)?;
        let mode = if *name == "tmp" { 0o1777 } else { 0o755 };
        rootfs.directory(path, Owned::root(mode)).at("make", &full)?;
    }
    let path = Path::new(config.workdir.trim_start_matches('/'));
    let full = rootfs.path().join(path);
    if full.is_symlink() {
        return Ok(());
    }
    rootfs.parents(path).at("make the parents of", &full)?;
    let owned = Owned { mode: 0o755, uid: config.user, gid: config.group };
    rootfs.directory(path, owned).at("make", &full)
}

/// Programs ask for the name and home of who they are, so the job's ids must be known.
fn accounts(rootfs: &Rootfs, config: &ImageConfig) -> Result<(), IoError> {
    let ImageConfig { user, group, workdir, .. } = config;
    let passwd = format!("{JOB_NAME}:x:{user}:{group}:{JOB_NAME}:{workdir}:/bin/sh");
    account(rootfs, Path::new("etc/passwd"), *user, &passwd)?;
    account(rootfs, Path::new("etc/group"), *group, &format!("{JOB_NAME}:x:{group}:"))
}

fn account(rootfs: &Rootfs, path: &Path, id: u32, line: &str) -> Result<(), IoError> {
    let full = rootfs.path().join(path);
    let old = match rootfs.read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read.at("read", &full)?,
    };
    let old = String::from_utf8_lossy(&old);
    let field = |line: &str, index: usize| line.split(':').nth(index).map(str::to_owned);
    if old.lines().any(|line| field(line, 2) == Some(id.to_string())) {
        return Ok(());
    }
    let mut text = String::new();
    for kept in old.lines().filter(|line| field(line, 0).as_deref() != Some(JOB_NAME)).chain([line]) {
        text.push_str(kept);
        text.push('\n');
    }
    rootfs.replace(path, text.as_bytes(), Owned::root(0o644)).at("write", &full)
}

fn place_agent(rootfs: &Rootfs) -> Result<(), IoError> {
    let path = Path::new(&AGENT_PATH[1..]);
    let full = rootfs.path().join(path);
    let folder = path.parent().unwrap_or(path);
    rootfs.remove(folder).at("empty", &full)?;
    rootfs.directory(folder, Owned::root(0o555)).at("make", &full)?;
    rootfs.replace(path, AGENT, Owned::root(0o555)).at("write", &full)
}

/// Only what differs is touched here and below: the bytes of an image that this one builds on are shared.
fn drop_privileges(rootfs: &Rootfs, entries: &[Entry]) -> Result<(), IoError> {
    for entry in entries {
        let full = rootfs.path().join(&entry.path);
        if entry.mode & 0o6000 != 0 && matches!(entry.kind, Kind::File { .. } | Kind::Directory) {
            rootfs.set_mode(&entry.path, entry.mode & 0o1777).at("clear the setuid bit of", &full)?;
        }
        for (name, _) in entry.xattrs.iter().filter(|(name, _)| !tree::is_content(name)) {
            rootfs.remove_xattr(&entry.path, name).at("clear an extended attribute of", &full)?;
        }
    }
    Ok(())
}

/// Python trusts compiled bytecode by its source's time, which is about to change: the time inside is changed with
/// it where the two agree, or every job would compile the standard library again.
fn keep_bytecode(rootfs: &Rootfs, entries: &[Entry]) -> Result<(), IoError> {
    let times: HashMap<&Path, i64> =
        entries.iter().map(|entry| (entry.path.as_path(), entry.mtime)).collect();
    for entry in entries {
        let compiled =
            entry.path.extension() == Some(OsStr::new("pyc")) && matches!(entry.kind, Kind::File { .. });
        let source = compiled.then(|| source_of(&entry.path)).flatten();
        let Some(time) = source.and_then(|source| times.get(source.as_path())) else { continue };
        let full = rootfs.path().join(&entry.path);
        let mut bytes = rootfs.read(&entry.path).at("read", &full)?;
        // Magic, flags (0: checked by time and size), time, size: PEP 552.
        let by_time =
            bytes.get(4..12).is_some_and(|b| b[..4] == [0; 4] && b[4..] == (*time as u32).to_le_bytes());
        if by_time && *time != MTIME {
            bytes[8..12].copy_from_slice(&(MTIME as u32).to_le_bytes());
            let owned = Owned { mode: entry.mode, uid: entry.uid, gid: entry.gid };
            rootfs.replace(&entry.path, &bytes, owned).at("write", &full)?;
            rootfs.set_mtime(&entry.path, MTIME).at("set the time of", &full)?;
        }
    }
    Ok(())
}

/// `a/__pycache__/b.cpython-311.pyc` → `a/b.py`
fn source_of(compiled: &Path) -> Option<PathBuf> {
    let folder = compiled.parent().filter(|folder| folder.ends_with("__pycache__"))?.parent()?;
    let module = compiled.file_name()?.to_str()?.split('.').next()?;
    Some(folder.join(module).with_extension("py"))
}

/// Gives everything the same modification time.
pub(crate) fn same_times(rootfs: &Rootfs, entries: &[Entry]) -> Result<(), TreeError> {
    for entry in entries.iter().filter(|entry| entry.mtime != MTIME || entry.kind == Kind::Directory) {
        rootfs.set_mtime(&entry.path, MTIME).at("set the time of", rootfs.path().join(&entry.path))?;
    }
    Ok(())
}

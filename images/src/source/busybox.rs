//! The smallest image: one static program, a link for each of its commands, and the few files of `/etc`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{SourceError, program};
use crate::error::At;
use crate::rootfs::{Links, Owned, Rootfs};

const ETC: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "sandbox\n"),
    ("etc/machine-id", ""),
];

const FOLDERS: &[&str] = &["bin", "etc", "root", "usr", "var"];

/// Scripts name their interpreter by any of these.
const LINKS: &[(&str, &str)] =
    &[("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/tmp", "../tmp")];

/// The host's busybox.
pub(super) fn find() -> Result<PathBuf, SourceError> {
    let path = program("busybox", "busybox-static")?;
    let bytes = fs::read(&path).at("read", &path)?;
    if has_interpreter(&bytes) { Err(SourceError::DynamicBusybox { path }) } else { Ok(path) }
}

pub(super) fn fill(root: &Path) -> Result<(), SourceError> {
    let busybox = find()?;
    let rootfs = Rootfs::open(root, Links::Refuse).at("open", root)?;
    for folder in FOLDERS {
        rootfs.directory(Path::new(folder), Owned::root(0o755)).at("make", root.join(folder))?;
    }
    let mut program = File::open(&busybox).at("open", &busybox)?;
    let place = Path::new("bin/busybox");
    rootfs.file(place, &mut program, Owned::root(0o755)).at("write", root.join(place))?;
    for (link, target) in LINKS {
        rootfs.symlink(Path::new(link), Path::new(target), 0, 0).at("make the link", root.join(link))?;
    }
    for (path, text) in ETC {
        rootfs.replace(Path::new(path), text.as_bytes(), Owned::root(0o644)).at("write", root.join(path))?;
    }
    for command in commands(&busybox)? {
        let link = Path::new("bin").join(command);
        rootfs.symlink(&link, Path::new("busybox"), 0, 0).at("make the link", root.join(&link))?;
    }
    Ok(())
}

fn commands(busybox: &Path) -> Result<Vec<String>, SourceError> {
    let output = Command::new(busybox).arg("--list").output().at("run", busybox)?;
    if !output.status.success() {
        let tail = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(SourceError::Tool { tool: "busybox --list", status: output.status.to_string(), tail });
    }
    let names = String::from_utf8_lossy(&output.stdout);
    let plain = |name: &&str| *name != "busybox" && !name.is_empty() && !name.contains('/');
    Ok(names.lines().filter(plain).map(str::to_owned).collect())
}

/// Whether a 64-bit little-endian ELF program asks for a dynamic loader. Anything else is the host's affair.
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let word = |at: usize| elf.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let table = elf.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (Some(table), Some(size), Some(count)) = (table, word(54), word(56)) else { return false };
    (0..count).any(|index| {
        let at = table as usize + index * size;
        elf.get(at..at + 4).is_some_and(|kind| kind == PT_INTERP.to_le_bytes())
    })
}

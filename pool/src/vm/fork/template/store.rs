//! Templates on disk: written once, never trusted.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
};

use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Machine, Template, VmError, memory_file, reopened};
use crate::{failpoint, vm::hex};

/// Behind the name of one that is being written.
const UNFINISHED: &str = "unfinished";

/// Changes whenever a template that was made before would be another today.
const VERSION: u32 = 1;

const PAGE: usize = 4096;

/// Where a template lies, and what it must have been made with.
#[derive(Debug, Clone)]
pub(super) struct Place {
    templates: PathBuf,
    shape: String,
    size: u64,
    made_with: String,
}

/// What a machine's memory knows of the host that it was booted on.
struct Host {
    cpu: String,
    kernel: String,
}

/// What is written beside a template's bytes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Everything that it depends on.
    made_with: String,
    /// Over memory and state.
    digest: String,
}

impl Place {
    pub(super) fn of(machine: &Machine) -> Self {
        Self::on(&Host { cpu: cpu(), kernel: kernel() }, machine)
    }

    fn on(host: &Host, machine: &Machine) -> Self {
        let made_with =
            [host.cpu.as_str(), &host.kernel, &machine.qemu.identity, &machine.command_line()].join("\0");
        Self {
            templates: machine.form.templates.clone(),
            shape: machine.shape(),
            size: machine.memory,
            made_with: hex(&Sha256::digest(made_with.as_bytes())),
        }
    }

    fn folder(&self) -> PathBuf {
        self.templates.join(&self.shape)
    }

    fn open_lock(&self) -> Result<File, VmError> {
        lock_of(&self.folder()).map_err(VmError::template("lock", self.folder()))
    }

    /// Waits until nobody else makes or reads this one.
    pub(super) fn lock_to_make(&self) -> Result<File, VmError> {
        let lock = self.open_lock()?;
        lock.lock().map_err(VmError::template("lock", self.folder()))?;
        Ok(lock)
    }

    /// Reads the template, while nobody makes it.
    pub(super) fn read(&self) -> Result<Option<Template>, VmError> {
        let lock = self.open_lock()?;
        lock.lock_shared().map_err(VmError::template("lock", self.folder()))?;
        self.load()
    }

    /// The template, if it is there and good. The lock is held.
    pub(super) fn load(&self) -> Result<Option<Template>, VmError> {
        let folder = self.folder();
        let record = match fs::read(folder.join("template.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(VmError::template("read", &folder))?,
        };
        let Ok(record) = serde_json::from_slice::<Record>(&record) else { return Ok(None) };
        if record.version != VERSION || record.made_with != self.made_with {
            tracing::info!(template = %folder.display(), "made by another program or on another CPU: made anew");
            return Ok(None);
        }
        let template = self.read_bytes(&folder).map_err(VmError::template("read", &folder))?;
        // Sealed first: between the look and the use nothing can change.
        let found = digest_of(&template).map_err(VmError::template("read", &folder))?;
        if found != record.digest {
            tracing::warn!(template = %folder.display(), "its bytes are not what was made: made anew");
            return Ok(None);
        }
        Ok(Some(template))
    }

    fn read_bytes(&self, folder: &Path) -> io::Result<Template> {
        let memory = memory_file("mayfly-memory", self.size)?;
        copy(&File::open(folder.join("memory"))?, &File::from(memory.try_clone()?))?;
        let state = File::open(folder.join("state"))?;
        let copied = memory_file("mayfly-state", state.metadata()?.len())?;
        copy(&state, &File::from(copied.try_clone()?))?;
        Template { memory, state: copied }.seal()
    }

    /// Writes the template for those who come later. The lock is held.
    pub(super) fn write(&self, template: &Template) -> Result<(), VmError> {
        let folder = self.folder();
        let unfinished = folder.with_extension(UNFINISHED);
        let put = self.put(template, &folder, &unfinished);
        if put.is_err() {
            // Whatever took the disk's room, it is not this.
            let _ = forget(&unfinished);
        }
        put.map_err(VmError::template("keep", &folder))
    }

    fn put(&self, template: &Template, folder: &Path, unfinished: &Path) -> io::Result<()> {
        forget(folder)?;
        forget(unfinished)?;
        DirBuilder::new().mode(0o700).create(unfinished)?;
        for (name, file) in [("memory", &template.memory), ("state", &template.state)] {
            let (from, to) = (reopened(file)?, File::create_new(unfinished.join(name))?);
            to.set_len(from.metadata()?.len())?;
            copy(&from, &to)?;
        }
        failpoint::pass("vm-written");
        let digest = digest_of(template)?;
        let record = Record { version: VERSION, made_with: self.made_with.clone(), digest };
        File::create_new(unfinished.join("template.json"))?.write_all(&serde_json::to_vec(&record)?)?;
        fs::rename(unfinished, folder)
    }
}

/// The lock of a template, or of one that is being written.
fn lock_of(folder: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(folder.with_extension("lock"))
}

/// Takes away what processes have begun to write and died of.
pub(crate) fn forget_unfinished(templates: &Path) -> io::Result<()> {
    for entry in fs::read_dir(templates)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            let lock = lock_of(&path)?;
            // Whoever holds it writes.
            if lock.try_lock().is_ok() {
                forget(&path)?;
            }
        }
    }
    Ok(())
}

fn forget(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies all pages in which there is something to the same places of another file. What is past its end fails.
fn copy(from: &File, to: &File) -> io::Result<()> {
    pages(from, |at, page| to.write_all_at(page, at))
}

/// The digest of a template: of every page in which there is something, and where it lies.
fn digest_of(template: &Template) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for file in [&template.memory, &template.state] {
        let file = reopened(file)?;
        hasher.update(file.metadata()?.len().to_le_bytes());
        pages(&file, |at, page| {
            hasher.update(at.to_le_bytes());
            hasher.update(page);
            Ok(())
        })?;
    }
    Ok(hex(&hasher.finalize()))
}

/// Gives every page of a file that is not all zeroes, and skips its holes.
fn pages(mut file: &File, mut with: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut buffer = vec![0; 256 * PAGE];
    let mut at = 0;
    while at < length {
        // Past the last data there is a hole to the end.
        let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) else { break };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        at = data - data % PAGE as u64;
        while at < hole {
            file.seek(io::SeekFrom::Start(at))?;
            let wanted = (hole - at).min(buffer.len() as u64) as usize;
            file.read_exact(&mut buffer[..wanted])?;
            for page in buffer[..wanted].chunks(PAGE) {
                if page.iter().any(|byte| *byte != 0) {
                    with(at, page)?;
                }
                at += page.len() as u64;
            }
        }
    }
    Ok(())
}

/// What kind of CPU this is: a machine's memory knows what its CPU can.
fn cpu() -> String {
    const TELLING: [&str; 5] = ["vendor_id", "cpu family", "model", "stepping", "flags"];
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|line| {
        line.split_once(':')
            .is_some_and(|(name, _)| TELLING.contains(&name.trim()) || name.trim() == "microcode")
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn place(folder: &Path) -> Place {
        Place {
            templates: folder.to_owned(),
            shape: "tcg-1cpu-1mib".to_owned(),
            size: 1024 * 1024,
            made_with: "this program".to_owned(),
        }
    }

    fn template() -> Template {
        let filled = |name, size, at, byte| -> OwnedFd {
            let file = File::from(memory_file(name, size).unwrap());
            file.write_all_at(&[byte; 5000], at).unwrap();
            file.into()
        };
        let (memory, state) = (filled("m", 1024 * 1024, 70_000, 7), filled("s", 9000, 100, 9));
        Template { memory, state }.seal().unwrap()
    }

    #[test]
    fn what_was_written_is_read_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (place, made) = (place(folder.path()), template());
        assert!(place.read().unwrap().is_none());
        place.write(&made).unwrap();
        let read = place.read().unwrap().unwrap();
        assert_eq!(digest_of(&read).unwrap(), digest_of(&made).unwrap());
    }

    #[test]
    fn a_template_of_another_program_or_cpu_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let old = place(folder.path());
        old.write(&template()).unwrap();
        let new = Place { made_with: "another program".to_owned(), ..old.clone() };
        assert!(new.read().unwrap().is_none());
        // It is replaced, and then the old one is gone.
        new.write(&template()).unwrap();
        assert!(new.read().unwrap().is_some() && old.read().unwrap().is_none());
    }

    #[test]
    fn another_cpu_kernel_or_qemu_and_another_machine_want_another_template() {
        let host = |cpu: &str, kernel: &str| Host { cpu: cpu.to_owned(), kernel: kernel.to_owned() };
        let machine = crate::vm::machine::tests::emulated();
        let mut other_qemu = machine.clone();
        other_qemu.qemu.identity = "another".to_owned();
        let mut larger = machine.clone();
        larger.cpus += 1;
        let places = [
            Place::on(&host("a", "6.1"), &machine),
            Place::on(&host("b", "6.1"), &machine),
            Place::on(&host("a", "6.2"), &machine),
            Place::on(&host("a", "6.1"), &other_qemu),
            Place::on(&host("a", "6.1"), &larger),
        ];
        let different: std::collections::BTreeSet<_> = places.iter().map(|place| &place.made_with).collect();
        assert_eq!(different.len(), places.len());
        assert_eq!(places[0].made_with, Place::on(&host("a", "6.1"), &machine).made_with);
        assert!(!cpu().is_empty() && !kernel().is_empty());
    }

    #[test]
    fn one_flipped_byte_anywhere_makes_it_no_template() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        for (name, at) in [("memory", 70_100), ("memory", 5), ("state", 101), ("state", 8999)] {
            place.write(&template()).unwrap();
            assert!(place.read().unwrap().is_some());
            let path = place.folder().join(name);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(place.read().unwrap().is_none(), "{name} at {at}");
        }
    }

    #[test]
    fn a_record_that_was_torn_makes_it_no_template() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        place.write(&template()).unwrap();
        fs::write(place.folder().join("template.json"), "{\"version\":").unwrap();
        assert!(place.read().unwrap().is_none());
    }
}

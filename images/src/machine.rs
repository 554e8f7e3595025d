//! The form in which a virtual machine takes an image: a kernel, a first root file system with the agent, and the image's
//! files as a read-only disk.
//!
//! It is made with the image where that is asked for, else when the first machine wants it, and kept beside the image: a
//! host which makes no machine needs neither the tools nor the time. What it is made from decides its digest:
//!
//! ```text
//! kernels/HEX/vmlinuz, NN-NAME.ko     a kernel, and its drivers in the order of their needs
//! kernels/debian                      the digest of the one that Debian's archive gave
//! sha256/HEX/forms/HEX/               initramfs, disk.erofs; nothing of these ever changes
//! sha256/HEX/forms/HEX/templates/     what a host keeps of machines that have begun: a cache of its own
//! ```

mod collect;
mod initramfs;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use self::collect::{CollectedForm, CollectedKernel, CollectedMachines};
pub use self::kernel::{KernelFrom, Prepared as Kernel};
use crate::digest::Hasher;
use crate::error::At;
use crate::source::program;
use crate::{Digest, Image, IoError, Progress, SourceError, Store, StoreError, agent_digest, rootfs};

/// Changes whenever the same image, kernel and agent would give other bytes.
const FORM_VERSION: u32 = 1;

const DISK: &str = "disk.erofs";
const INITRAMFS: &str = "initramfs";
const TEMPLATES: &str = "templates";

/// An image as a machine takes it. The image's own hold keeps it.
#[derive(Debug, Clone)]
pub struct MachineForm {
    /// Over everything that it was made from.
    pub digest: Digest,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The kernel's release, such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The first root file system: the agent and the kernel's drivers.
    pub initramfs: PathBuf,
    /// The image's files: an EROFS.
    pub disk: PathBuf,
    /// A directory for what a host keeps of machines that were made of this. Goes with the form.
    pub templates: PathBuf,
}

/// An image could not be given the form that a machine takes.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A program that is needed.
    #[error(transparent)]
    Tool(#[from] SourceError),
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The kernel has neither the driver nor a module of it.
    #[error("the kernel {release} has no {module}, neither built in nor below {}", modules.display())]
    Driver {
        /// The kernel's release.
        release: String,
        /// The driver.
        module: String,
        /// Where its modules are.
        modules: PathBuf,
    },
    /// Debian's archive gives no kernel.
    #[error("Debian's kernel cannot be had: {0}")]
    Debian(String),
}

impl MachineError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Tool(error) => error.hint(),
            Self::Driver { .. } | Self::Debian(_) => Some(
                "name a kernel and the directory of its modules in the configuration: vm.kernel, vm.modules"
                    .to_owned(),
            ),
            Self::Io(_) => None,
        }
    }
}

impl Store {
    /// Fetches Debian's cloud kernel, even if one is there: a later form has the newest.
    pub fn fetch_debian_kernel(&self, progress: &mut dyn Progress) -> Result<(), MachineError> {
        kernel::fetch_again(self, progress)
    }

    /// The machine's form of an image, made if it is not there.
    pub fn machine_form(
        &self,
        image: &Image,
        kernel: &KernelFrom,
        progress: &mut dyn Progress,
    ) -> Result<MachineForm, MachineError> {
        let kernel = kernel::prepare(self, kernel, progress)?;
        let digest = digest_of(&image.digest, &kernel.digest);
        let folder = forms_of(image.rootfs.parent().unwrap_or(&image.rootfs)).join(digest.hex());
        let form = MachineForm {
            digest,
            kernel: kernel.vmlinuz(),
            release: kernel.release.clone(),
            initramfs: folder.join(INITRAMFS),
            disk: folder.join(DISK),
            templates: folder.join(TEMPLATES),
        };
        if folder.exists() {
            return Ok(form);
        }
        // Whoever makes the same waits here, and then finds it made.
        let _making = self.lock_name(&image.name, progress)?;
        if !folder.exists() {
            progress.step(&format!("making the machine's form of {}", image.name));
            make(self, image, &kernel, &folder)?;
        }
        Ok(form)
    }
}

/// The directories of all forms of a store in which hosts keep what they will.
///
/// Those that come or go meanwhile may be missing or gone.
#[must_use]
pub fn machine_templates(images: &Path) -> Vec<PathBuf> {
    let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let forms = below(images.join("sha256")).flat_map(|image| below(image.join("forms")));
    forms.map(|form| form.join(TEMPLATES)).filter(|path| path.is_dir()).collect()
}

/// Looks for the programs that make the form.
pub fn machine_tools() -> Result<(), SourceError> {
    mkfs().map(drop)
}

fn mkfs() -> Result<PathBuf, SourceError> {
    program("mkfs.erofs", "erofs-utils")
}

/// Where the forms of an image are, in its directory.
fn forms_of(image: &Path) -> PathBuf {
    image.join("forms")
}

fn digest_of(image: &Digest, kernel: &Digest) -> Digest {
    let mut hasher = Hasher::default();
    hasher.part(b"mayfly machine");
    hasher.part(&FORM_VERSION.to_le_bytes());
    for digest in [*image, *kernel, agent_digest()] {
        hasher.part(digest.to_string().as_bytes());
    }
    hasher.finish()
}

fn make(store: &Store, image: &Image, kernel: &Kernel, place: &Path) -> Result<(), MachineError> {
    let staging = store.stage()?;
    let folder = staging.image();
    fs::remove_dir(staging.rootfs()).at("clear", &folder)?;
    let archive = folder.join(INITRAMFS);
    fs::write(&archive, initramfs::archive(&kernel.modules()?)).at("write", &archive)?;
    disk(&image.rootfs, &folder.join(DISK))?;
    let templates = folder.join(TEMPLATES);
    fs::create_dir(&templates).at("make", &templates)?;
    rootfs::sync(&folder).at("sync", &folder)?;
    let forms = place.parent().unwrap_or(place);
    fs::create_dir_all(forms).at("make", forms)?;
    fs::rename(&folder, place).at("put into place", place)?;
    Ok(())
}

/// Uncompressed: under software emulation each byte that a guest would decompress costs more than to read it.
fn disk(root: &Path, disk: &Path) -> Result<(), MachineError> {
    let tool = mkfs()?;
    let mut mkfs = Command::new(&tool);
    // The same files give the same bytes: no time, no name, no attributes that a sandbox would ignore.
    mkfs.args(["--quiet", "-T0", "-U", "00000000-0000-0000-0000-000000000000", "-x-1"]);
    let output = mkfs.arg(disk).arg(root).stdin(Stdio::null()).output().at("run", &tool)?;
    if output.status.success() {
        return Ok(());
    }
    let tail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SourceError::Tool { tool: "mkfs.erofs", status: output.status.to_string(), tail }.into())
}

//! The kernel of machines: Debian's cloud kernel, or one that an operator names, with the drivers that it has as modules.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::MachineError;
use crate::digest::Hasher;
use crate::error::At;
use crate::source::program;
use crate::{Digest, IoError, Progress, Store, rootfs};

/// What a machine cannot do without: its bus, its port, its disk, the image's file system, a writable root.
const NEEDED: [&str; 5] = ["virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay"];

/// Names the one that was fetched last.
const DEBIAN: &str = "debian";

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KernelFrom {
    /// Debian's cloud kernel, from wherever the host's apt gets its packages. Fetched once.
    #[default]
    Debian,
    /// Files of this host.
    Files {
        /// The kernel: what a boot loader would load.
        kernel: PathBuf,
        /// The directory of its modules, such as `/lib/modules/6.1.0-56-cloud-amd64`.
        modules: PathBuf,
    },
}

/// A kernel in the store.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Over the kernel and its drivers.
    pub digest: Digest,
    /// Its release.
    pub release: String,
    folder: PathBuf,
}

impl Prepared {
    pub(super) fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Names and bytes of its drivers, in the order in which they must be loaded.
    pub(super) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>, IoError> {
        let mut modules = Vec::new();
        for entry in fs::read_dir(&self.folder).at("list", &self.folder)? {
            let path = entry.at("list", &self.folder)?.path();
            if path.extension().is_some_and(|extension| extension == "ko") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                modules.push((name, fs::read(&path).at("read", &path)?));
            }
        }
        modules.sort();
        Ok(modules)
    }
}

/// Puts a kernel into the store, if it is not there.
pub(super) fn prepare(
    store: &Store,
    from: &KernelFrom,
    progress: &mut dyn Progress,
) -> Result<Prepared, MachineError> {
    let kernels = store.kernels();
    fs::create_dir_all(&kernels).at("make", &kernels)?;
    match from {
        KernelFrom::Files { kernel, modules } => Found::read(kernel, modules)?.keep(store),
        KernelFrom::Debian => {
            let pointer = kernels.join(DEBIAN);
            if let Some(known) = known(&kernels, &pointer)? {
                return Ok(known);
            }
            let _fetching = lock(&kernels)?;
            if let Some(known) = known(&kernels, &pointer)? {
                return Ok(known);
            }
            fetch_and_adopt(store, progress)
        }
    }
}

/// Puts the kernel that Debian's archive has now into the store.
pub(super) fn fetch_again(store: &Store, progress: &mut dyn Progress) -> Result<(), MachineError> {
    let kernels = store.kernels();
    fs::create_dir_all(&kernels).at("make", &kernels)?;
    let _fetching = lock(&kernels)?;
    fetch_and_adopt(store, progress).map(drop)
}

/// The digest of the kernel that machines are made with now, if there is one. None is fetched, and none is copied.
pub(super) fn current(store: &Store, from: &KernelFrom) -> Result<Option<Digest>, MachineError> {
    let kernels = store.kernels();
    match from {
        KernelFrom::Files { kernel, modules } => Ok(Some(Found::read(kernel, modules)?.digest)),
        KernelFrom::Debian => Ok(known(&kernels, &kernels.join(DEBIAN))?.map(|known| known.digest)),
    }
}

/// The release of a kernel in the store, if it still says so.
pub(super) fn release(folder: &Path) -> String {
    fs::read_to_string(folder.join("release")).unwrap_or_default()
}

fn lock(kernels: &Path) -> Result<File, IoError> {
    let (path, lock) = lock_file(kernels)?;
    lock.lock().at("lock", &path)?;
    Ok(lock)
}

/// The same, unless one is being fetched.
pub(super) fn try_lock(store: &Store) -> Result<Option<File>, IoError> {
    let (_, lock) = lock_file(&store.kernels())?;
    Ok(lock.try_lock().is_ok().then_some(lock))
}

fn lock_file(kernels: &Path) -> Result<(PathBuf, File), IoError> {
    let path = kernels.join("lock");
    let lock = File::create(&path).at("open", &path)?;
    Ok((path, lock))
}

fn fetch_and_adopt(store: &Store, progress: &mut dyn Progress) -> Result<Prepared, MachineError> {
    progress.step("fetching Debian's cloud kernel");
    let scratch = tempfile::tempdir().at("make a folder in", std::env::temp_dir())?;
    let (kernel, modules) = fetch(scratch.path())?;
    let prepared = Found::read(&kernel, &modules)?.keep(store)?;
    store.write(&store.kernels().join(DEBIAN), format!("{}\n", prepared.digest).as_bytes())?;
    Ok(prepared)
}

fn known(kernels: &Path, pointer: &Path) -> Result<Option<Prepared>, MachineError> {
    let digest = match fs::read_to_string(pointer).at("read", pointer) {
        Err(error) if error.is_not_found() => return Ok(None),
        read => read?,
    };
    let Ok(digest) = digest.trim().parse::<Digest>() else { return Ok(None) };
    let folder = kernels.join(digest.hex());
    let path = folder.join("release");
    match fs::read_to_string(&path).at("read", &path) {
        Err(error) if error.is_not_found() => Ok(None),
        read => Ok(Some(Prepared { digest, release: read?, folder })),
    }
}

/// Unpacked and not installed: what the host itself boots is none of our business.
fn fetch(scratch: &Path) -> Result<(PathBuf, PathBuf), MachineError> {
    const META: &str = "linux-image-cloud-amd64";
    program("apt-get", "apt")?;
    let depends = run(Command::new("apt-cache").args(["depends", META]), scratch)?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.filter(|name| name.starts_with("linux-image-"));
    let package = package.ok_or_else(|| {
        MachineError::Debian(format!("apt knows no package {META}; apt-get update may help"))
    })?;
    run(
        Command::new("apt-get").args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]),
        scratch,
    )?;
    let archive = fs::read_dir(scratch).at("list", scratch)?.flatten().map(|entry| entry.path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|it| it == "deb"));
    let archive = archive.ok_or_else(|| MachineError::Debian(format!("apt-get left no {package}")))?;
    let root = scratch.join("root");
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root), scratch)?;
    let release = package.trim_start_matches("linux-image-");
    let kernel = root.join("boot").join(format!("vmlinuz-{release}"));
    let usual = root.join("lib/modules").join(release);
    let modules = if usual.exists() { usual } else { root.join("usr/lib/modules").join(release) };
    Ok((kernel, modules))
}

fn run(command: &mut Command, folder: &Path) -> Result<String, MachineError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.current_dir(folder).env("LC_ALL", "C").output().at("run", &name)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(MachineError::Debian(format!("{name}: {}: {said}", output.status)))
}

/// A kernel and the drivers that a machine needs of it, as read from files.
struct Found {
    digest: Digest,
    release: String,
    image: Vec<u8>,
    drivers: Vec<(String, Vec<u8>)>,
}

impl Found {
    fn read(kernel: &Path, modules: &Path) -> Result<Self, MachineError> {
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let image = fs::read(kernel).at("read", kernel)?;
        let drivers = Modules::below(modules, &release)?.in_order()?;
        let mut hasher = Hasher::default();
        hasher.part(release.as_bytes());
        hasher.part(&image);
        for (name, bytes) in &drivers {
            hasher.part(name.as_bytes());
            hasher.part(bytes);
        }
        Ok(Self { digest: hasher.finish(), release, image, drivers })
    }

    fn keep(self, store: &Store) -> Result<Prepared, MachineError> {
        let Self { digest, release, image, drivers } = self;
        let folder = store.kernels().join(digest.hex());
        if !folder.exists() {
            let staging = store.stage()?;
            let made = staging.rootfs();
            let mut files =
                vec![("vmlinuz".to_owned(), image), ("release".to_owned(), release.clone().into_bytes())];
            let drivers = drivers.into_iter().enumerate();
            files.extend(drivers.map(|(at, (name, bytes))| (format!("{at:02}-{name}.ko"), bytes)));
            for (name, bytes) in files {
                let path = made.join(name);
                fs::write(&path, bytes).at("write", &path)?;
            }
            rootfs::sync(&made).at("sync", &made)?;
            match fs::rename(&made, &folder) {
                // Another process was faster; equal digests are equal bytes.
                Err(_) if folder.exists() => {}
                renamed => renamed.at("put into place", &folder)?,
            }
        }
        Ok(Prepared { digest, release, folder })
    }
}

/// A kernel's modules, by the names that they have for each other.
struct Modules {
    release: String,
    folder: PathBuf,
    files: Vec<(String, PathBuf)>,
    built_in: Vec<String>,
}

impl Modules {
    fn below(folder: &Path, release: &str) -> Result<Self, MachineError> {
        let mut files = Vec::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(path) = folders.pop() {
            for entry in fs::read_dir(&path).at("list", &path)? {
                let entry = entry.at("list", &path)?;
                if entry.file_type().at("look at", &path)?.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = name_of(&entry.path()) {
                    files.push((name, entry.path()));
                }
            }
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let built_in = list.lines().filter_map(|line| name_of(Path::new(line))).collect();
        Ok(Self { release: release.to_owned(), folder: folder.to_owned(), files, built_in })
    }

    /// Each after all that it needs.
    fn in_order(&self) -> Result<Vec<(String, Vec<u8>)>, MachineError> {
        let mut loaded = Vec::new();
        NEEDED.iter().try_for_each(|module| self.load(module, &mut loaded))?;
        Ok(loaded)
    }

    fn load(&self, module: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<(), MachineError> {
        if loaded.iter().any(|(name, _)| name == module) || self.built_in.iter().any(|name| name == module) {
            return Ok(());
        }
        let Some((_, path)) = self.files.iter().find(|(name, _)| name == module) else {
            return Err(MachineError::Driver {
                release: self.release.clone(),
                module: module.to_owned(),
                modules: self.folder.clone(),
            });
        };
        let bytes = read(path)?;
        for needed in needs(&bytes) {
            self.load(&needed, loaded)?;
        }
        loaded.push((module.to_owned(), bytes));
        Ok(())
    }
}

/// The name of a module's file without its endings; the kernel does not tell `-` from `_`.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".zst").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>, IoError> {
    let mut file = File::open(path).at("open", path)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        let mut decoder = zstd::Decoder::new(file).at("decompress", path)?;
        decoder.read_to_end(&mut bytes).at("decompress", path)?;
    } else {
        file.read_to_end(&mut bytes).at("read", path)?;
    }
    Ok(bytes)
}

/// What a module says that it needs: `depends=a,b` among the strings of its `.modinfo`. An unpacked package has no
/// `modules.dep`.
fn needs(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(folder: &Path, name: &str, depends: &str) {
        fs::write(folder.join(format!("kernel/{name}.ko")), format!("ELF\0depends={depends}\0name=x\0"))
            .unwrap();
    }

    fn kernel(folder: &Path) {
        fs::create_dir(folder.join("kernel")).unwrap();
        module(folder, "virtio_ring", "");
        module(folder, "virtio", "virtio_ring");
        module(folder, "virtio_pci", "virtio,virtio_ring");
        module(folder, "virtio_console", "virtio");
        module(folder, "virtio_blk", "virtio");
        module(folder, "libcrc32c", "");
        module(folder, "erofs", "libcrc32c");
    }

    #[test]
    fn each_driver_comes_after_what_it_needs_and_what_is_built_in_does_not_come() {
        let folder = tempfile::tempdir().unwrap();
        kernel(folder.path());
        fs::write(folder.path().join("modules.builtin"), "kernel/fs/overlayfs/overlay.ko\n").unwrap();
        let order = Modules::below(folder.path(), "6.1").unwrap().in_order().unwrap();
        let names: Vec<_> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["virtio_ring", "virtio", "virtio_pci", "virtio_console", "virtio_blk", "libcrc32c", "erofs"]
        );
    }

    #[test]
    fn a_driver_that_is_nowhere_is_named_with_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        kernel(folder.path());
        let error = Modules::below(folder.path(), "6.1").unwrap().in_order().unwrap_err();
        assert!(error.to_string().starts_with("the kernel 6.1 has no overlay"), "{error}");
        assert!(error.hint().unwrap().contains("vm.kernel"));
    }
}

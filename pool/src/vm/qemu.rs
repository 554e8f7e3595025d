//! QEMU's program, and what tells one from another.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{error::VmError, settings::Vm};

const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU as it is installed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) program: PathBuf,
    /// Changes when the program does: its file's identity, size and time.
    pub(super) identity: String,
}

/// Finds QEMU. Runs nothing.
pub(crate) fn find(settings: &Vm) -> Result<Installed, VmError> {
    let program = match &settings.qemu {
        Some(program) => program.clone(),
        None => on_path().ok_or_else(|| VmError::NoQemu(PROGRAM.into()))?,
    };
    let program = fs::canonicalize(&program).map_err(|_| VmError::NoQemu(program))?;
    let meta = fs::metadata(&program).map_err(|_| VmError::NoQemu(program.clone()))?;
    if !program.starts_with("/usr") {
        return Err(VmError::QemuElsewhere(program));
    }
    let identity =
        format!("{} {} {} {}.{}", meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    Ok(Installed { program, identity })
}

fn on_path() -> Option<PathBuf> {
    let usual = ["/usr/bin", "/usr/local/bin", "/usr/libexec"].map(|folder| Path::new(folder).join(PROGRAM));
    usual.into_iter().find(|program| program.is_file())
}

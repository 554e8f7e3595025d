//! How forms and kernels leave the store that no machine is made of any more.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kernel;
use super::{KernelFrom, MachineError, digest_of, forms_of};
use crate::error::At;
use crate::{Digest, ImageName, IoError, Store, StoreError};

/// What a collection removed of what machines are made of, or would remove.
#[derive(Debug, Default, Serialize)]
pub struct CollectedMachines {
    /// Forms of another kernel or another mayfly, with the templates that hosts kept of them.
    pub forms: Vec<CollectedForm>,
    /// Kernels of which no form is made any more.
    pub kernels: Vec<CollectedKernel>,
    /// Images whose forms are not looked at, because something runs that uses them. While there are any, no kernel goes.
    pub in_use: Vec<ImageName>,
}

/// A form that is removed.
#[derive(Debug, Serialize)]
pub struct CollectedForm {
    /// The image's name.
    pub image: ImageName,
    /// Over everything that it was made from.
    pub digest: Digest,
    /// Bytes that it takes on the disk.
    pub size: u64,
}

/// A kernel that is removed.
#[derive(Debug, Serialize)]
pub struct CollectedKernel {
    /// Its release.
    pub release: String,
    /// Over the kernel and its drivers.
    pub digest: Digest,
    /// Bytes that it takes on the disk.
    pub size: u64,
}

impl Store {
    /// Removes every form that no machine would be made of with this kernel, and every other kernel. What is in use stays.
    /// With `dry_run` it only says which.
    pub fn gc_machines(&self, kernel: &KernelFrom, dry_run: bool) -> Result<CollectedMachines, MachineError> {
        if !self.kernels().exists() {
            return Ok(CollectedMachines::default());
        }
        // While one is being fetched nobody knows which it is.
        let Some(_settled) = kernel::try_lock(self)? else { return Ok(CollectedMachines::default()) };
        let current = kernel::current(self, kernel)?;
        let _lock = self.lock()?;
        let (mut collected, mut in_use) = (CollectedMachines::default(), false);
        let (mut doomed, mut held) = (Vec::new(), Vec::new());
        for digest in self.digests()? {
            match self.condemn(&digest) {
                Ok(Some(image)) => {
                    let wanted = current.as_ref().map(|kernel| digest_of(&digest, kernel));
                    for (form, path) in entries(&forms_of(&image.path))? {
                        if Some(form) != wanted {
                            let (image, size) = (image.manifest.name.clone(), size_of(&path)?);
                            collected.forms.push(CollectedForm { image, digest: form, size });
                            doomed.push((form, path));
                        }
                    }
                    // Nobody begins to use it before its forms are gone.
                    held.push(image);
                }
                Err(StoreError::InUse { .. }) => {
                    collected.in_use.extend(self.manifest(&digest).map(|manifest| manifest.name));
                    in_use = true;
                }
                // What is damaged is not what this is about.
                Ok(None) | Err(StoreError::Damaged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !in_use {
            for (digest, path) in entries(&self.kernels())? {
                if current != Some(digest) {
                    let release = kernel::release(&path);
                    collected.kernels.push(CollectedKernel { release, digest, size: size_of(&path)? });
                    doomed.push((digest, path));
                }
            }
        }
        if !dry_run {
            let gone = doomed.iter().map(|(digest, path)| self.put_aside(digest, path));
            let gone = gone.collect::<Result<Vec<_>, _>>()?;
            drop(held);
            for path in gone {
                fs::remove_dir_all(&path).at("remove", &path)?;
            }
        }
        Ok(collected)
    }
}

/// What lies in a directory under its digest.
fn entries(folder: &Path) -> Result<Vec<(Digest, PathBuf)>, IoError> {
    let listed = match fs::read_dir(folder).at("list", folder) {
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let path = entry.at("list", folder)?.path();
        let hex = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(digest) = format!("sha256:{hex}").parse() {
            found.push((digest, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Templates are full of holes: what counts is what the disk holds of them.
fn size_of(path: &Path) -> Result<u64, IoError> {
    let about = fs::symlink_metadata(path).at("look at", path)?;
    let mut size = about.blocks() * 512;
    if about.is_dir() {
        for entry in fs::read_dir(path).at("list", path)? {
            size += size_of(&entry.at("list", path)?.path())?;
        }
    }
    Ok(size)
}

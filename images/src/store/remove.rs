//! How an image leaves the store: never while it is held, and out of its place in one rename before its bytes go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Store, StoreError};
use crate::error::At;
use crate::{Digest, ImageRef, IoError, Manifest, lock};

/// What a collection removed, or would remove.
#[derive(Debug, Default, Serialize)]
pub struct Collected {
    /// Images.
    pub removed: Vec<Manifest>,
    /// Images that would have been removed, but are in use.
    pub in_use: Vec<Manifest>,
    /// What killed builds had left.
    pub abandoned: usize,
}

/// An image that nobody holds and nobody can take hold of any more.
pub(crate) struct Condemned {
    pub(crate) manifest: Manifest,
    pub(crate) path: PathBuf,
    _lock: File,
}

impl Store {
    /// Removes an image and returns what was removed. A name goes with all its images that no other name has; a digest
    /// only by itself, and not while a name stands for it.
    pub fn remove(&self, reference: &ImageRef) -> Result<Vec<Manifest>, StoreError> {
        let held = self.resolve(reference)?;
        let _lock = self.lock()?;
        let records = self.records()?;
        let doomed: Vec<Digest> = match reference {
            ImageRef::Name(name) => {
                let others =
                    || records.iter().filter(|(other, _)| other != name).flat_map(|(_, record)| record.all());
                let own =
                    records.iter().filter(|(other, _)| other == name).flat_map(|(_, record)| record.all());
                own.filter(|digest| !others().any(|other| other == *digest)).copied().collect()
            }
            ImageRef::Digest { .. } => {
                if let Some((name, _)) = records.iter().find(|(_, record)| record.current == held.digest) {
                    return Err(StoreError::Current { digest: held.digest, name: name.clone() });
                }
                vec![held.digest]
            }
        };
        drop(held);
        // All or nothing: the first that is in use ends it before anything is touched.
        let condemned = doomed.iter().map(|digest| self.condemn(digest)).collect::<Result<Vec<_>, _>>()?;
        if let ImageRef::Name(name) = reference {
            let path = self.root.join("names").join(name.as_str());
            fs::remove_file(&path).at("remove", &path)?;
        }
        condemned.into_iter().flatten().map(|image| self.execute(image)).collect()
    }

    /// Removes every image that no name stands for, except the `keep` newest earlier ones of each name. With `dry_run` it
    /// only says which.
    pub fn gc(&self, keep: usize, dry_run: bool) -> Result<Collected, StoreError> {
        let _lock = self.lock()?;
        let records = self.records()?;
        let kept = |digest: &Digest| {
            records.iter().any(|(_, record)| record.all().take(keep + 1).any(|kept| kept == digest))
        };
        let mut collected = Collected::default();
        for digest in self.digests()?.iter().filter(|digest| !kept(digest)) {
            match self.condemn(digest) {
                Ok(Some(image)) if dry_run => collected.removed.push(image.manifest),
                Ok(Some(image)) => collected.removed.push(self.execute(image)?),
                Err(StoreError::InUse { .. }) => collected.in_use.push(self.manifest(digest)?),
                other => drop(other?),
            }
        }
        if !dry_run {
            for (name, mut record) in records {
                record.earlier.retain(|digest| self.image_path(digest).exists());
                self.set_record(&name, &record)?;
            }
            self.forget_definitions()?;
            collected.abandoned = self.sweep()?;
        }
        Ok(collected)
    }

    /// Takes an image's lock, so that whoever wants it now waits, and then finds it gone. `None`: it is not there.
    pub(crate) fn condemn(&self, digest: &Digest) -> Result<Option<Condemned>, StoreError> {
        let path = self.image_path(digest);
        let file = match File::open(&path).at("open", &path) {
            Err(error) if error.is_not_found() => return Ok(None),
            opened => opened?,
        };
        if !lock::try_exclusive(&file).at("lock", &path)? {
            return Err(StoreError::InUse { digest: *digest, holders: lock::holders(&file) });
        }
        Ok(Some(Condemned { manifest: self.manifest(digest)?, path, _lock: file }))
    }

    fn execute(&self, image: Condemned) -> Result<Manifest, StoreError> {
        let aside = self.put_aside(&image.manifest.digest, &image.path)?;
        fs::remove_dir_all(&aside).at("remove", &aside)?;
        Ok(image.manifest)
    }

    /// Takes a directory out of its place. If this process dies after that, the next sweep finds it here.
    pub(crate) fn put_aside(&self, digest: &Digest, path: &Path) -> Result<PathBuf, IoError> {
        let aside = self.root.join("staging").join(format!("removed-{}", digest.hex()));
        fs::rename(path, &aside).at("move aside", path)?;
        Ok(aside)
    }

    fn forget_definitions(&self) -> Result<(), IoError> {
        let folder = self.root.join("definitions");
        for entry in fs::read_dir(&folder).at("list", &folder)? {
            let path = entry.at("list", &folder)?.path();
            let digest = fs::read_to_string(&path).at("read", &path)?.trim().parse::<Digest>();
            if !digest.is_ok_and(|digest| self.image_path(&digest).exists()) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }
}

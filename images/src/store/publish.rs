//! How an image gets into the store: made aside, synced, and put in its place by one rename. Until then it is in
//! nobody's way, and after a crash the next build clears it away.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::{Image, Store, StoreError};
use crate::error::At;
use crate::tree::{Entry, Kind};
use crate::{Digest, ImageConfig, ImageName, IoError, Manifest, Progress, lock, manifest, rootfs};

/// An unfinished image. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    // Before the lock: as long as the directory exists, so does its lock.
    folder: TempDir,
    lock: File,
}

/// All that the store needs to know of a finished tree.
pub(crate) struct NewImage<'a> {
    pub(crate) name: &'a ImageName,
    pub(crate) description: &'a str,
    pub(crate) definition: Digest,
    pub(crate) agent: Digest,
    pub(crate) config: &'a ImageConfig,
    pub(crate) entries: &'a [Entry],
    pub(crate) listing: &'a str,
}

impl Staging {
    /// The image's directory-to-be.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// The image's root, empty at first.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.image().join("rootfs")
    }

    /// For a process that writes here: as long as one of its copies is open, nobody clears this away.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }
}

impl NewImage<'_> {
    pub(crate) fn manifest(&self) -> Manifest {
        let size = |entry: &Entry| if let Kind::File { size } = entry.kind { size } else { 0 };
        Manifest {
            version: manifest::VERSION,
            digest: Manifest::digest_of(self.config, self.agent, self.listing),
            name: self.name.clone(),
            description: self.description.to_owned(),
            definition: self.definition,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            agent: self.agent,
            config: self.config.clone(),
            size: self.entries.iter().map(size).sum(),
            entries: self.entries.len() as u64,
        }
    }
}

impl Store {
    /// Waits until no other process builds an image of this name.
    pub(crate) fn lock_name(
        &self,
        name: &ImageName,
        progress: &mut dyn Progress,
    ) -> Result<File, StoreError> {
        let path = self.root.join("locks").join(name.as_str());
        let file = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
        if !lock::try_exclusive(&file).at("lock", &path)? {
            let holders = lock::holders(&file).join(", ");
            progress.step(&format!("waiting for another build of {name}: {holders}"));
            file.lock().at("lock", &path)?;
        }
        Ok(file)
    }

    /// The image that was built from this definition, if it still is in the store. The name stands for it from now on.
    pub(crate) fn built(&self, definition: &Digest, name: &ImageName) -> Result<Option<Image>, StoreError> {
        let path = self.root.join("definitions").join(definition.hex());
        let digest = match fs::read_to_string(&path).at("read", &path) {
            Err(error) if error.is_not_found() => return Ok(None),
            read => read?,
        };
        let Ok(digest) = digest.trim().parse() else { return Ok(None) };
        let Some(image) = self.hold(&digest, Some(name))? else { return Ok(None) };
        let _lock = self.lock()?;
        self.point(name, digest)?;
        Ok(Some(image))
    }

    /// A place to make an image in. What killed builds left is removed first.
    pub(crate) fn stage(&self) -> Result<Staging, StoreError> {
        let guard = self.lock()?;
        self.sweep()?;
        let area = self.root.join("staging");
        let folder =
            tempfile::Builder::new().prefix("image-").tempdir_in(&area).at("make a folder in", &area)?;
        let path = folder.path().join("lock");
        let made = File::options().create_new(true).write(true).open(&path).at("make", &path)?;
        // Opened again for reading: it becomes the stdin of a builder, which shall not write to it.
        drop(made);
        let lock = File::open(&path).at("open", &path)?;
        lock.try_lock().map_err(std::io::Error::from).at("lock", &path)?;
        drop(guard);
        let staging = Staging { folder, lock };
        let root = staging.rootfs();
        fs::create_dir_all(&root).at("make", &root)?;
        Ok(staging)
    }

    /// Removes unfinished images that nobody makes any more; returns how many. The store's lock must be held.
    pub(super) fn sweep(&self) -> Result<usize, IoError> {
        let area = self.root.join("staging");
        let mut removed = 0;
        for entry in fs::read_dir(&area).at("list", &area)? {
            let path = entry.at("list", &area)?.path();
            if path.is_dir() && is_live(&path)? {
                continue;
            }
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.at("remove", &path)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Puts a finished image into the store, under its name. What another build has put there before stays.
    pub(crate) fn publish(&self, staging: &Staging, new: &NewImage<'_>) -> Result<Image, StoreError> {
        let manifest = new.manifest();
        let folder = staging.image();
        let text = manifest.to_json();
        for (name, bytes) in [("manifest.json", text.as_slice()), ("tree", new.listing.as_bytes())] {
            fs::write(folder.join(name), bytes).at("write", folder.join(name))?;
        }
        // Before the rename: a power loss must not leave the name of an image whose bytes are not there.
        rootfs::sync(&folder).at("sync", &folder)?;

        let _lock = self.lock()?;
        let place = self.image_path(&manifest.digest);
        if !place.exists() {
            fs::rename(&folder, &place).at("put into place", &place)?;
            let parent = self.root.join("sha256");
            File::open(&parent).and_then(|parent| parent.sync_all()).at("sync", &parent)?;
        }
        let definition = self.root.join("definitions").join(new.definition.hex());
        self.write(&definition, format!("{}\n", manifest.digest).as_bytes())?;
        self.point(new.name, manifest.digest)?;
        let held = self.hold(&manifest.digest, Some(new.name))?;
        held.ok_or_else(|| StoreError::Damaged { path: place, problem: "it is gone".to_owned() })
    }
}

/// Whether the process that makes this image still lives.
fn is_live(folder: &Path) -> Result<bool, IoError> {
    let path = folder.join("lock");
    match File::open(&path).at("open", &path) {
        Err(error) if error.is_not_found() => Ok(false),
        opened => Ok(!lock::try_exclusive(&opened?).at("lock", &path)?),
    }
}

//! The store: images by digest, names for them, and what was built from which definition.
//!
//! ```text
//! format                 the version of this layout
//! lock                   held while a name, an image's directory or the staging area changes
//! locks/NAME             held while an image of that name is built
//! sha256/HEX/rootfs/     an image's files; nothing below ever changes
//! sha256/HEX/manifest.json, tree
//! names/NAME             its current digest, and the earlier ones
//! definitions/HEX        the digest of the image that was built from it
//! sha256/HEX/forms/, kernels/   what machines take of an image, see `machine.rs`
//! staging/…              unfinished; whoever can take its lock may remove it
//! ```
//!
//! A reader holds a shared lock on an image's directory, so removing it fails while a sandbox uses it. It must be
//! a `flock`, which a killed process frees: no count of users could be trusted after a crash.

mod error;
mod names;
mod publish;
pub(crate) mod remove;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::At;
use crate::manifest;
use crate::tree::{self, Difference};
use crate::{Definition, Digest, ImageConfig, ImageName, ImageRef, IoError, Manifest, lock};

pub use error::StoreError;
pub(crate) use publish::NewImage;
pub use remove::Collected;

const FORMAT: &str = "1\n";

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image that is held: it stays in the store until this is dropped.
///
/// The lock lives in a descriptor. A process that is cloned without exec holds it too, until it closes it.
#[derive(Debug)]
pub struct Image {
    /// The name that it was asked for by, or else the one that it was built under.
    pub name: ImageName,
    /// Its digest.
    pub digest: Digest,
    /// Its files: to be mounted read-only, never to be changed.
    pub rootfs: PathBuf,
    /// What jobs get.
    pub config: ImageConfig,
    /// All that the store knows of it.
    pub manifest: Manifest,
    _held: File,
}

/// An image as `ls` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The names that it is the current image of.
    pub names: Vec<ImageName>,
    /// Whether some process holds it now.
    pub in_use: bool,
    /// All that the store knows of it.
    #[serde(flatten)]
    pub manifest: Manifest,
}

impl Store {
    /// Opens a store, and makes it when the directory is empty or not there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned() };
        let format = root.join("format");
        match fs::read_to_string(&format) {
            Ok(found) if found == FORMAT => Ok(store),
            Ok(found) => Err(StoreError::Format { path: format, found: found.trim().to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                store.create()?;
                Ok(store)
            }
            Err(cause) => Err(IoError::new("read", &format, cause).into()),
        }
    }

    fn create(&self) -> Result<(), IoError> {
        for folder in ["definitions", "locks", "names", "sha256", "staging"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).at("make", &path)?;
        }
        // Programs in an image are not the host's: none of its users shall reach them.
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700)).at("protect", &self.root)?;
        let _lock = self.lock()?;
        self.write(&self.root.join("format"), FORMAT.as_bytes())
    }

    /// Finds an image and holds it. Nothing is hashed: this is on the way of every cold start.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Image, StoreError> {
        let found = match reference {
            ImageRef::Name(name) => match self.record(name)? {
                Some(record) => self.hold(&record.current, Some(name))?,
                None => None,
            },
            ImageRef::Digest { name, prefix } => match self.complete(prefix)? {
                Some(digest) => {
                    let held = self.hold(&digest, name.as_ref())?;
                    held.filter(|image| name.as_ref().is_none_or(|name| self.had_name(image, name)))
                }
                None => None,
            },
        };
        found.ok_or_else(|| self.not_found(reference))
    }

    /// Holds the image of a digest. The name is only what it will be called.
    pub(crate) fn hold(
        &self,
        digest: &Digest,
        name: Option<&ImageName>,
    ) -> Result<Option<Image>, StoreError> {
        let path = self.image_path(digest);
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let held = match File::open(&path) {
            Err(error) if gone(&error) => return Ok(None),
            opened => opened.at("open", &path)?,
        };
        held.lock_shared().at("lock", &path)?;
        // It may have been on its way out between the two steps: the lock counts only on what still is in its place.
        let inode = |meta: &fs::Metadata| (meta.dev(), meta.ino());
        let locked = held.metadata().at("look at", &path)?;
        match fs::metadata(&path) {
            Ok(found) if inode(&found) == inode(&locked) => {}
            Ok(_) => return Ok(None),
            Err(error) if gone(&error) => return Ok(None),
            Err(cause) => return Err(IoError::new("look at", &path, cause).into()),
        }
        let manifest = self.manifest(digest)?;
        Ok(Some(Image {
            name: name.unwrap_or(&manifest.name).clone(),
            digest: *digest,
            rootfs: path.join("rootfs"),
            config: manifest.config.clone(),
            manifest,
            _held: held,
        }))
    }

    pub(crate) fn manifest(&self, digest: &Digest) -> Result<Manifest, StoreError> {
        let path = self.image_path(digest).join("manifest.json");
        let bytes = fs::read(&path).at("read", &path)?;
        let damaged = |problem: String| StoreError::Damaged { path: path.clone(), problem };
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.version > manifest::VERSION {
            return Err(StoreError::Format { path, found: manifest.version.to_string() });
        }
        if manifest.digest != *digest {
            return Err(damaged(format!("it is of {}", manifest.digest)));
        }
        Ok(manifest)
    }

    /// Every image, by name and then by age, the newest first.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let records = self.records()?;
        let mut listed = Vec::new();
        for digest in self.digests()? {
            let path = self.image_path(&digest);
            // Removed since it was listed.
            let Ok(folder) = File::open(&path) else { continue };
            let in_use = !lock::try_exclusive(&folder).at("lock", &path)?;
            drop(folder);
            let of_it = records.iter().filter(|(_, record)| record.current == digest);
            let names = of_it.map(|(name, _)| name.clone()).collect();
            listed.push(Listed { names, in_use, manifest: self.manifest(&digest)? });
        }
        listed.sort_by(|a, b| {
            let order = |l: &Listed| (l.manifest.name.clone(), std::cmp::Reverse(l.manifest.created));
            order(a).cmp(&order(b))
        });
        Ok(listed)
    }

    pub(crate) fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        let folder = self.root.join("sha256");
        let mut digests = Vec::new();
        for entry in fs::read_dir(&folder).at("list", &folder)? {
            let name = entry.at("list", &folder)?.file_name();
            digests.extend(name.to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
        }
        digests.sort();
        Ok(digests)
    }

    /// The digest that begins so, of those in the store.
    fn complete(&self, prefix: &str) -> Result<Option<Digest>, StoreError> {
        if let Ok(whole) = format!("sha256:{prefix}").parse() {
            return Ok(Some(whole));
        }
        let mut matching = self.digests()?;
        matching.retain(|digest| digest.hex().starts_with(prefix));
        match matching[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(StoreError::Ambiguous { prefix: prefix.to_owned(), matching }),
        }
    }

    fn had_name(&self, image: &Image, name: &ImageName) -> bool {
        let record = self.record(name).ok().flatten();
        image.manifest.name == *name || record.is_some_and(|record| record.all().any(|d| *d == image.digest))
    }

    fn not_found(&self, reference: &ImageRef) -> StoreError {
        let records = self.records().unwrap_or_default();
        let known = records.into_iter().map(|(name, _)| name).collect();
        let (ImageRef::Name(name) | ImageRef::Digest { name: Some(name), .. }) = reference else {
            return StoreError::NotFound { reference: reference.clone(), known, buildable: None };
        };
        let built_in = Definition::built_in_names().any(|built_in| built_in == name.as_str());
        StoreError::NotFound {
            reference: reference.clone(),
            known,
            buildable: built_in.then(|| name.clone()),
        }
    }

    /// Where kernels are.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("sha256").join(digest.hex())
    }

    /// Held while a name, an image's directory or the staging area changes. Short: nothing is built under it.
    pub(crate) fn lock(&self) -> Result<File, IoError> {
        let path = self.root.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
        file.lock().at("lock", &path)?;
        Ok(file)
    }
}

impl Image {
    /// Reads every byte again and says where the image is no longer what was built, if anywhere.
    pub fn verify(&self) -> Result<Option<Difference>, StoreError> {
        let path = self.rootfs.with_file_name("tree");
        let expected = fs::read_to_string(&path).at("read", &path)?;
        if Manifest::digest_of(&self.config, self.manifest.agent, &expected) != self.digest {
            return Err(StoreError::Damaged {
                path,
                problem: "it does not give the image's digest".to_owned(),
            });
        }
        let found = tree::listing(&self.rootfs, &tree::read(&self.rootfs, &[])?)?;
        Ok(tree::difference(&expected, &found))
    }
}

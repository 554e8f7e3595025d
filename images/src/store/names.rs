//! Names: which digest each stands for now, and which it stood for before.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{Store, StoreError};
use crate::error::At;
use crate::{Digest, ImageName, IoError};

/// What `names/NAME` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) current: Digest,
    /// The newest first.
    pub(super) earlier: Vec<Digest>,
}

impl Record {
    pub(super) fn all(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.current).chain(&self.earlier)
    }
}

impl Store {
    /// Where a name's record is. It is replaced as a whole.
    pub(crate) fn name_path(&self, name: &ImageName) -> PathBuf {
        self.root.join("names").join(name.as_str())
    }

    pub(super) fn record(&self, name: &ImageName) -> Result<Option<Record>, StoreError> {
        let path = self.name_path(name);
        let bytes = match fs::read(&path).at("read", &path) {
            Err(error) if error.is_not_found() => return Ok(None),
            read => read?,
        };
        let record = serde_json::from_slice(&bytes);
        record.map(Some).map_err(|error| StoreError::Damaged { path, problem: error.to_string() })
    }

    pub(super) fn records(&self) -> Result<Vec<(ImageName, Record)>, StoreError> {
        let folder = self.root.join("names");
        let mut records = Vec::new();
        for entry in fs::read_dir(&folder).at("list", &folder)? {
            let name = entry.at("list", &folder)?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.parse::<ImageName>().ok()) else { continue };
            records.extend(self.record(&name)?.map(|record| (name, record)));
        }
        records.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(records)
    }

    /// Lets a name stand for an image from now on. The store's lock must be held.
    pub(super) fn point(&self, name: &ImageName, digest: Digest) -> Result<(), StoreError> {
        let earlier = match self.record(name)? {
            Some(record) if record.current == digest => return Ok(()),
            Some(record) => record.all().copied().filter(|earlier| *earlier != digest).collect(),
            None => Vec::new(),
        };
        self.set_record(name, &Record { current: digest, earlier })
    }

    /// The store's lock must be held.
    pub(super) fn set_record(&self, name: &ImageName, record: &Record) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).expect("digests are always JSON");
        Ok(self.write(&self.name_path(name), &bytes)?)
    }

    /// Writes a small file so that it is there whole or not at all, after a power loss too. The store's lock must be held:
    /// what lies in the staging area without a lock of its own is taken for abandoned.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), IoError> {
        let mut file = NamedTempFile::new_in(self.root.join("staging")).at("write", path)?;
        file.write_all(bytes).at("write", path)?;
        file.as_file().sync_all().at("write", path)?;
        file.persist(path).map_err(|error| error.error).at("write", path)?;
        let folder = path.parent().unwrap_or(&self.root);
        fs::File::open(folder).and_then(|folder| folder.sync_all()).at("write", path)
    }
}

//! References resolved again and again, as a pool does for each job: an image that is still held somewhere is found
//! without reading the store.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::store::StoreError;
use crate::{Image, ImageRef, IoError, Store};

/// Resolves references like [`Store::resolve`]. It holds no image itself.
#[derive(Debug)]
pub struct Resolver {
    store: Store,
    seen: Mutex<HashMap<ImageRef, Seen>>,
}

#[derive(Debug)]
struct Seen {
    version: Version,
    image: Weak<Image>,
}

/// Which writing of a name's record was read. Records are replaced, never changed, so a new one is another inode;
/// as inodes come back, the time of writing counts too. A digest has none: it means the same for ever.
type Version = Option<(u64, i64, i64)>;

impl Resolver {
    /// Resolves references to images of this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, seen: Mutex::default() }
    }

    /// Finds an image and holds it.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Arc<Image>, StoreError> {
        // Before the image: should the name move in between, the next look finds the version outdated.
        let version = self.version(reference)?;
        if let Some(image) = self.recall(reference, version) {
            return Ok(image);
        }
        let image = Arc::new(self.store.resolve(reference)?);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, seen| seen.image.strong_count() > 0);
        seen.insert(reference.clone(), Seen { version, image: Arc::downgrade(&image) });
        Ok(image)
    }

    fn recall(&self, reference: &ImageRef, version: Version) -> Option<Arc<Image>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.get(reference).filter(|seen| seen.version == version)?;
        known.image.upgrade()
    }

    fn version(&self, reference: &ImageRef) -> Result<Version, IoError> {
        let ImageRef::Name(name) = reference else { return Ok(None) };
        let path = self.store.name_path(name);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Some((meta.ino(), meta.ctime(), meta.ctime_nsec()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(IoError::new("look at", &path, cause)),
        }
    }
}

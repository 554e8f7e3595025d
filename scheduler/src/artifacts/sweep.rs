//! What has been kept for long enough goes: first the lists, then the files that no list names.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use futures_util::TryStreamExt;
use object_store::{Error, ObjectMeta, ObjectStoreExt, path::Path};

use super::{ArtifactError, ArtifactStore, Manifest};

/// A file that no list names is left alone for so long: the job that left it may be about to list it.
const UNLISTED: Duration = Duration::from_secs(24 * 60 * 60);

/// What a sweep took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Lists.
    pub lists: u64,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whether a file that is there will be there when a job that collects now lists it.
pub(super) fn is_safe(found: &ObjectMeta) -> bool {
    age(found, SystemTime::now()) < UNLISTED / 2
}

fn age(object: &ObjectMeta, now: SystemTime) -> Duration {
    // What was written in the future is new.
    now.duration_since(object.last_modified.into()).unwrap_or_default()
}

impl ArtifactStore {
    /// Takes away what is older than the retention, for all tenants. Several hosts may do so at once.
    pub async fn sweep(&self) -> Result<Swept, ArtifactError> {
        self.sweep_as_of(SystemTime::now()).await
    }

    pub(super) async fn sweep_as_of(&self, now: SystemTime) -> Result<Swept, ArtifactError> {
        let top = self.shared.objects.list_with_delimiter(None).await;
        let tenants = top.map_err(|error| self.failed("list", &Path::default(), error))?.common_prefixes;
        let mut swept = Swept::default();
        for tenant in tenants {
            self.sweep_tenant(&tenant, now, &mut swept).await?;
        }
        Ok(swept)
    }

    async fn sweep_tenant(
        &self,
        tenant: &Path,
        now: SystemTime,
        swept: &mut Swept,
    ) -> Result<(), ArtifactError> {
        // Files first: one that is listed while this goes on is then in a list that is read.
        let files = self.below(&tenant.clone().join("sha256")).await?;
        let mut named = HashSet::new();
        for list in self.below(&tenant.clone().join("jobs")).await? {
            if age(&list, now) >= self.shared.settings.retention {
                self.remove(&list.location).await?;
                swept.lists += 1;
            } else {
                named.extend(self.digests(&list.location).await?);
            }
        }
        for file in files {
            let digest = file.location.filename().unwrap_or_default();
            if !named.contains(digest) && age(&file, now) >= UNLISTED {
                self.remove(&file.location).await?;
                swept.files += 1;
                swept.bytes += file.size;
            }
        }
        Ok(())
    }

    async fn below(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, ArtifactError> {
        let found = self.shared.objects.list(Some(prefix)).try_collect().await;
        found.map_err(|error| self.failed("list", prefix, error))
    }

    async fn digests(&self, list: &Path) -> Result<Vec<String>, ArtifactError> {
        let bytes = match self.shared.objects.get(list).await {
            Ok(found) => found.bytes().await,
            // Another host sweeps too.
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(|error| self.failed("read", list, error))?;
        // A list that cannot be read stops the sweep: what it names would be lost.
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| ArtifactError::Manifest {
            name: list.to_string(),
            place: self.place().to_string(),
            error,
        })?;
        Ok(manifest.artifacts.into_iter().map(|artifact| artifact.sha256).collect())
    }

    async fn remove(&self, name: &Path) -> Result<(), ArtifactError> {
        match self.shared.objects.delete(name).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }
}

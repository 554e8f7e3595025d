//! Where the files that jobs leave are kept, for any host to fetch: a folder, a folder that hosts share, or S3.
//!
//! ```text
//! <tenant>/sha256/<aa>/<hex>         a file, by the digest of its bytes; never changed, written whole or not at all
//! <tenant>/jobs/<id>/<attempt>.json  which files an attempt left, and under which paths
//! ```
//!
//! Each tenant has its own files, even where two tenants left the same bytes: what one keeps tells another nothing, a
//! quota counts what is the tenant's, and a sweep of one looks at no other. It talks to the object store and to a folder
//! for files that are still arriving; it knows no queue and no sandbox. No file is ever whole in memory.

mod sink;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ObjectStore, ObjectStoreExt, aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
    prefix::PrefixStore,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use worker::Artifact;

use crate::key::{JobKey, is_name};

pub use sink::ArtifactsOfJob;
pub use sweep::Swept;

/// For how long what a tenant uses is not counted anew.
const COUNTED: Duration = Duration::from_secs(60);

/// Where artifacts are kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder of this host, or one that all hosts mount.
    Folder(PathBuf),
    /// A bucket of S3, or of a server that speaks its protocol.
    S3 {
        /// The bucket.
        bucket: String,
        /// What all names in it begin with; empty for none.
        prefix: String,
        /// The region.
        region: String,
        /// The server; missing for that of the region. Plain `http:` is allowed only if this says so.
        endpoint: Option<String>,
        /// The key's name.
        key_id: String,
        /// The key.
        key: String,
    },
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::S3 { bucket, prefix, endpoint, .. } => {
                write!(f, "s3://{bucket}/{prefix}")?;
                endpoint.iter().try_for_each(|endpoint| write!(f, " at {endpoint}"))
            }
        }
    }
}

/// How artifacts are kept.
#[derive(Debug, Clone)]
pub struct ArtifactSettings {
    /// Where.
    pub place: Place,
    /// A folder of this host for files that are still arriving.
    pub arriving: PathBuf,
    /// How many bytes each tenant may keep; `None`: as many as it likes. Hosts count on their own and look at what is
    /// there each minute, so together they may go beyond it by what they keep in that time.
    pub quota: Option<u64>,
    /// For how long.
    pub retention: Duration,
}

/// Artifacts cannot be kept or given.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// A folder.
    #[error("cannot use the folder {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The object store.
    #[error("cannot {what} {name} in {place}")]
    Store {
        /// What was to be done.
        what: &'static str,
        /// With which object.
        name: String,
        /// Where.
        place: String,
        /// Why.
        #[source]
        error: Box<object_store::Error>,
    },
    /// A manifest that this program did not write.
    #[error("{name} in {place} is no list of artifacts")]
    Manifest {
        /// Which.
        name: String,
        /// Where.
        place: String,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
    /// There is none.
    #[error("{job} left no artifact {path}; it may have been kept for too long")]
    Missing {
        /// Whose.
        job: JobKey,
        /// Which.
        path: String,
    },
    /// Its bytes are not those that were kept.
    #[error("{name} in {place} is damaged: its bytes have another digest")]
    Damaged {
        /// Which.
        name: String,
        /// Where.
        place: String,
    },
    /// No name of a tenant or a job.
    #[error("{0} names no job")]
    Name(JobKey),
}

/// What an attempt left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    artifacts: Vec<Artifact>,
}

/// The store. Clones are the same one.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    objects: Arc<dyn ObjectStore>,
    settings: ArtifactSettings,
    /// What tenants use, as counted last, and what was added since.
    used: Mutex<HashMap<String, (Instant, u64)>>,
}

impl ArtifactStore {
    /// Opens it. A folder that is missing is made.
    pub fn open(settings: ArtifactSettings) -> Result<Self, ArtifactError> {
        make(&settings.arriving)?;
        let place = settings.place.to_string();
        let failed =
            |error| ArtifactError::Store { what: "open", name: String::new(), place, error: Box::new(error) };
        let objects: Arc<dyn ObjectStore> = match &settings.place {
            Place::Folder(folder) => {
                make(folder)?;
                // A file that is named in a result survives a power loss as the result does.
                let files = LocalFileSystem::new_with_prefix(folder).map_err(failed)?.with_fsync(true);
                Arc::new(files.with_automatic_cleanup(true))
            }
            Place::S3 { bucket, prefix, region, endpoint, key_id, key } => {
                // The same provider as everywhere; whoever is first decides.
                let _ =
                    rustls::crypto::CryptoProvider::install_default(rustls::crypto::ring::default_provider());
                let mut builder = AmazonS3Builder::new()
                    .with_bucket_name(bucket)
                    .with_region(region)
                    .with_access_key_id(key_id)
                    .with_secret_access_key(key);
                if let Some(endpoint) = endpoint {
                    builder =
                        builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
                }
                Arc::new(PrefixStore::new(builder.build().map_err(failed)?, prefix.as_str()))
            }
        };
        Ok(Self { shared: Arc::new(Shared { objects, settings, used: Mutex::default() }) })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.shared.settings.place
    }

    /// Takes what one attempt of a job leaves.
    pub fn of_job(&self, job: &JobKey, attempt: u32) -> Result<ArtifactsOfJob, ArtifactError> {
        check(job)?;
        Ok(ArtifactsOfJob::new(self.clone(), job.clone(), attempt))
    }

    /// What an attempt left, as its result lists it.
    pub async fn list(&self, job: &JobKey, attempt: u32) -> Result<Vec<Artifact>, ArtifactError> {
        check(job)?;
        let name = manifest(job, attempt);
        match self.shared.objects.get(&name).await {
            Ok(found) => {
                let bytes = found.bytes().await.map_err(|error| self.failed("read", &name, error))?;
                let bad = |error| ArtifactError::Manifest {
                    name: name.to_string(),
                    place: self.place().to_string(),
                    error,
                };
                Ok(serde_json::from_slice::<Manifest>(&bytes).map_err(bad)?.artifacts)
            }
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(self.failed("read", &name, error)),
        }
    }

    /// One file that an attempt left.
    pub async fn get(&self, job: &JobKey, attempt: u32, path: &str) -> Result<Fetching, ArtifactError> {
        let missing = || ArtifactError::Missing { job: job.clone(), path: path.to_owned() };
        let listed = self.list(job, attempt).await?;
        let artifact = listed.into_iter().find(|artifact| artifact.path == path).ok_or_else(missing)?;
        let name = blob(&job.tenant, &artifact.sha256);
        match self.shared.objects.get(&name).await {
            Ok(found) => Ok(Fetching {
                store: self.clone(),
                name,
                artifact,
                bytes: found.into_stream(),
                hasher: Some(Sha256::new()),
            }),
            Err(object_store::Error::NotFound { .. }) => Err(missing()),
            Err(error) => Err(self.failed("read", &name, error)),
        }
    }

    /// How many bytes a tenant keeps, counted at most a minute ago.
    pub async fn used(&self, tenant: &str) -> Result<u64, ArtifactError> {
        let known = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).copied();
        if let Some((counted, used)) = known
            && counted.elapsed() < COUNTED
        {
            return Ok(used);
        }
        let prefix = Path::from_iter([tenant]);
        let sizes = self.shared.objects.list(Some(&prefix)).map_ok(|object| object.size);
        let used = sizes.try_fold(0, |sum, size| async move { Ok(sum + size) }).await;
        let used = used.map_err(|error| self.failed("list", &prefix, error))?;
        let mut all = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(tenant.to_owned(), (Instant::now(), used));
        Ok(used)
    }

    fn add_used(&self, tenant: &str, bytes: u64) {
        let mut all = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, used)) = all.get_mut(tenant) {
            *used += bytes;
        }
    }

    fn failed(&self, what: &'static str, name: &Path, error: object_store::Error) -> ArtifactError {
        ArtifactError::Store {
            what,
            name: name.to_string(),
            place: self.place().to_string(),
            error: Box::new(error),
        }
    }
}

/// A file on its way out of the store.
pub struct Fetching {
    store: ArtifactStore,
    name: Path,
    artifact: Artifact,
    bytes: BoxStream<'static, object_store::Result<bytes::Bytes>>,
    /// Missing once it has been checked.
    hasher: Option<Sha256>,
}

impl fmt::Debug for Fetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetching").field("artifact", &self.artifact).finish_non_exhaustive()
    }
}

impl Fetching {
    /// Which file it is.
    #[must_use]
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Its next bytes; `None`: that was all, and its digest is right. Whoever writes it somewhere gives it its name only
    /// then.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ArtifactError> {
        match self.bytes.next().await {
            Some(Ok(bytes)) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&bytes);
                }
                Ok(Some(bytes.to_vec()))
            }
            Some(Err(error)) => Err(self.store.failed("read", &self.name, error)),
            None => {
                let digest = self.hasher.take().map(|hasher| format!("{:x}", hasher.finalize()));
                if digest.is_none_or(|digest| digest == self.artifact.sha256) {
                    return Ok(None);
                }
                let place = self.store.place().to_string();
                Err(ArtifactError::Damaged { name: self.name.to_string(), place })
            }
        }
    }
}

fn check(job: &JobKey) -> Result<(), ArtifactError> {
    if is_name(&job.tenant) && is_name(&job.id) { Ok(()) } else { Err(ArtifactError::Name(job.clone())) }
}

fn make(folder: &FilePath) -> Result<(), ArtifactError> {
    std::fs::create_dir_all(folder).map_err(|error| ArtifactError::Folder { path: folder.to_owned(), error })
}

/// Each part is escaped where it must be: a tenant may be called `..`.
fn blob(tenant: &str, sha256: &str) -> Path {
    Path::from_iter([tenant, "sha256", sha256.get(..2).unwrap_or(""), sha256])
}

fn manifest(job: &JobKey, attempt: u32) -> Path {
    Path::from_iter([&job.tenant, "jobs", &job.id, &format!("{attempt}.json")])
}

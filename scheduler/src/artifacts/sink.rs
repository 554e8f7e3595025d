//! Files arrive one after the other: into a file without a name here, and once whole, under their digest there.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

use bytes::Bytes;
use object_store::{Error, ObjectStoreExt, PutPayload, WriteMultipart, path::Path};
use sha2::{Digest, Sha256};
use worker::{Arrival, Artifact, ArtifactSink, printable};

use super::{ArtifactError, ArtifactStore, Manifest, blob, manifest, sweep};
use crate::key::JobKey;

/// Bytes in memory at once, for each file that is being carried over. S3 takes no smaller parts.
const PART: usize = 8 * 1024 * 1024;
const PARTS_UNDER_WAY: usize = 2;

/// Takes what one attempt of a job leaves. Nothing of it is listed before [`ArtifactsOfJob::seal`].
#[derive(Debug)]
pub struct ArtifactsOfJob {
    store: ArtifactStore,
    job: JobKey,
    attempt: u32,
    current: Option<Arriving>,
    kept: Vec<Artifact>,
}

#[derive(Debug)]
struct Arriving {
    path: String,
    file: File,
    size: u64,
    hasher: Sha256,
    /// How much there is room for.
    room: u64,
}

impl ArtifactsOfJob {
    pub(super) fn new(store: ArtifactStore, job: JobKey, attempt: u32) -> Self {
        Self { store, job, attempt, current: None, kept: Vec::new() }
    }

    /// Lists what was kept, so that it can be fetched and is kept for its time. What is never sealed is swept away.
    pub async fn seal(self) -> Result<Vec<Artifact>, ArtifactError> {
        if self.kept.is_empty() {
            return Ok(self.kept);
        }
        let name = manifest(&self.job, self.attempt);
        let list = Manifest { version: 1, artifacts: self.kept };
        let place = self.store.place().to_string();
        let json = serde_json::to_vec(&list).map_err(|error| ArtifactError::Manifest {
            name: name.to_string(),
            place,
            error,
        })?;
        let put = self.store.shared.objects.put(&name, PutPayload::from(json)).await;
        put.map_err(|error| self.store.failed("write", &name, error))?;
        Ok(list.artifacts)
    }

    /// Carries a whole file over, unless it is there.
    async fn carry(&self, mut arriving: Arriving) -> Result<Artifact, ArtifactError> {
        let Arriving { path, size, hasher, .. } = &mut arriving;
        let sha256 = format!("{:x}", std::mem::take(hasher).finalize());
        let artifact = Artifact { path: std::mem::take(path), size: *size, sha256 };
        let name = blob(&self.job.tenant, &artifact.sha256);
        let objects = &self.store.shared.objects;
        let there = match objects.head(&name).await {
            // One that is old may be swept before this job's list is there: it is written anew.
            Ok(found) => found.size == artifact.size && sweep::is_safe(&found),
            Err(Error::NotFound { .. }) => false,
            Err(error) => return Err(self.store.failed("look for", &name, error)),
        };
        if !there {
            self.write(&name, arriving.file).await?;
            self.store.add_used(&self.job.tenant, artifact.size);
        }
        Ok(artifact)
    }

    async fn write(&self, name: &Path, mut file: File) -> Result<(), ArtifactError> {
        let local =
            |error| ArtifactError::Folder { path: self.store.shared.settings.arriving.clone(), error };
        let failed = |error| self.store.failed("write", name, error);
        file.seek(SeekFrom::Start(0)).map_err(local)?;
        let first = part(&mut file).map_err(local)?;
        if first.len() < PART {
            return self.store.shared.objects.put(name, first.into()).await.map(|_| ()).map_err(failed);
        }
        let upload = self.store.shared.objects.put_multipart(name).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut next = first;
        let carried = async {
            while !next.is_empty() {
                upload.wait_for_capacity(PARTS_UNDER_WAY).await.map_err(failed)?;
                upload.put(next);
                next = part(&mut file).map_err(local)?;
            }
            Ok(())
        };
        match carried.await {
            // It gets its name now, with all its bytes.
            Ok(()) => upload.finish().await.map(|_| ()).map_err(failed),
            Err(error) => {
                // What cannot be taken back now, the store's own rule for what was never finished takes back.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }
}

fn part(file: &mut File) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(PART);
    file.take(PART as u64).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

impl ArtifactSink for ArtifactsOfJob {
    async fn begin(&mut self, arrival: Arrival<'_>) -> io::Result<()> {
        let settings = &self.store.shared.settings;
        let room = match settings.quota {
            None => u64::MAX,
            Some(quota) => {
                let used = self.store.used(&self.job.tenant).await.map_err(io::Error::other)?;
                quota.saturating_sub(used)
            }
        };
        // A file without a name: whatever ends this process takes it away.
        let file = tempfile::tempfile_in(&settings.arriving)?;
        let path = printable(arrival.path);
        self.current = Some(Arriving { path, file, size: 0, hasher: Sha256::new(), room });
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        current.size += bytes.len() as u64;
        if current.size > current.room {
            let quota = self.store.shared.settings.quota.unwrap_or_default();
            let why = format!("the tenant may keep {} and has no room for it", bytesize::ByteSize(quota));
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        current.hasher.update(bytes);
        current.file.write_all(bytes)
    }

    async fn keep(&mut self) -> io::Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        let artifact = self.carry(current).await.map_err(|error| io::Error::other(worker::causes(&error)))?;
        // Two patterns may ask for one file.
        self.kept.retain(|kept| kept.path != artifact.path);
        self.kept.push(artifact);
        Ok(())
    }

    async fn discard(&mut self) {
        self.current = None;
    }
}

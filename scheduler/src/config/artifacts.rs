//! The section `[artifacts]`: where the files that jobs leave are kept.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use worker::Size;

use super::{ConfigError, some_time};
use crate::{
    artifacts::{ArtifactSettings, Place},
    broker::{BadSettings, Credential},
};

/// Where the secret of S3 is if it is in no file.
const S3_SECRET: &str = "MAYFLY_S3_SECRET";

/// Where artifacts are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactsPart {
    /// A folder of this host, or one that all hosts mount.
    pub folder: Option<PathBuf>,
    /// A bucket instead of a folder.
    pub s3: Option<S3Part>,
    /// Bytes that each tenant may keep; as many as it likes if missing.
    pub quota: Option<Size>,
    /// For how long they are kept.
    #[serde(default = "a_week", with = "humantime_serde")]
    pub retention: Duration,
}

/// A bucket of S3, or of a server that speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Part {
    /// The bucket.
    pub bucket: String,
    /// What all names in it begin with.
    #[serde(default)]
    pub prefix: String,
    /// The region.
    pub region: String,
    /// The server; that of the region if missing.
    pub endpoint: Option<String>,
    /// The name of the key. Its secret is a file's or the environment's.
    pub key_id: String,
    /// The file with the secret. `MAYFLY_S3_SECRET` if missing.
    pub secret_file: Option<PathBuf>,
}

impl ArtifactsPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.folder.is_some() == self.s3.is_some() {
            return Err(ConfigError::value("artifacts", "write either folder or [artifacts.s3]"));
        }
        some_time("artifacts.retention", self.retention)
    }

    /// As the artifact store takes it; `arriving` is a folder of this host for files that are not yet whole.
    pub fn settings(&self, arriving: PathBuf) -> Result<ArtifactSettings, BadSettings> {
        let place = match (&self.folder, &self.s3) {
            (Some(folder), _) => Place::Folder(folder.clone()),
            (None, Some(s3)) => Place::S3 {
                bucket: s3.bucket.clone(),
                prefix: s3.prefix.clone(),
                region: s3.region.clone(),
                endpoint: s3.endpoint.clone(),
                key_id: s3.key_id.clone(),
                key: Credential::find(s3.secret_file.as_deref(), S3_SECRET)?.into_inner(),
            },
            (None, None) => return Err(BadSettings::Url("artifacts has no place".to_owned())),
        };
        let quota = self.quota.map(Size::bytes);
        Ok(ArtifactSettings { place, arriving, quota, retention: self.retention })
    }
}

fn a_week() -> Duration {
    Duration::from_secs(7 * 24 * 60 * 60)
}

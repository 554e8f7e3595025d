//! The name of a job: whose it is, and which.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// What a job is called in every queue and store. A tenant's ids are its own: two tenants may use the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey {
    /// Whose job it is.
    pub tenant: String,
    /// Which of the tenant's jobs.
    pub id: String,
}

/// What tells whether two messages with one id are the same job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyDigest([u8; 32]);

impl BodyDigest {
    /// The digest of a job as it came.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text names no job.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("\"{0}\" names no job; write ID or TENANT/ID")]
pub struct BadKey(String);

impl JobKey {
    /// Names a job.
    #[must_use]
    pub fn new(tenant: impl Into<String>, id: impl Into<String>) -> Self {
        Self { tenant: tenant.into(), id: id.into() }
    }
}

/// Whether a tenant or a job may be called so: 1 to 128 of `A-Z a-z 0-9 . _ -`.
#[must_use]
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=128).contains(&name.len()) && name.bytes().all(plain)
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither half has a slash in it.
        write!(f, "{}/{}", self.tenant, self.id)
    }
}

impl FromStr for JobKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        match text.split_once('/') {
            Some((tenant, id)) if is_name(tenant) && is_name(id) => Ok(Self::new(tenant, id)),
            _ => Err(BadKey(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_being_written_and_read() {
        let key = JobKey::new("team-a", "eval.42");
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", "a", "a/", "/b", "a/b/c", "a/b c"] {
            assert!(bad.parse::<JobKey>().is_err(), "{bad}");
        }
    }
}

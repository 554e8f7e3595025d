//! What an image says about the jobs that run in it: part of its digest.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::definition::{EnvName, Id, ImagePath};

/// Whether a job may write outside `/tmp` and its working directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootMode {
    /// The root file system is read-only.
    #[default]
    ReadOnly,
    /// Writes go to an overlay of limited size that is thrown away with the sandbox.
    Writable,
}

impl fmt::Display for RootMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::Writable => "writable",
        })
    }
}

/// What a job gets when it does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The job's user id inside.
    pub user: u32,
    /// The job's group id inside.
    pub group: u32,
    /// The job's working directory, a directory that the job's user owns.
    pub workdir: String,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Whether the root file system can be written to.
    pub root: RootMode,
}

impl ImageConfig {
    /// Whether this is what a definition could have said: an imported one may say anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        Id::try_from(i64::from(self.user))?;
        Id::try_from(i64::from(self.group))?;
        ImagePath::try_from(self.workdir.clone())?;
        self.env.keys().try_for_each(|name| EnvName::try_from(name.clone()).map(drop))?;
        match self.env.iter().find(|(_, value)| value.contains('\0')) {
            Some((name, _)) => Err(format!("the value of {name} has a NUL in it")),
            None => Ok(()),
        }
    }
}

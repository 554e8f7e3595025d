//! The four isolation tiers, in the order of their strength.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How strongly a sandbox is isolated. Stronger compares as greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Namespaces, `pivot_root`, seccomp and cgroups, made by mayfly itself.
    Chroot,
    /// systemd-nspawn.
    Nspawn,
    /// A Docker container.
    Docker,
    /// A virtual machine with its own kernel.
    Vm,
}

impl Tier {
    /// All tiers, weakest first.
    pub const ALL: [Self; 4] = [Self::Chroot, Self::Nspawn, Self::Docker, Self::Vm];

    /// The tier's name in jobs, results, metrics and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chroot => "chroot",
            Self::Nspawn => "nspawn",
            Self::Docker => "docker",
            Self::Vm => "vm",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The word is not a tier.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown tier \"{0}\": use one of chroot, nspawn, docker, vm")]
pub struct UnknownTier(String);

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(word: &str) -> Result<Self, UnknownTier> {
        Self::ALL.into_iter().find(|tier| tier.name() == word).ok_or_else(|| UnknownTier(word.to_owned()))
    }
}

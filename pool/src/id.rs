//! Names that are never given twice.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// 128 random bits, written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(u128);

/// One clean life of one sandbox. It serves one job.
pub type GenerationId = Id;
/// One process that makes sandboxes.
pub type InstanceId = Id;

/// The text is not an [`Id`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("\"{0}\" is not an id of 32 hex digits")]
pub struct BadId(String);

impl Id {
    /// A new one from the kernel's random numbers.
    ///
    /// # Panics
    /// If the kernel has no random numbers to give: no sandbox can be told from another then.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel gives random numbers");
        Self(u128::from_le_bytes(bytes))
    }

    /// The first eight digits: enough for people and for names of one machine's things.
    #[must_use]
    pub fn short(self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        match u128::from_str_radix(text, 16) {
            Ok(number) if text.len() == 32 && !text.starts_with('+') => Ok(Self(number)),
            _ => Err(BadId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Id {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

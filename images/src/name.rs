//! What an image is called: a name, or a reference that may pin a digest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Shorter prefixes of a digest are too easily met by chance.
const SHORTEST_PREFIX: usize = 12;

/// The name of an image: lower-case letters, digits, `.`, `_` and `-`, at most 63 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// An image as a person or a job names it: `name`, `name@sha256:…` or `sha256:…`; the digest may be cut to its
/// first 12 digits or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ImageRef {
    /// The current image of that name.
    Name(ImageName),
    /// The image whose digest begins with these hex digits, and which has that name if one is given.
    Digest {
        /// The name that the image must have.
        name: Option<ImageName>,
        /// At least 12 of the digest's hex digits.
        prefix: String,
    },
}

/// Text that is no image name or reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// The name has other characters in it, or too many.
    #[error(
        "`{0}` is not an image name: lower-case letters, digits, `.`, `_` and `-`, at most 63, the first a letter or digit"
    )]
    Name(String),
    /// What stands behind the `@` is no digest.
    #[error("`{0}` is not an image digest: `sha256:` and at least 12 hex digits")]
    Digest(String),
}

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let first = text.bytes().next().is_some_and(plain);
        let rest = text.bytes().all(|c| plain(c) || matches!(c, b'.' | b'_' | b'-'));
        if first && rest && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(RefError::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = RefError;

    fn try_from(text: String) -> Result<Self, RefError> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl FromStr for ImageRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (Some(name.parse()?), digest),
            None if text.starts_with("sha256:") => (None, text),
            None => return text.parse().map(Self::Name),
        };
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if (SHORTEST_PREFIX..=64).contains(&hex.len()) && hex.bytes().all(digits) {
            Ok(Self::Digest { name, prefix: hex.to_owned() })
        } else {
            Err(RefError::Digest(digest.to_owned()))
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Digest { name: Some(name), prefix } => write!(f, "{name}@sha256:{prefix}"),
            Self::Digest { name: None, prefix } => write!(f, "sha256:{prefix}"),
        }
    }
}

impl From<ImageName> for ImageRef {
    fn from(name: ImageName) -> Self {
        Self::Name(name)
    }
}

impl From<Digest> for ImageRef {
    fn from(digest: Digest) -> Self {
        Self::Digest { name: None, prefix: digest.hex() }
    }
}

impl TryFrom<String> for ImageRef {
    type Error = RefError;

    fn try_from(text: String) -> Result<Self, RefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_reads_back_as_it_was_written() {
        for text in ["base", "base@sha256:0123456789ab", "sha256:0123456789abcdef"] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_be_a_path_or_an_option_is_no_name() {
        for text in ["", "..", "../x", "a/b", "-rf", ".hidden", "Base", "a b", "a\0", &"x".repeat(64)] {
            assert_eq!(text.parse::<ImageRef>(), Err(RefError::Name(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn a_digest_that_is_too_short_or_no_hex_is_refused() {
        for digest in [
            "",
            "0123456789ab",
            "sha256:0123456789a",
            "sha256:0123456789AB",
            &format!("sha256:{}", "a".repeat(65)),
        ] {
            let parsed = format!("base@{digest}").parse::<ImageRef>();
            assert_eq!(parsed, Err(RefError::Digest(digest.to_owned())), "{digest:?}");
        }
    }
}

//! What the store can fail with.

use std::path::PathBuf;

use crate::tree::TreeError;
use crate::{Digest, ImageName, ImageRef, IoError};

/// A store that does not give, take or remove an image.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// No such image.
    #[error("there is no image `{reference}`")]
    NotFound {
        /// What was asked for.
        reference: ImageRef,
        /// The names in the store.
        known: Vec<ImageName>,
        /// The name, if its definition is built in.
        buildable: Option<ImageName>,
    },
    /// Several digests begin so.
    #[error("several images begin with sha256:{prefix}")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The digests that begin so.
        matching: Vec<Digest>,
    },
    /// A live process holds it.
    #[error("image {digest} is in use by a live sandbox or command: {}", holders.join(", "))]
    InUse {
        /// The image.
        digest: Digest,
        /// The processes, as far as they can be seen.
        holders: Vec<String>,
    },
    /// The current image of a name cannot be removed by its digest.
    #[error("image {digest} is the current one of `{name}`")]
    Current {
        /// The image.
        digest: Digest,
        /// The name.
        name: ImageName,
    },
    /// Written by a later version of mayfly.
    #[error("{} has format {found}, which this version of mayfly does not know", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: String,
    },
    /// A file of the store is not what it must be.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl StoreError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { buildable: Some(name), .. } => Some(format!("mayfly image build {name}")),
            Self::NotFound { known, .. } if known.is_empty() => {
                Some("the store is empty; begin with: mayfly image build base".to_owned())
            }
            Self::NotFound { known, .. } => {
                let known: Vec<_> = known.iter().map(ImageName::as_str).collect();
                Some(format!(
                    "known images: {}; build your own with: mayfly image build ./DEFINITION.toml",
                    known.join(", ")
                ))
            }
            Self::Ambiguous { matching, .. } => {
                let matching: Vec<_> = matching.iter().map(ToString::to_string).collect();
                Some(format!("give more digits; these match: {}", matching.join(", ")))
            }
            Self::InUse { .. } => Some("wait for its jobs to end, then remove it".to_owned()),
            Self::Current { name, .. } => Some(format!("remove all of it with: mayfly image rm {name}")),
            Self::Format { .. } => Some("use the version of mayfly that made it, or a later one".to_owned()),
            Self::Damaged { .. } => Some("remove the image and build it anew".to_owned()),
            Self::Io(_) | Self::Tree(_) => None,
        }
    }
}

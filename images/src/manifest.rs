//! What the store keeps beside an image's bytes, and what an export begins with.

use serde::{Deserialize, Serialize};

use crate::digest::Hasher;
use crate::{Digest, ImageConfig, ImageName};

/// Changes whenever the same bytes would have to be read, hashed or laid out in another way.
pub(crate) const VERSION: u32 = 1;

/// One image's manifest. A reader refuses a later version; within one version it ignores fields that it does not
/// know, so that other forms of an image (a container image, a VM disk) can be recorded beside this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this layout.
    pub version: u32,
    /// The image's digest: over version, configuration, agent and every entry of the tree.
    pub digest: Digest,
    /// The name in the definition that it was built from.
    pub name: ImageName,
    /// What the image is for.
    pub description: String,
    /// The definition that it was built from, together with what that read.
    pub definition: Digest,
    /// When it was built, in seconds since 1970.
    pub created: u64,
    /// The agent in it.
    pub agent: Digest,
    /// What jobs get.
    pub config: ImageConfig,
    /// Bytes in its regular files.
    pub size: u64,
    /// Files, directories and links.
    pub entries: u64,
}

impl Manifest {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("strings, numbers and string maps are always JSON")
    }

    /// The digest that an image with this configuration, agent and tree has.
    pub(crate) fn digest_of(config: &ImageConfig, agent: Digest, listing: &str) -> Digest {
        let config = serde_json::to_vec(config).expect("strings, numbers and string maps are always JSON");
        let mut hasher = Hasher::default();
        hasher.part(b"mayfly image");
        hasher.part(&VERSION.to_le_bytes());
        hasher.part(&config);
        hasher.part(agent.to_string().as_bytes());
        hasher.part(listing.as_bytes());
        hasher.finish()
    }
}

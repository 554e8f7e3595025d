//! Builds an image from its definition: fill an empty root, normalise it, lint it, take its digest, publish it.

use crate::digest::Hasher;
use crate::error::At;
use crate::lint::Finding;
use crate::normalise::normalise;
use crate::source::{self, Source, SourceError};
use crate::store::NewImage;
use crate::tree::{self, TreeError};
use crate::{
    Definition, Digest, Image, ImageName, ImageRef, IoError, Progress, Store, StoreError, agent_digest, lint,
};

/// Changes whenever the same definition and agent would give another image.
const BUILDER_VERSION: u32 = 1;

/// An image that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source of its files.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tree that was made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Its source was written to at the same time.
    #[error("the source of `{0}` changed while it was read")]
    SourceChanged(ImageName),
    /// It has something in it that no image may have.
    #[error("`{name}` cannot be an image: {}", source::list(findings))]
    Lint {
        /// The image's name.
        name: ImageName,
        /// What it has.
        findings: Vec<Finding>,
    },
}

impl BuildError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::SourceChanged(_) => Some("build it again when nothing writes to the source".to_owned()),
            Self::Lint { .. } => Some("mend these entries in the image's source".to_owned()),
            Self::Tree(_) | Self::Io(_) => None,
        }
    }
}

/// Builds an image, or finds the one that was built from the same definition before.
pub fn build(
    store: &Store,
    definition: &Definition,
    progress: &mut dyn Progress,
) -> Result<Image, BuildError> {
    make(store, definition, true, progress)
}

/// Builds an image even if one was built from the same definition before: packages may be newer today.
pub fn rebuild(
    store: &Store,
    definition: &Definition,
    progress: &mut dyn Progress,
) -> Result<Image, BuildError> {
    make(store, definition, false, progress)
}

fn make(
    store: &Store,
    definition: &Definition,
    reuse: bool,
    progress: &mut dyn Progress,
) -> Result<Image, BuildError> {
    let base = base(store, definition, progress)?;
    let base = base.as_ref();
    // Held to the end: whoever builds the same name waits here, and then finds it built.
    let _building = store.lock_name(&definition.name, progress)?;
    let fingerprint = source::fingerprint(definition, base)?;
    let digest = digest_of(definition, fingerprint);
    if reuse && let Some(image) = store.built(&digest, &definition.name)? {
        return Ok(image);
    }

    let staging = store.stage()?;
    let (root, config) = (staging.rootfs(), definition.config());
    progress.step(&format!("making the files of {}", definition.name));
    source::fill(&root, staging.lock(), definition, base, progress)?;
    if source::fingerprint(definition, base)? != fingerprint {
        return Err(BuildError::SourceChanged(definition.name.clone()));
    }
    own_root(&root)?;
    normalise(&root, &config, &definition.files)?;

    progress.step("checking and hashing");
    let entries = tree::read(&root, &[])?;
    let findings = lint::image(&entries, &config);
    if !findings.is_empty() {
        return Err(BuildError::Lint { name: definition.name.clone(), findings });
    }
    let listing = tree::listing(&root, &entries)?;
    progress.step("putting it into the store");
    let new = NewImage {
        name: &definition.name,
        description: &definition.description,
        definition: digest,
        agent: agent_digest(),
        config: &config,
        entries: &entries,
        listing: &listing,
    };
    Ok(store.publish(&staging, &new)?)
}

/// The root directory itself: every user must be able to pass through it.
fn own_root(root: &std::path::Path) -> Result<(), IoError> {
    use crate::rootfs::{Links, Owned, Rootfs};
    let rootfs = Rootfs::open(root, Links::Refuse).at("open", root)?;
    rootfs.directory("".as_ref(), Owned::root(0o755)).at("own", root)
}

/// The image that this one builds on: from the store while it has today's agent, else built in, else an error.
fn base(
    store: &Store,
    definition: &Definition,
    progress: &mut dyn Progress,
) -> Result<Option<Image>, BuildError> {
    let Source::Image { name } = &definition.source else { return Ok(None) };
    let found = store.resolve(&ImageRef::Name(name.clone()));
    if let Ok(image) = &found
        && image.manifest.agent == agent_digest()
    {
        return Ok(Some(found?));
    }
    match Definition::built_in(name.as_str()) {
        Some(built_in) => build(store, &built_in, progress).map(Some),
        None => Ok(Some(found?)),
    }
}

/// Whatever this covers, and nothing else, decides whether an image is built anew.
fn digest_of(definition: &Definition, fingerprint: Option<Digest>) -> Digest {
    let text = serde_json::to_vec(definition).expect("a definition is always JSON");
    let mut hasher = Hasher::default();
    hasher.part(&BUILDER_VERSION.to_le_bytes());
    hasher.part(agent_digest().to_string().as_bytes());
    hasher.part(&text);
    hasher.part(fingerprint.map(|digest| digest.to_string()).unwrap_or_default().as_bytes());
    hasher.finish()
}

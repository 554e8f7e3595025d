//! The agent's executable, built by `build.rs` and carried inside this library.

use std::sync::LazyLock;

use crate::Digest;

/// The agent's executable: static, x86-64 Linux.
pub static AGENT: &[u8] = include_bytes!(env!("MAYFLY_AGENT"));

static DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::of(AGENT));

/// The digest of [`AGENT`], which is part of the digest of every image.
#[must_use]
pub fn agent_digest() -> Digest {
    *DIGEST
}

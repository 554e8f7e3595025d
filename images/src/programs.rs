//! The programs that run in sandboxes, built by `build.rs` and carried inside this library.

use std::sync::LazyLock;

use crate::Digest;

/// The agent's executable: static, x86-64 Linux.
pub static AGENT: &[u8] = include_bytes!(env!("MAYFLY_AGENT"));

/// The prober's executable, which looks around in a sandbox for `mayfly selftest`. It is in no image.
pub static PROBER: &[u8] = include_bytes!(env!("MAYFLY_PROBER"));

static DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::of(AGENT));

/// The digest of [`AGENT`], which is part of the digest of every image.
#[must_use]
pub fn agent_digest() -> Digest {
    *DIGEST
}

//! What mayfly's containers and images bear at the daemon, so that the reaper finds them, whoever made them.

use std::collections::HashMap;

use crate::{id::GenerationId, instance::Instance};

/// Containers.
pub(super) const INSTANCE: &str = "mayfly.instance";
pub(super) const GENERATION: &str = "mayfly.generation";
const NODE: &str = "mayfly.node";
const BOOT: &str = "mayfly.boot";

/// Images.
pub(super) const DIGEST: &str = "mayfly.digest";
pub(super) const STORE: &str = "mayfly.store";

/// A container's.
pub(super) fn of(instance: &Instance, node: &str, generation: GenerationId) -> HashMap<String, String> {
    HashMap::from([
        (NODE.to_owned(), node.to_owned()),
        (INSTANCE.to_owned(), instance.id().to_string()),
        (GENERATION.to_owned(), generation.to_string()),
        (BOOT.to_owned(), instance.boot().to_owned()),
    ])
}

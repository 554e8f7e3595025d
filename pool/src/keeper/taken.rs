//! A sandbox on its way to the job that asked for it.

use std::sync::Arc;

use super::{Maker, Slot};
use crate::lease::Source;

/// A sandbox for one job, with its place in the pool. Whoever drops it has not used it: the next may have it.
#[derive(Debug)]
pub(crate) struct Taken<M: Maker> {
    /// Gone once it has arrived.
    held: Option<(M::Clean, Slot<M>)>,
    source: Source,
}

impl<M: Maker> Taken<M> {
    pub(super) fn new(clean: M::Clean, source: Source, slot: Slot<M>) -> Self {
        Self { held: Some((clean, slot)), source }
    }

    pub(crate) fn into_parts(mut self) -> (M::Clean, Source, Slot<M>) {
        let (clean, slot) = self.held.take().expect("only this and drop take it");
        (clean, self.source, slot)
    }
}

impl<M: Maker> Drop for Taken<M> {
    fn drop(&mut self) {
        if let Some((clean, slot)) = self.held.take() {
            Arc::clone(&slot.core).deliver(&slot.kind, clean, None);
        }
    }
}

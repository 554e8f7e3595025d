//! A sandbox's place in the pool.

use std::{fmt, sync::Arc};

use super::{Core, Maker};
use crate::shelf::Held;

/// A sandbox's place in the pool. Dropped when the sandbox is gone: the place is free again.
pub(crate) struct Slot<M: Maker> {
    pub(super) core: Arc<Core<M>>,
    pub(super) kind: M::Kind,
    pub(super) held: Held,
    pub(super) quarantine: bool,
}

impl<M: Maker> fmt::Debug for Slot<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.kind).finish()
    }
}

impl<M: Maker> Slot<M> {
    /// The sandbox could not be ended. Its place is never free again.
    pub(crate) fn quarantine(mut self) {
        self.quarantine = true;
    }
}

impl<M: Maker> Drop for Slot<M> {
    fn drop(&mut self) {
        let mut shelves = self.core.lock();
        if let Some(shelf) = shelves.get_mut(&self.kind) {
            shelf.ended(self.held, self.quarantine);
        }
        drop(shelves);
        self.core.changed.notify_one();
    }
}

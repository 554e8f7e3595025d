//! What must be written when a sandbox has ended, whoever ends it and however.

use std::sync::Arc;

use crate::{
    id::GenerationId,
    ledger::{Ended, Event, Ledger},
    pool::PoolSlot,
};

/// Follows a sandbox from clean to gone. Its place in the pool is free again only when it is written.
#[derive(Debug)]
pub(crate) struct Obituary {
    ledger: Arc<Ledger>,
    generation: GenerationId,
    slot: Option<PoolSlot>,
}

impl Obituary {
    pub(crate) fn new(ledger: Arc<Ledger>, generation: GenerationId) -> Self {
        Self { ledger, generation, slot: None }
    }

    /// The sandbox is leased: its place in the pool goes with it.
    pub(crate) fn hold(&mut self, slot: PoolSlot) {
        self.slot = Some(slot);
    }

    /// The sandbox is gone.
    pub(crate) fn write(self, how: Ended) {
        if let Err(error) = self.ledger.append(Event::Ended { generation: self.generation, how }) {
            // The audit will find a life without an end; the sandbox itself is accounted for.
            tracing::error!(generation = %self.generation, %error, "cannot record the end of a sandbox");
        }
        match (self.slot, how) {
            (Some(slot), Ended::Quarantined) => slot.quarantine(),
            (slot, _) => drop(slot),
        }
    }
}

//! What must be written when a sandbox has ended, whoever ends it and however.

use std::{sync::Arc, time::Duration};

use crate::{
    id::GenerationId,
    ledger::{Ended, Event, Ledger},
    tier::Tier,
    tiers::PoolSlot,
    witness::{Happening, Witness},
};

/// Follows a sandbox from clean to gone. Its place in the pool is free again only when it is written.
#[derive(Debug)]
pub(crate) struct Obituary {
    ledger: Arc<Ledger>,
    generation: GenerationId,
    tier: Tier,
    witness: Arc<dyn Witness>,
    slot: Option<PoolSlot>,
}

impl Obituary {
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        generation: GenerationId,
        tier: Tier,
        witness: Arc<dyn Witness>,
    ) -> Self {
        Self { ledger, generation, tier, witness, slot: None }
    }

    /// The sandbox is not in the pool any more: its place goes with it.
    pub(crate) fn hold(&mut self, slot: PoolSlot) {
        self.slot = Some(slot);
    }

    /// The sandbox is gone, which took so long.
    pub(crate) fn write(self, how: Ended, took: Duration) {
        if let Err(error) = self.ledger.append(Event::Ended { generation: self.generation, how }) {
            // The audit will find a life without an end; the sandbox itself is accounted for.
            tracing::error!(generation = %self.generation, %error, "cannot record the end of a sandbox");
        }
        self.witness.hear(Happening::Ended { tier: self.tier, how, took });
        match (self.slot, how) {
            (Some(slot), Ended::Quarantined) => slot.quarantine(),
            (slot, _) => drop(slot),
        }
    }
}

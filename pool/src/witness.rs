//! Who hears what becomes of sandboxes, for counting. The pool tells and never asks: nothing that it does depends on it.

use std::{fmt, time::Duration};

use crate::{ledger::Ended, reaper::Leftover, tier::Tier, vm::Accelerator};

/// What has happened.
#[derive(Debug, Clone, Copy)]
pub enum Happening<'a> {
    /// A sandbox was made and found clean.
    Made {
        /// How it is isolated.
        tier: Tier,
        /// How long that took.
        took: Duration,
        /// Whether its runtime has known ways out.
        old_runtime: bool,
        /// What runs it, where it is a virtual machine.
        accelerator: Option<Accelerator>,
    },
    /// A sandbox could not be made.
    NotMade {
        /// How it was to be isolated.
        tier: Tier,
    },
    /// A sandbox that had been clean is over, or one that never was cannot be ended.
    Ended {
        /// How it was isolated.
        tier: Tier,
        /// Whether all of it is gone.
        how: Ended,
        /// How long that took.
        took: Duration,
    },
    /// It was looked for what dead processes of this node left.
    Swept {
        /// What was found and ended.
        ended: &'a [Leftover],
        /// Dead processes of which something could not be ended. They are tried again.
        stuck: usize,
    },
}

/// Hears it. It must not wait: it is called where sandboxes are made and ended.
pub trait Witness: fmt::Debug + Send + Sync + 'static {
    /// This has happened.
    fn hear(&self, what: Happening<'_>);
}

/// Where nobody counts.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Witness for Nobody {
    fn hear(&self, _: Happening<'_>) {}
}

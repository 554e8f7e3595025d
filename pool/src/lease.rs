//! A sandbox's one life, in types: `Clean` → [`Lease`] → [`Dirty`] → gone.
//!
//! `Clean` cannot be built outside this crate, and inside it only `Clean::prove` builds one, from an agent's
//! fresh answer and a new generation. Leasing consumes it and writes the ledger first. A [`Lease`] is never
//! cloned; what it becomes is [`Dirty`], which can only end. Dropped anywhere on the way, a sandbox is
//! destroyed and never handed out.
//!
//! A lease cannot be used after it was given back:
//!
//! ```compile_fail,E0382
//! async fn reuse(lease: pool::Lease) {
//!     let dirty = lease.into_dirty();
//!     lease.generation();
//! }
//! ```
//!
//! A dirty sandbox has no stream to run anything on:
//!
//! ```compile_fail,E0599
//! fn run_again(mut dirty: pool::Dirty) {
//!     dirty.channel();
//! }
//! ```
//!
//! Nor can it be leased, or made clean by hand:
//!
//! ```compile_fail,E0433
//! fn clean(dirty: pool::Dirty) {
//!     pool::Clean::prove(dirty);
//! }
//! ```
//!
//! One lease is not two:
//!
//! ```compile_fail,E0599
//! fn share(lease: &pool::Lease) -> pool::Lease {
//!     lease.clone()
//! }
//! ```

use std::{sync::Arc, time::Duration};

use agent::message::{Ready, ToAgent};
use images::Image;
use serde::{Deserialize, Serialize};

use crate::{
    body::{Body, DestroyError, NarrowError, Usage},
    channel::Channel,
    id::GenerationId,
    limits::Limits,
    obituary::Obituary,
    tier::Tier,
    tiers::PoolSlot,
    vm::Accelerator,
};

/// Where a checked-out sandbox came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It waited for the job.
    Warm,
    /// It was made for the job.
    Cold,
}

/// Why no sandbox waited for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColdReason {
    /// None of its kind was ready.
    Empty,
    /// Its limits fit no configured class, so none could be made ahead.
    Shape,
}

/// A sandbox that no job has seen, with its agent waiting and the job's process armed.
#[derive(Debug)]
pub(crate) struct Clean {
    life: Life,
}

/// A sandbox that belongs to one job and dies with it.
#[derive(Debug)]
pub struct Lease {
    life: Life,
    source: Source,
    reason: ColdReason,
}

/// A sandbox that a job has used. It can only end.
#[derive(Debug)]
pub struct Dirty {
    body: Body,
}

/// What a clean and a leased sandbox hold.
#[derive(Debug)]
struct Life {
    generation: GenerationId,
    image: Arc<Image>,
    limits: Limits,
    ready: Ready,
    making: Duration,
    channel: Channel,
    body: Body,
}

/// What a tier hands over once the agent has answered.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) generation: GenerationId,
    pub(crate) image: Arc<Image>,
    pub(crate) limits: Limits,
    pub(crate) ready: Ready,
    pub(crate) making: Duration,
    pub(crate) channel: Channel,
    pub(crate) body: Body,
}

impl Clean {
    /// The one way to a clean sandbox. Its end will be written where `obituary` says.
    pub(crate) fn prove(proof: Proof, obituary: Obituary) -> Self {
        let Proof { generation, image, limits, ready, making, channel, mut body } = proof;
        body.announce(obituary);
        Self { life: Life { generation, image, limits, ready, making, channel, body } }
    }

    pub(crate) fn generation(&self) -> GenerationId {
        self.life.generation
    }

    /// Whether its processes still live and its stream is open. It says nothing of what they did: no job has spoken to
    /// them.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.life.body.is_alive() && self.life.channel.is_quiet()
    }

    /// Gives the sandbox to its one job; the ledger says so already.
    pub(crate) fn lease(mut self, source: Source, reason: ColdReason, slot: PoolSlot) -> Lease {
        self.life.body.hold(slot);
        self.life.body.be_young();
        Lease { life: self.life, source, reason }
    }

    /// Ends a sandbox that no job has seen.
    pub(crate) async fn destroy(mut self, slot: PoolSlot) -> Result<(), DestroyError> {
        self.life.body.hold(slot);
        self.life.end().destroy().await
    }
}

impl Life {
    fn end(self) -> Dirty {
        let Self { channel, body, .. } = self;
        // The end of the stream is what an agent obeys even where a kill is slow to arrive.
        drop(channel);
        Dirty { body }
    }
}

impl Lease {
    /// The stream to the sandbox's agent.
    pub fn channel(&mut self) -> &mut Channel {
        &mut self.life.channel
    }

    /// This life's id.
    #[must_use]
    pub fn generation(&self) -> GenerationId {
        self.life.generation
    }

    /// The image that the sandbox was made from.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.life.image
    }

    /// How the sandbox is isolated.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.life.body.tier()
    }

    /// What the sandbox may use.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.life.limits
    }

    /// Whether the sandbox waited for the job.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// Why no sandbox waited, if none did.
    #[must_use]
    pub fn cold_reason(&self) -> Option<ColdReason> {
        (self.source == Source::Cold).then_some(self.reason)
    }

    /// Tightens the limits of the sandbox's class to the job's own.
    pub(crate) fn narrow(&mut self, limits: &Limits) -> Result<(), NarrowError> {
        if self.life.limits != *limits {
            if let Some(bounds) = self.life.body.narrow(&self.life.limits, limits)? {
                // Ahead of the job's first byte, and on the way with it.
                self.life.channel.send(0, ToAgent::Bound(bounds))?;
            }
            self.life.limits = *limits;
        }
        Ok(())
    }

    /// What is worth knowing of how the sandbox was made, such as that its runtime has known faults.
    #[must_use]
    pub fn caveat(&self) -> Option<&str> {
        self.life.body.caveat()
    }

    /// What runs the sandbox, where it is a virtual machine.
    #[must_use]
    pub fn accelerator(&self) -> Option<Accelerator> {
        self.life.body.accelerator()
    }

    /// How long it took to make the sandbox.
    #[must_use]
    pub fn making(&self) -> Duration {
        self.life.making
    }

    /// What the agent said of itself when the sandbox was found clean. Guest-reported.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.life.ready
    }

    /// What the job has used so far, as the host's kernel counts it.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.life.body.usage()
    }

    /// Whether somebody on the host has stopped the sandbox, which therefore does not answer.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.life.body.is_halted()
    }

    /// How many processes of the job the host sees, or `None` where the host cannot see inside.
    #[must_use]
    pub fn survivors(&self) -> Option<usize> {
        self.life.body.survivors()
    }

    /// The job is over: nothing more runs here.
    #[must_use = "dropping a dirty sandbox destroys it without telling whether that worked"]
    pub fn into_dirty(self) -> Dirty {
        self.life.end()
    }

    /// Ends the sandbox and everything in it, and waits until it is gone.
    pub async fn destroy(self) -> Result<(), DestroyError> {
        self.into_dirty().destroy().await
    }
}

impl Dirty {
    /// Ends the sandbox and everything in it, and waits until it is gone. One that does not end keeps its
    /// place in the pool and is never handed out.
    pub async fn destroy(self) -> Result<(), DestroyError> {
        self.body.destroy().await
    }
}

//! The tiers of a host, as the pool's maker of sandboxes.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use images::Image;

use crate::{
    chroot::Chroot,
    docker,
    keeper::{Maker, Slot},
    lease::{Clean, Proof},
    ledger::{Event, Ledger},
    limits::Limits,
    nspawn::Nspawn,
    obituary::Obituary,
    pressure,
    tier::Tier,
    vm,
    witness::{Happening, Witness},
    workshop::{MakeError, Workshop},
};

/// A sandbox's place in the pool.
pub(crate) type PoolSlot = Slot<Arc<Tiers>>;

/// What one kind of sandbox is made of.
#[derive(Clone)]
pub(crate) struct Blueprint {
    pub(crate) tier: Tier,
    pub(crate) image: Arc<Image>,
    pub(crate) limits: Limits,
    /// Made for one job, whose limits fit no class.
    pub(crate) measured: bool,
    /// Whose alone it is, where that makes a difference.
    pub(crate) owner: Option<String>,
}

/// The tiers of this host: the pool's maker of sandboxes.
#[derive(Debug)]
pub(crate) struct Tiers {
    pub(crate) chroot: Chroot,
    pub(crate) nspawn: Nspawn,
    pub(crate) docker: docker::Tier,
    pub(crate) vm: vm::Tier,
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) witness: Arc<dyn Witness>,
}

impl Tiers {
    async fn proof(&self, kind: &Blueprint) -> Result<Proof, MakeError> {
        let image = Arc::clone(&kind.image);
        match kind.tier {
            Tier::Chroot => self.chroot.make(image, kind.limits).await,
            Tier::Nspawn => self.nspawn.make(image, kind.limits).await,
            Tier::Docker => self.docker.make(image, kind.limits).await,
            Tier::Vm => self.vm.make(image, kind.limits, kind.owner.as_deref()).await,
        }
    }
}

impl Maker for Arc<Tiers> {
    type Kind = Blueprint;
    type Clean = Clean;
    type Error = MakeError;

    async fn make(&self, kind: &Blueprint) -> Result<Clean, MakeError> {
        let tier = kind.tier;
        let proof = self.proof(kind).await.inspect_err(|_| self.witness.hear(Happening::NotMade { tier }))?;
        let (generation, body) = (proof.generation, &proof.body);
        self.ledger.append(Event::Clean { generation, tier, image: image_name(&kind.image) })?;
        self.witness.hear(Happening::Made {
            tier,
            took: proof.making,
            old_runtime: body.caveat().is_some(),
            accelerator: body.accelerator(),
        });
        let (ledger, witness) = (Arc::clone(&self.ledger), Arc::clone(&self.witness));
        Ok(Clean::prove(proof, Obituary::new(ledger, generation, tier, witness)))
    }

    async fn discard(&self, clean: Clean, slot: PoolSlot) {
        let generation = clean.generation();
        if let Err(error) = clean.destroy(slot).await {
            tracing::error!(%generation, %error, "a sandbox that was not needed could not be destroyed");
        }
    }

    fn is_fit(&self, clean: &mut Clean) -> bool {
        clean.is_alive()
    }

    fn is_made_ahead(&self, kind: &Blueprint) -> bool {
        !kind.measured
    }

    fn making_now(&self, most: usize) -> usize {
        pressure::making_now(most)
    }
}

pub(crate) fn image_name(image: &Image) -> String {
    format!("{}@{}", image.name, image.digest)
}

impl Blueprint {
    fn identity(&self) -> impl Eq + Hash + '_ {
        (self.tier, image_name(&self.image), self.limits, self.measured, &self.owner)
    }
}

impl PartialEq for Blueprint {
    fn eq(&self, other: &Self) -> bool {
        self.tier == other.tier
            && self.limits == other.limits
            && self.owner == other.owner
            && self.measured == other.measured
            && self.image.digest == other.image.digest
            && self.image.name == other.image.name
    }
}

impl Eq for Blueprint {}

impl Hash for Blueprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.tier, image_name(&self.image))
    }
}

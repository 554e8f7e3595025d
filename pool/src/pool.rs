//! Checks clean sandboxes out. Knows images, tiers and limits; knows no job and no queue.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use images::{ImageRef, Resolver, Store, StoreError};
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::{
    body::NarrowError,
    cgroup::{CgroupError, Hierarchy},
    chroot::Chroot,
    docker::{self, Docker as DockerSettings},
    failpoint,
    id::InstanceId,
    instance::{Instance, InstanceError},
    keeper::{Keeper, Refused, Settings},
    lease::{ColdReason, Lease},
    ledger::{self, Event, JobRef, Ledger, LedgerError},
    limits::{LimitError, Limits},
    nspawn::Nspawn,
    reaper::{Ground, Leftover},
    shapes::{Shape, Shapes},
    tier::Tier,
    tiers::{Blueprint, Tiers, image_name},
    vm::{self, Vm as VmSettings},
    witness::{Nobody, Witness},
    workshop::{self, MakeError, Workshop},
};

/// Where a pool keeps its things, and how many.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// What outlives the machine's boot: images, the ledger, results. It names the node.
    pub data_dir: PathBuf,
    /// What does not: locks and claims of the processes that live now.
    pub run_dir: PathBuf,
    /// The program that calls [`crate::spawner`] when it is started with [`crate::SPAWNER_ARG`] as its only
    /// argument: mayfly itself.
    pub spawner: PathBuf,
    /// How many sandboxes wait, and how many there may be.
    pub settings: Settings,
    /// Which docker daemon makes containers, if any are wanted.
    pub docker: DockerSettings,
    /// How virtual machines are made, if any are wanted.
    pub vm: VmSettings,
    /// Who hears what becomes of sandboxes.
    pub witness: Arc<dyn Witness>,
    /// The classes of limits of which sandboxes are made ahead. None: each set of limits that is asked for is one.
    pub classes: Vec<Limits>,
}

/// What a job needs of a sandbox.
#[derive(Debug, Clone)]
pub struct Want {
    /// How strong the isolation must be.
    pub tier: Tier,
    /// From which image.
    pub image: ImageRef,
    /// Within which limits.
    pub limits: Limits,
    /// Whose it is, where sandboxes of different owners are to share no memory.
    pub owner: Option<String>,
}

/// Keeps clean sandboxes and hands each to one job.
#[derive(Debug)]
pub struct Pool {
    images: Resolver,
    shapes: Shapes,
    instance: Instance,
    ground: Ground,
    ledger: Arc<Ledger>,
    tiers: Arc<Tiers>,
    keeper: Keeper<Arc<Tiers>>,
    reaper: JoinHandle<()>,
    swept: Swept,
}

/// Processes of this node of which the reaper has ended what they left, and nobody has heard yet.
#[derive(Debug, Clone, Default)]
struct Swept(Arc<Mutex<Vec<InstanceId>>>);

impl Swept {
    fn note(&self, ended: &[Leftover]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(ended.iter().map(|left| left.instance));
    }
}

/// How one kind of sandbox stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KindStatus {
    /// Its isolation.
    pub tier: Tier,
    /// Its image, `name@sha256:…`.
    pub image: String,
    /// Its limits.
    pub limits: Limits,
    /// Clean ones that wait.
    pub ready: usize,
    /// How many should wait.
    pub target: usize,
    /// Being made.
    pub making: usize,
    /// In use, or being ended.
    pub leased: usize,
    /// Could not be destroyed.
    pub quarantined: usize,
    /// Jobs that wait for one.
    pub waiting: usize,
    /// How long it takes until one that was taken is made anew, as measured lately.
    #[serde(default)]
    pub refill_us: u64,
}

/// No pool can be opened here.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Not root.
    #[error("mayfly must run as root to make sandboxes: id-mapped mounts and cgroups need it")]
    NotRoot,
    /// The image store.
    #[error("cannot open the image store")]
    Images(#[from] StoreError),
    /// The run directory.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The cgroup hierarchies.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What sandboxes are made with.
    #[error(transparent)]
    Workshop(#[from] workshop::OpenError),
}

/// No sandbox can be had.
#[derive(Debug, Error)]
pub enum CheckoutError {
    /// The image is not there, or cannot be used.
    #[error(transparent)]
    Image(#[from] StoreError),
    /// The limits cannot hold.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// This host does not offer the tier.
    #[error("tier {0} is not offered here")]
    TierMissing(Tier),
    /// The checkout cannot be recorded. Nothing of the job was sent.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The sandbox could not be made. An infrastructure failure: never the job's.
    #[error("cannot make a {tier} sandbox")]
    Make {
        /// Which tier.
        tier: Tier,
        /// At which step, and why.
        #[source]
        error: MakeError,
    },
    /// The sandbox has its class's limits and could not be given the job's, which are tighter. An infrastructure
    /// failure: never the job's.
    #[error("cannot give a {tier} sandbox its limits")]
    Narrow {
        /// Which tier.
        tier: Tier,
        /// Which limit, and why.
        #[source]
        error: NarrowError,
    },
    /// The pool closes.
    #[error("the pool is closing")]
    Closing,
}

impl Pool {
    /// Opens the image store and the ledger, ends what dead processes of this node left, and starts keeping.
    ///
    /// # Panics
    /// Outside of an async runtime: the pool keeps itself in tasks.
    pub fn open(config: &PoolConfig) -> Result<Self, OpenError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(OpenError::NotRoot);
        }
        let images = Store::open(&config.data_dir.join(IMAGES))?;
        let (instance, ground, ledger) = take_place(&config.data_dir, &config.run_dir)?;
        let ledger = Arc::new(ledger);
        let swept = Swept::default();
        swept.note(&ground.sweep(&ledger, &*config.witness));
        let (hierarchy, witness) = (ground.hierarchy.clone(), Arc::clone(&config.witness));
        let workshop = Arc::new(Workshop::open(&config.spawner, instance.clone(), hierarchy, witness)?);
        let tiers = Arc::new(Tiers {
            chroot: Chroot::new(Arc::clone(&workshop)),
            nspawn: Nspawn::new(Arc::clone(&workshop)),
            docker: docker::Tier::new(
                Arc::clone(&workshop),
                config.docker.clone(),
                &config.run_dir,
                &config.data_dir,
            ),
            vm: vm::Tier::new(
                Arc::clone(&workshop),
                images.clone(),
                config.vm.clone(),
                &config.run_dir,
                &config.data_dir,
            ),
            workshop,
            ledger: Arc::clone(&ledger),
            witness: Arc::clone(&config.witness),
        });
        let keeper = Keeper::start(Arc::clone(&tiers), config.settings.clone());
        let reaper = tokio::spawn(sweep_forever(ground.clone(), Arc::clone(&tiers), swept.clone()));
        let (images, shapes) = (Resolver::new(images), Shapes::new(config.classes.clone()));
        Ok(Self { images, shapes, instance, ground, ledger, tiers, keeper, reaper, swept })
    }

    /// A clean sandbox for one job. The ledger says so before it is given.
    pub async fn checkout(&self, want: &Want, job: JobRef) -> Result<Lease, CheckoutError> {
        let blueprint = self.blueprint(want)?;
        let taken = self.keeper.take(&blueprint).await.map_err(|refused| match refused {
            Refused::Making(error) => CheckoutError::Make { tier: want.tier, error },
            Refused::Closing => CheckoutError::Closing,
        })?;
        let (clean, source, slot) = taken.into_parts();
        let generation = clean.generation();
        // Leased first: should the record fail, the drop of the lease ends the sandbox and frees its place.
        let reason = if blueprint.measured { ColdReason::Shape } else { ColdReason::Empty };
        let mut lease = clean.lease(source, reason, slot);
        self.ledger.append(Event::Consumed { generation, job })?;
        failpoint::pass("consumed");
        lease.narrow(&want.limits).map_err(|error| CheckoutError::Narrow { tier: want.tier, error })?;
        Ok(lease)
    }

    /// Lets this many sandboxes of a kind wait even when no job comes.
    pub fn keep(&self, want: &Want, idle_count: usize) -> Result<(), CheckoutError> {
        let blueprint = self.blueprint(want)?;
        self.keeper.keep(&blueprint, idle_count);
        Ok(())
    }

    /// Says how many jobs of a kind are still to come, so that as many sandboxes are made and no more.
    pub fn expect(&self, want: &Want, jobs: usize) -> Result<(), CheckoutError> {
        let blueprint = self.blueprint(want)?;
        self.keeper.expect(&blueprint, jobs);
        Ok(())
    }

    /// How each kind of sandbox stands now.
    #[must_use]
    pub fn status(&self) -> Vec<KindStatus> {
        let standings = self.keeper.standings().into_iter();
        standings
            .map(|standing| KindStatus {
                tier: standing.kind.tier,
                image: image_name(&standing.kind.image),
                limits: standing.kind.limits,
                ready: standing.ready,
                target: standing.target,
                making: standing.counts.making,
                leased: standing.counts.leased + standing.counts.ending,
                quarantined: standing.counts.quarantined,
                waiting: standing.waiting,
                refill_us: standing.horizon.as_micros() as u64,
            })
            .collect()
    }

    /// This process among the mayflies of all hosts.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.instance.id()
    }

    /// Processes of this node that are dead for certain, each told once.
    #[must_use]
    pub fn dead(&self) -> Vec<InstanceId> {
        std::mem::take(&mut *self.swept.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The host's pids of all processes in this pool's sandboxes, as the cgroups tell.
    #[must_use]
    pub fn sandbox_pids(&self) -> Vec<i32> {
        self.ground.processes_of(self.instance.id())
    }

    /// Ends what waits, waits until it is gone, and removes this process's marks.
    ///
    /// Leases that still live end with the process that clones sandboxes: destroy them first.
    pub async fn close(self) {
        let Self { instance, ground, ledger, tiers, keeper, reaper, .. } = self;
        reaper.abort();
        // Its clone of the ledger goes with it, so its end is waited for.
        let _ = reaper.await;
        keeper.close().await;
        tiers.vm.close().await;
        let (fleet, stable) = (tiers.docker.fleet(), tiers.vm.stable());
        if let Some(Tiers { workshop, chroot, nspawn, docker, vm, .. }) = Arc::into_inner(tiers) {
            drop((chroot, nspawn, docker, vm));
            if let Some(workshop) = Arc::into_inner(workshop) {
                workshop.close().await;
            }
        }
        let machines_left = match stable {
            Some(stable) => stable.close().await,
            None => false,
        };
        let left = machines_left || fleet.is_some_and(|fleet| fleet.leaves_something());
        let Some(ledger) = Arc::into_inner(ledger) else {
            tracing::warn!(
                "the pool was closed while sandboxes were leased: the next mayfly ends what is left"
            );
            return;
        };
        leave_place(&instance, &ground, ledger, left);
    }

    fn blueprint(&self, want: &Want) -> Result<Blueprint, CheckoutError> {
        want.limits.check()?;
        let image = self.images.resolve(&want.image)?;
        let exact_disk = want.tier == Tier::Docker && self.tiers.docker.may_have_own_kernel();
        let (limits, measured) = match self.shapes.of(&want.limits, exact_disk) {
            Shape::Class(limits) => (limits, false),
            Shape::Measured(limits) => (limits, true),
        };
        let owner =
            want.owner.clone().filter(|_| want.tier == Tier::Vm && self.tiers.vm.keeps_owners_apart());
        Ok(Blueprint { tier: want.tier, image, limits, measured, owner })
    }
}

/// The store's directory below a node's.
const IMAGES: &str = "images";

/// How often dead processes' leftovers are looked for.
const SWEEPS: Duration = Duration::from_secs(5);

/// Every how many of these looks old records of the ledger are removed: each hour, and never by a process so short
/// that reading the whole directory would be most of its work.
const SWEEPS_TO_FORGET: u64 = 720;

async fn sweep_forever(ground: Ground, tiers: Arc<Tiers>, swept: Swept) {
    for look in 0_u64.. {
        tokio::time::sleep(SWEEPS).await;
        let (ground, ledger, swept) = (ground.clone(), Arc::clone(&tiers.ledger), swept.clone());
        let witness = Arc::clone(&tiers.witness);
        let sweep = move || {
            swept.note(&ground.sweep(&ledger, &*witness));
            if look % SWEEPS_TO_FORGET == 0 {
                forget(&ground.node);
            }
        };
        // It reads and kills and waits: not on a thread that serves jobs.
        if let Err(error) = tokio::task::spawn_blocking(sweep).await {
            tracing::error!(%error, "a look for dead processes' leftovers failed");
        }
        tiers.docker.sweep(look % SWEEPS_TO_FORGET == 0).await;
        tiers.vm.sweep().await;
    }
}

/// Removes files that nobody will ask for: old records, and what dead processes had begun to write.
fn forget(data_dir: &Path) {
    if let Err(error) = ledger::forget_old(data_dir) {
        tracing::warn!(%error, "cannot remove old records of the ledger");
    }
    vm::forget_unfinished(&data_dir.join(IMAGES));
}

/// Marks this process as alive on its node and opens its part of the ledger.
fn take_place(data_dir: &Path, run_dir: &Path) -> Result<(Instance, Ground, Ledger), OpenError> {
    let hierarchy = Hierarchy::find()?;
    let instance = Instance::register(run_dir, data_dir)?;
    let ledger = Ledger::open(data_dir, &instance)?;
    let ground = Ground { run_dir: run_dir.to_owned(), node: data_dir.to_owned(), hierarchy };
    Ok((instance, ground, ledger))
}

/// Takes the mark away if nothing of this process is left; else the next mayfly of this node finds it.
fn leave_place(instance: &Instance, ground: &Ground, ledger: Ledger, elsewhere: bool) {
    let left = ground
        .remove_cgroups_of(instance.id())
        .map_err(|error| error.to_string())
        .and_then(|()| ledger.close().map_err(|error| error.to_string()));
    match left {
        Ok(()) if elsewhere => {
            tracing::warn!("something of this process's is left at the docker daemon or at libvirt");
        }
        Ok(()) => instance.retire(),
        Err(error) => tracing::warn!(%error, "something of this process's sandboxes is left"),
    }
}

/// Ends what dead processes of a node left, and says what that was; with `dry_run` only says it.
pub fn reap(data_dir: &Path, run_dir: &Path, dry_run: bool) -> Result<Vec<Leftover>, OpenError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(OpenError::NotRoot);
    }
    if dry_run {
        let ground =
            Ground { run_dir: run_dir.to_owned(), node: data_dir.to_owned(), hierarchy: Hierarchy::find()? };
        return Ok(ground.find().iter().map(|dead| ground.describe(dead)).collect());
    }
    let (instance, ground, ledger) = take_place(data_dir, run_dir)?;
    let ended = ground.sweep(&ledger, &Nobody);
    forget(data_dir);
    leave_place(&instance, &ground, ledger, false);
    Ok(ended)
}

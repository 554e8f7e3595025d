//! Clean, single-use sandboxes: how they are made, handed to one job, watched and ended.
//!
//! The pool knows no job and no queue. What it gives out is a [`Lease`]: one sandbox, one life, one job.

mod body;
mod cgroup;
mod channel;
mod chroot;
mod disk;
mod docker;
mod enclose;
pub mod failpoint;
mod greeting;
pub mod host;
mod id;
mod instance;
mod keeper;
mod lease;
mod ledger;
mod limits;
mod nspawn;
mod obituary;
mod pool;
mod pressure;
mod proof;
mod reaper;
mod sandbox;
mod shapes;
mod shelf;
mod sizing;
mod tier;
mod tiers;
mod turns;
mod uids;
mod vm;
mod watch;
mod witness;
mod workshop;

pub use body::{DestroyError, NarrowError, Usage};
pub use channel::{Channel, ChannelError};
pub use chroot::{SPAWNER_ARG, spawner};
pub use docker::{Docker as DockerSettings, DockerError, Engine as DockerEngine, name_of as docker_image};
pub use id::{BadId, GenerationId, Id, InstanceId};
pub use keeper::Settings;
pub use lease::{ColdReason, Dirty, Lease, Source};
pub use ledger::{Audit, Ended, Event, Finding, JobRef, LedgerError, Story, Unproved, audit, story};
pub use limits::{LimitError, Limits};
pub use nspawn::{Installed as InstalledNspawn, NotInstalled as NoNspawn};
pub use pool::{CheckoutError, KindStatus, OpenError, Pool, PoolConfig, Want, reap};
pub use pressure::Pressure;
pub use reaper::Leftover;
pub use tier::{Tier, UnknownTier};
pub use vm::{
    Accel, Accelerator, Engine as VmEngine, Kernel as VmKernel, LibvirtError, LibvirtSettings,
    Sharing as VmSharing, Vm as VmSettings, VmError, check_local as check_libvirt_uri,
};
pub use witness::{Happening, Nobody, Witness};
pub use workshop::{MakeError, OpenError as WorkshopOpenError};

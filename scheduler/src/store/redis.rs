//! The store of several hosts: one Redis that all of them write to, and that tells them apart.
//!
//! It talks to Redis and to nobody else; it knows no broker and no sandbox. Every mutation is one Lua script
//! (`redis/lua/`), so it is done whole or not at all, and every one does no harm when it is done twice: an answer that
//! is lost is simply asked for again. Time is Redis' own; no host's clock is compared with another's.
//!
//! **Who has a job.** An attempt names its owner, an instance (one mayfly process). It is alive for as long as its
//! owner's lease is, and each host renews its one lease every few seconds (`redis/heartbeat.rs`). So a thousand
//! jobs cost no more renewals than one. An instance whose death is certain (its lock on this host is free) is
//! buried, and its jobs can be begun elsewhere at once. If nobody's heartbeat came for a while, Redis was away and
//! the hosts were not: leases that ran out meanwhile are good for one more (`lua/leases.lua`).
//!
//! **Redis is away.** Calls wait until it is back or the store is closed. They fail no job and drop no result.
//!
//! **Redis forgets.** Unless it is told `appendfsync always`, a crash takes about a second of what it answered, always
//! the newest. The owner's memory is what is left (`redis/held.rs`): whoever reconnects to another Redis process
//! first says again what it knows. By what was forgotten:
//!
//! 1. *That an attempt began.* Its owner says so again (`lua/restore.lua`). If the job is begun elsewhere before that,
//!    the later attempt has the greater epoch (it is made from time, so one that was forgotten is not given out a
//!    second time), and the first ends `Stale`: one result. An attempt that ends with an epoch greater than any that
//!    Redis knows was forgotten and not restored, for no stale one can have that: its result is stored.
//! 2. *That an attempt took a dead one's job over.* The same: the newer epoch is restored, or wins by being greater.
//! 3. *A result.* Its owner stores it again. It was told that the result stands and may have published it, so this
//!    one wins even over an attempt that began since, and that attempt will end `Stale`. Only if the job was begun *and ended*
//!    elsewhere in the meantime are there two results in the world, of which Redis has the later; this takes a message
//!    that came twice within that second, and is logged. If the owner has died within the same second too, the job has begun
//!    and nobody has it: it is begun again if its message comes again.
//! 4. *That an attempt was taken back.* Its owner takes it back again. Else the job would stay with an owner that lives and
//!    does not have it; that cannot last, because each heartbeat compares what Redis believes of an instance with what the
//!    instance knows of itself, and disowns the rest.
//! 5. *A cancellation or a note that a job was sent.* Gone; whoever asked sees that the job goes on, and asks again.
//! 6. *A claim.* Gone, and the job with it if its owner dies too: that is why claims want `appendfsync always`.

mod address;
mod cancels;
mod claims;
mod durability;
mod error;
mod follow;
mod heartbeat;
mod held;
mod hosts;
mod jobs;
mod keys;
mod link;
mod output;
mod scripts;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pool::Tier;
use redis::{Script, ScriptInvocation};
use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};

use self::{
    held::Held,
    keys::Keys,
    link::{Link, Outlook},
    output::Pump,
};
use crate::key::JobKey;

pub use address::RedisAddress;
pub use cancels::Cancellations;
pub use claims::{Claim, Claiming};
pub use durability::Durability;
pub use error::RedisStoreError;
pub use follow::{Follow, Said};
pub use hosts::{Host, HostFacts};
pub use link::Health;
pub use output::{LiveOutput, Stream};

/// How a Redis store works.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// Where Redis is.
    pub address: RedisAddress,
    /// What all its keys begin with.
    pub prefix: String,
    /// How long an instance counts as alive after its last heartbeat. The same on all hosts.
    pub lease: Duration,
    /// How long a result can be fetched.
    pub results_for: Duration,
    /// How long the outcome of a job is known, and its id cannot be used for another.
    pub outcomes_for: Duration,
    /// How long an answer is waited for before the connection counts as lost.
    pub patience: Duration,
}

impl RedisSettings {
    /// What is good for most.
    #[must_use]
    pub fn new(address: RedisAddress) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            address,
            prefix: "mayfly".to_owned(),
            lease: Duration::from_secs(15),
            results_for: DAY,
            outcomes_for: 7 * DAY,
            patience: Duration::from_secs(5),
        }
    }
}

/// The store. Clones are the same one.
#[derive(Debug, Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: RedisSettings,
    keys: Keys,
    /// The instance whose store this is; `None`: it only looks on.
    instance: Option<String>,
    facts: watch::Sender<HostFacts>,
    client: redis::Client,
    outlook: Outlook,
    /// What the jobs need.
    commands: Arc<Link>,
    /// Heartbeats do not wait behind results.
    pulse: Arc<Link>,
    held: Held,
    cancelled: broadcast::Sender<JobKey>,
    stale: AtomicU64,
    /// The Redis process that was last spoken to.
    known_process: std::sync::Mutex<Option<String>>,
    pump: Pump,
    /// The heartbeat and the listener.
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl RedisStore {
    /// A store to look on and to ask for things: jobs cannot be begun with it.
    pub fn look_on(settings: RedisSettings) -> Result<Self, RedisStoreError> {
        Self::make(settings, None, HostFacts::default())
    }

    /// The store of one instance, a mayfly process that runs jobs. It is alive from the first answer of Redis on,
    /// until the last clone of this is dropped. Redis need not be there yet.
    pub fn open(settings: RedisSettings, instance: &str, facts: HostFacts) -> Result<Self, RedisStoreError> {
        let facts = HostFacts { instance: instance.to_owned(), ..facts };
        let store = Self::make(settings, Some(instance.to_owned()), facts)?;
        store.greet_first();
        let tasks = vec![heartbeat::start(&store.shared), cancels::listen(&store.shared)];
        *store.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(store)
    }

    fn make(
        settings: RedisSettings,
        instance: Option<String>,
        facts: HostFacts,
    ) -> Result<Self, RedisStoreError> {
        let client = settings.address.client()?;
        let outlook = Outlook::new();
        let connect = settings.patience.min(Duration::from_secs(2));
        let link = || Link::new(client.clone(), connect, Some(settings.patience), outlook.clone());
        let (commands, pulse) = (link(), link());
        let pump = Pump::new(link());
        let keys = Keys::new(&settings.prefix);
        let shared = Shared {
            keys,
            instance,
            facts: watch::Sender::new(facts),
            outlook,
            commands,
            pulse,
            held: Held::default(),
            cancelled: broadcast::Sender::new(1024),
            stale: AtomicU64::new(0),
            known_process: std::sync::Mutex::new(None),
            pump,
            tasks: std::sync::Mutex::default(),
            client,
            settings,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The first words on each new connection: what Redis may have forgotten.
    fn greet_first(&self) {
        let shared = Arc::downgrade(&self.shared);
        self.shared.commands.greet_with(Box::new(move |connection| {
            let shared = shared.upgrade();
            Box::pin(async move {
                match shared {
                    Some(shared) => shared.remind(connection).await,
                    None => Ok(()),
                }
            })
        }));
    }

    /// How Redis stands.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.outlook.health()
    }

    /// How many results came too late to count.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.shared.stale.load(Ordering::Relaxed)
    }

    /// Notes that a job was sent, so that it is known before any host has pulled it, and which tier it needs, if that is
    /// known. `false`: its id is known already.
    pub async fn submitted(&self, job: &JobKey, tier: Option<Tier>) -> Result<bool, RedisStoreError> {
        let shared = &self.shared;
        let mut ask = scripts::SUBMITTED.prepare_invoke();
        ask.key(shared.keys.job(job)).arg(millis(shared.settings.outcomes_for));
        ask.arg(tier.map_or("", Tier::name));
        shared.commands.ask(&ask).await
    }

    /// The tier that a job needs which waits, as far as anybody has told.
    pub async fn needs(&self, job: &JobKey) -> Result<Option<Tier>, RedisStoreError> {
        let mut ask = redis::cmd("HGET");
        ask.arg(self.shared.keys.job(job)).arg("tier");
        let tier: Option<String> = self.shared.commands.ask(&ask).await?;
        Ok(tier.and_then(|tier| tier.parse().ok()))
    }

    /// How many jobs of each tenant run on live hosts. A tenant without any is not listed.
    pub async fn running(&self) -> Result<Vec<(String, u64)>, RedisStoreError> {
        let shared = &self.shared;
        let mut ask = shared.onlooker(&scripts::RUNNING);
        ask.key(&shared.keys.begun);
        shared.commands.ask(&ask).await
    }

    /// Says that an instance is dead for certain, so that nobody waits for its lease to run out.
    pub async fn bury(&self, instance: &str) -> Result<(), RedisStoreError> {
        let shared = &self.shared;
        let mut ask = scripts::BURY.prepare_invoke();
        ask.key(&shared.keys.leases).key(&shared.keys.hosts).arg(instance);
        shared.commands.ask::<u64>(&ask).await.map(|_| ())
    }

    /// Ends all waiting and takes this instance off the list of hosts. Call it when no job runs any more.
    pub async fn close(&self) {
        let shared = &self.shared;
        shared.outlook.close();
        if let Some(instance) = shared.instance.as_ref().filter(|_| shared.held.jobs() == 0) {
            let mut ask = scripts::BURY.prepare_invoke();
            ask.key(&shared.keys.leases).key(&shared.keys.hosts).arg(instance);
            // If this is lost, the lease runs out.
            let _ = tokio::time::timeout(shared.settings.patience, shared.pulse.try_once::<u64>(&ask)).await;
        }
    }
}

impl Shared {
    /// A script that judges and renews leases, as the instance that this is.
    fn as_host<'a>(&self, script: &'a Script) -> Result<ScriptInvocation<'a>, RedisStoreError> {
        let instance = self.instance.as_ref().ok_or(RedisStoreError::Onlooker)?;
        let mut ask = script.prepare_invoke();
        ask.key(&self.keys.leases).key(&self.keys.silence);
        ask.arg(micros(self.settings.lease)).arg(instance);
        Ok(ask)
    }

    /// A script that judges leases and renews none.
    fn onlooker<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut ask = script.prepare_invoke();
        ask.key(&self.keys.leases).key(&self.keys.silence).arg(0);
        ask
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

fn millis(time: Duration) -> u64 {
    (time.as_millis() as u64).max(1)
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

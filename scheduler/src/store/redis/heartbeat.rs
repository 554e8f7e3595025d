//! That this instance lives, said every few seconds; and what is learnt on the way: which of its jobs are not wanted
//! any more, and what Redis believes to be this instance's and is not.
//!
//! This is level-triggered: whatever message or answer was lost, the next heartbeat finds the difference.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use redis::{ScriptInvocation, cmd};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{HostFacts, RedisStoreError, Shared, link::passes, scripts};
use crate::key::JobKey;

/// Heartbeats in one lease. Some may be lost before anybody else takes the jobs over.
const PER_LEASE: u32 = 5;

type Entry = (String, u64, String);
/// Attempts, those of them that are cancelled, and claims: all that Redis takes for this instance's.
type Account = (Vec<Entry>, Vec<String>, Vec<Entry>);

/// Starts the heartbeat. It ends with the store.
///
/// Two things side by side: what Redis answers is worked through as it can be, and the lease is renewed at its times
/// whatever becomes of that.
pub(super) fn start(shared: &Arc<Shared>) -> JoinHandle<()> {
    let every = (shared.settings.lease / PER_LEASE).max(Duration::from_millis(1));
    let outlook = shared.outlook.clone();
    let shared = Arc::downgrade(shared);
    let (tell, told) = watch::channel(Account::default());
    tokio::spawn(async move {
        tokio::select! {
            () = outlook.closed() => {}
            () = renew(shared.clone(), every, tell) => {}
            () = compare(shared, told) => {}
        }
    })
}

/// Says again and again that this instance lives, and at once when something changes that it says of itself.
async fn renew(shared: Weak<Shared>, every: Duration, tell: watch::Sender<Account>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Some(mut facts) = shared.upgrade().map(|shared| shared.facts.subscribe()) else { return };
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = facts.changed() => if changed.is_err() { return },
        }
        let Some(shared) = shared.upgrade() else { return };
        match shared.beat_once().await {
            Ok(Some(account)) => drop(tell.send_replace(account)),
            // The next one comes soon, and `health` has been told.
            Ok(None) | Err(RedisStoreError::Closed) => {}
            Err(error) => tracing::warn!(error = %worker::causes(&error), "a heartbeat went wrong"),
        }
    }
}

/// Compares what Redis believes with what is so, each time that it says it. What it said while this took long is made up
/// for by what it says next.
async fn compare(shared: Weak<Shared>, mut told: watch::Receiver<Account>) {
    while told.changed().await.is_ok() {
        let account = told.borrow_and_update().clone();
        let Some(shared) = shared.upgrade() else { return };
        match shared.compare(account).await {
            Ok(()) | Err(RedisStoreError::Closed) => {}
            Err(error) => tracing::warn!(error = %worker::causes(&error), "a heartbeat's answer went wrong"),
        }
    }
}

impl Shared {
    pub(super) fn heartbeat(&self) -> Result<ScriptInvocation<'static>, RedisStoreError> {
        let mut ask = self.as_host(&scripts::HEARTBEAT)?;
        ask.key(&self.keys.hosts).key(&self.keys.begun).key(&self.keys.cancels).key(&self.keys.claims);
        let facts = HostFacts { running: self.held.jobs(), ..self.facts.borrow().clone() };
        ask.arg(serde_json::to_vec(&facts).map_err(RedisStoreError::Unwritable)?);
        Ok(ask)
    }

    /// `None`: it was not heard.
    async fn beat_once(&self) -> Result<Option<Account>, RedisStoreError> {
        match self.pulse.try_once(&self.heartbeat()?).await {
            Ok(account) => Ok(Some(account)),
            Err(error) if passes(&error) => Ok(None),
            Err(error) => Err(RedisStoreError::Refused(error)),
        }
    }

    async fn compare(&self, (attempts, cancelled, claims): Account) -> Result<(), RedisStoreError> {
        // If the other connection is lost, this makes it anew: then Redis is told first what it may have forgotten.
        self.nudge().await?;
        self.held.forget_ended();
        for job in cancelled.iter().filter_map(|name| name.parse().ok()) {
            // Nobody listens: then nothing runs.
            let _ = self.cancelled.send(job);
        }
        for (name, epoch, token) in attempts {
            if let Some(job) = job(&name)
                && !self.held.knows_attempt(&job, epoch, &token)
                && self.disown(&job, &name, epoch).await?
            {
                tracing::warn!(%job, epoch, "this job was taken for ours and is not");
            }
        }
        for (name, epoch, token) in claims {
            if let Some(job) = job(&name)
                && !self.held.knows_claim(&job, epoch, &token)
                && self.give_back(&job, epoch, Duration::ZERO).await?
            {
                tracing::warn!(%job, epoch, "this claim was taken for ours and is not");
            }
        }
        Ok(())
    }

    /// Finds out whether the connection for commands is still there.
    pub(super) async fn nudge(&self) -> Result<(), RedisStoreError> {
        self.commands.ask(&cmd("PING")).await
    }

    pub(super) async fn disown(&self, job: &JobKey, name: &str, epoch: u64) -> Result<bool, RedisStoreError> {
        let mut ask = scripts::DISOWN.prepare_invoke();
        ask.key(self.keys.job(job)).key(&self.keys.begun);
        ask.arg(epoch).arg(self.instance.as_deref().unwrap_or_default()).arg(name);
        self.commands.ask::<u64>(&ask).await.map(|done| done == 1)
    }
}

fn job(name: &str) -> Option<JobKey> {
    name.parse().ok()
}

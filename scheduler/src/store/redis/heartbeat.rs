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
pub(super) fn start(shared: &Arc<Shared>) -> JoinHandle<()> {
    let every = (shared.settings.lease / PER_LEASE).max(Duration::from_millis(1));
    let outlook = shared.outlook.clone();
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        tokio::select! {
            () = outlook.closed() => {}
            () = beat(shared, every) => {}
        }
    })
}

async fn beat(shared: Weak<Shared>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        match shared.beat_once().await {
            Ok(()) | Err(RedisStoreError::Closed) => {}
            Err(error) => tracing::warn!(error = %worker::causes(&error), "a heartbeat went wrong"),
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

    async fn beat_once(&self) -> Result<(), RedisStoreError> {
        let (attempts, cancelled, claims): Account = match self.pulse.try_once(&self.heartbeat()?).await {
            Ok(account) => account,
            // The next one comes soon, and `health` has been told.
            Err(error) if passes(&error) => return Ok(()),
            Err(error) => return Err(RedisStoreError::Refused(error)),
        };
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

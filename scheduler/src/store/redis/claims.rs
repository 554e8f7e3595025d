//! Jobs that run for longer than the broker waits for an acknowledgement: their delivery is recorded here, then
//! acknowledged there, and from then on this record is what brings the job back if its host dies.
//!
//! A claim is alive for as long as its owner is: the heartbeat renews all of them at once, so there is no renewal that
//! could be forgotten. A claim that its owner lost sight of is handed back by the same heartbeat. Only a
//! Redis that keeps what it answered may hold claims: it is the only one that knows of these jobs.

use std::time::Duration;

use super::{Durability, RedisStore, RedisStoreError, Shared, keys::name, micros, scripts};
use crate::key::JobKey;

/// A long job that this instance has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub job: JobKey,
    /// Fences this claim against others of the job.
    pub epoch: u64,
    /// What was recorded.
    pub record: Vec<u8>,
}

/// How claiming went.
#[derive(Debug, PartialEq, Eq)]
pub enum Claiming {
    /// The job is this instance's; its delivery can be acknowledged.
    Claimed(Claim),
    /// It was claimed before: its owner lives, or it is another message of the same job. That claim is to end first.
    Held,
}

impl RedisStore {
    /// Records a delivery: when this returns, the job is not lost whatever host dies.
    pub async fn claim(
        &self,
        job: &JobKey,
        lane: &str,
        record: Vec<u8>,
    ) -> Result<Claiming, RedisStoreError> {
        match self.check_durability().await? {
            Durability::Kept => {}
            Durability::Forgetful(why) | Durability::Unknown(why) => {
                return Err(RedisStoreError::Forgetful(why));
            }
        }
        let shared = &self.shared;
        let asking = shared.held.asking();
        let mut ask = shared.as_host(&scripts::CLAIM)?;
        ask.key(&shared.keys.claims).key(&shared.keys.records);
        ask.key(&shared.keys.lanes).key(&shared.keys.due);
        ask.arg(&asking.token).arg(name(job)).arg(&record).arg(lane);
        let answer: Vec<String> = shared.commands.ask(&ask).await?;
        let epoch = answer.get(1).and_then(|epoch| epoch.parse().ok());
        match (answer.first().map(String::as_str), epoch) {
            (Some("claimed"), Some(epoch)) => {
                shared.held.claimed(job.clone(), epoch);
                Ok(Claiming::Claimed(Claim { job: job.clone(), epoch, record }))
            }
            (Some("held"), _) => Ok(Claiming::Held),
            _ => Err(RedisStoreError::Answer { answer: format!("{answer:?}") }),
        }
    }

    /// Takes over claims of a lane, `most` at most, whose owners are gone or handed them back. No two hosts get the same.
    pub async fn take_expired(&self, lane: &str, most: usize) -> Result<Vec<Claim>, RedisStoreError> {
        let shared = &self.shared;
        let asking = shared.held.asking();
        let mut ask = shared.as_host(&scripts::TAKE)?;
        ask.key(&shared.keys.claims).key(&shared.keys.records);
        ask.key(&shared.keys.lanes).key(&shared.keys.due);
        ask.arg(&asking.token).arg(most).arg(lane);
        let taken: Vec<(String, u64, Vec<u8>)> = shared.commands.ask(&ask).await?;
        let mut claims = Vec::with_capacity(taken.len());
        for (name, epoch, record) in taken {
            let job: JobKey = name.parse().map_err(|_| RedisStoreError::Answer { answer: name })?;
            shared.held.claimed(job.clone(), epoch);
            claims.push(Claim { job, epoch, record });
        }
        Ok(claims)
    }

    /// How many claims of each lane have no owner that lives, and may be taken now.
    pub async fn orphans(&self) -> Result<Vec<(String, u64)>, RedisStoreError> {
        let shared = &self.shared;
        let mut ask = shared.as_host(&scripts::ORPHANS)?;
        ask.key(&shared.keys.claims).key(&shared.keys.lanes).key(&shared.keys.due);
        shared.commands.ask(&ask).await
    }

    /// The job has its result and its producer has been told. `false`: another host has the claim by now.
    pub async fn forget(&self, claim: &Claim) -> Result<bool, RedisStoreError> {
        let shared = &self.shared;
        let mut ask = scripts::FORGET.prepare_invoke();
        ask.key(&shared.keys.claims).key(&shared.keys.records);
        ask.key(&shared.keys.lanes).key(&shared.keys.due);
        ask.arg(claim.epoch).arg(name(&claim.job));
        let done: u64 = shared.commands.ask(&ask).await?;
        shared.held.unclaimed(&claim.job, claim.epoch);
        Ok(done == 1)
    }

    /// This instance does not run the job now; whoever asks after this time gets it. `false`: another host has it.
    pub async fn hand_back(&self, claim: &Claim, after: Duration) -> Result<bool, RedisStoreError> {
        let done = self.shared.give_back(&claim.job, claim.epoch, after).await?;
        self.shared.held.unclaimed(&claim.job, claim.epoch);
        Ok(done)
    }
}

impl Shared {
    pub(super) async fn give_back(
        &self,
        job: &JobKey,
        epoch: u64,
        after: Duration,
    ) -> Result<bool, RedisStoreError> {
        let mut ask = scripts::HAND_BACK.prepare_invoke();
        ask.key(&self.keys.claims).key(&self.keys.due).arg(epoch).arg(name(job)).arg(micros(after));
        self.commands.ask::<u64>(&ask).await.map(|done| done == 1)
    }
}

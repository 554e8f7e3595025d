//! The hosts, as they speak of themselves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RedisStore, RedisStoreError, scripts};

/// What a host says of itself with each heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Its name.
    pub host: String,
    /// Which mayfly process it is.
    pub instance: String,
    /// The tiers that it runs jobs on.
    pub tiers: Vec<String>,
    /// How many jobs it runs at once.
    pub slots: usize,
    /// How many it runs now. The store counts them.
    pub running: usize,
    /// The version of mayfly.
    pub version: String,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// What it says.
    #[serde(flatten)]
    pub facts: HostFacts,
    /// For how much longer it counts as alive unless it is heard again; `None`: it does not.
    #[serde(skip)]
    pub alive_for: Option<Duration>,
}

impl RedisStore {
    /// Changes what is said from the next heartbeat on. Whose facts they are cannot be changed.
    pub fn set_facts(&self, facts: HostFacts) {
        self.shared.facts.send_modify(|now| *now = HostFacts { instance: now.instance.clone(), ..facts });
    }

    /// All hosts that were heard lately, in the order of their names.
    pub async fn hosts(&self) -> Result<Vec<Host>, RedisStoreError> {
        let shared = &self.shared;
        let mut ask = shared.onlooker(&scripts::HOSTS);
        ask.key(&shared.keys.hosts);
        let said: Vec<(String, u64)> = shared.commands.ask(&ask).await?;
        let mut hosts = Vec::with_capacity(said.len());
        for (json, left) in said {
            let facts = serde_json::from_str(&json).map_err(|_| RedisStoreError::Answer { answer: json })?;
            hosts.push(Host { facts, alive_for: (left > 0).then(|| Duration::from_micros(left)) });
        }
        hosts.sort_by(|one, other| {
            (&one.facts.host, &one.facts.instance).cmp(&(&other.facts.host, &other.facts.instance))
        });
        Ok(hosts)
    }
}

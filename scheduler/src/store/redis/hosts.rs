//! The hosts, as they speak of themselves.

use std::time::Duration;

use pool::Tier;
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
    /// Those of them on which it can make no sandbox for now.
    #[serde(default)]
    pub resting: Vec<String>,
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

impl Host {
    /// Whether it runs jobs on a tier now.
    #[must_use]
    pub fn offers(&self, tier: Tier) -> bool {
        let among = |tiers: &[String]| tiers.iter().any(|name| name == tier.name());
        self.alive_for.is_some() && among(&self.facts.tiers) && !among(&self.facts.resting)
    }
}

impl RedisStore {
    /// Says from the next heartbeat on, which comes at once, on which tiers this host can make no sandbox for now.
    pub fn set_resting(&self, tiers: &[Tier]) {
        let resting = tiers.iter().map(ToString::to_string).collect();
        self.shared.facts.send_modify(|now| now.resting = resting);
    }

    /// The tiers that some host offers now.
    pub async fn offered(&self) -> Result<Vec<Tier>, RedisStoreError> {
        let hosts = self.hosts().await?;
        Ok(Tier::ALL.into_iter().filter(|tier| hosts.iter().any(|host| host.offers(*tier))).collect())
    }

    /// Whether it is this instance's turn to do something that one host is enough for: nobody else's was in this time.
    pub async fn turn(&self, what: &str, within: Duration) -> Result<bool, RedisStoreError> {
        let shared = &self.shared;
        let mut ask = redis::cmd("SET");
        ask.arg(shared.keys.turn(what)).arg(shared.instance.as_deref().unwrap_or_default());
        ask.arg("NX").arg("PX").arg(super::millis(within));
        // A lost answer loses a turn; another comes.
        Ok(shared.commands.ask::<Option<String>>(&ask).await?.is_some())
    }

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

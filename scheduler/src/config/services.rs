//! The sections `[serve]`, `[broker]` and `[store]`: what this host does, for whom, and where its state is.

use std::{path::PathBuf, time::Duration};

use pool::Tier;
use serde::Deserialize;

use super::{ConfigError, some_time};

/// What this host does for the queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServePart {
    /// Jobs that run at once.
    pub slots: usize,
    /// The tiers of which it runs jobs.
    pub tiers: Vec<Tier>,
    /// How long after SIGTERM jobs that run may take to end by themselves.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

/// The queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerPart {
    /// `amqp://USER@HOST:PORT/VHOST`, or `amqps://…`. Without a password: that is a file's or the environment's.
    pub url: String,
    /// The file with the password. `MAYFLY_BROKER_PASSWORD` if missing.
    pub password_file: Option<PathBuf>,
    /// Certificates of the authorities that the broker's is checked against, in PEM. The system's if missing.
    pub ca_file: Option<PathBuf>,
}

/// The state that hosts share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorePart {
    /// `redis://USER@HOST:PORT/DATABASE`, or `rediss://…`. Without a password: that is a file's or the environment's.
    pub url: String,
    /// The file with the password. `MAYFLY_STORE_PASSWORD` if missing.
    pub password_file: Option<PathBuf>,
    /// Certificates of the authorities that the store's is checked against, in PEM. The system's if missing.
    pub ca_file: Option<PathBuf>,
    /// What every key begins with.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// How long a result can be asked for.
    #[serde(default = "a_week", with = "humantime_serde")]
    pub result_ttl: Duration,
    /// How long a host may be silent before its jobs are another's.
    #[serde(default = "lease", with = "humantime_serde")]
    pub lease: Duration,
}

impl Default for ServePart {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Self { slots: 2 * cpus, tiers: Tier::ALL.to_vec(), drain: Duration::from_secs(10 * 60) }
    }
}

impl ServePart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=1024).contains(&self.slots) {
            return Err(ConfigError::value("serve.slots", "it is not from 1 to 1024"));
        }
        if self.tiers.is_empty() {
            return Err(ConfigError::value("serve.tiers", "with none, no job can run"));
        }
        some_time("serve.drain", self.drain)
    }
}

fn prefix() -> String {
    "mayfly".to_owned()
}

fn a_week() -> Duration {
    Duration::from_secs(7 * 24 * 60 * 60)
}

fn lease() -> Duration {
    Duration::from_secs(15)
}

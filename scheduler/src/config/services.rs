//! The sections `[serve]`, `[broker]` and `[store]`: what this host does, for whom, and where its state is.

use std::{path::PathBuf, time::Duration};

use pool::Tier;
use serde::Deserialize;

use super::{ConfigError, some_time};
use crate::{
    broker::{self, BadSettings, Credential},
    store::redis::{RedisAddress, RedisSettings},
};

/// Where the passwords are that are in no file.
const BROKER_PASSWORD: &str = "MAYFLY_BROKER_PASSWORD";
const STORE_PASSWORD: &str = "MAYFLY_STORE_PASSWORD";

/// What a job is held for beside its run: the wait for a sandbox, its artifacts, its result.
const HELD_BESIDE: Duration = Duration::from_secs(5 * 60);

const TEN_MINUTES: Duration = Duration::from_secs(10 * 60);

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
    /// How long a job without a deadline waits for a host that offers its tier.
    #[serde(with = "humantime_serde")]
    pub tier_wait: Duration,
}

/// The queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerPart {
    /// `amqp://USER@HOST:PORT/VHOST`, or `amqps://…`. Without a password: that is a file's or the environment's.
    pub url: String,
    /// The file with the password. `MAYFLY_BROKER_PASSWORD` if missing.
    pub password_file: Option<PathBuf>,
    /// Certificates of authorities that are believed beside the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// How long the broker lets a host hold a job: its `consumer_timeout`.
    #[serde(default = "half_an_hour", with = "humantime_serde")]
    pub consumer_timeout: Duration,
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
        Self { slots: 2 * cpus, tiers: Tier::ALL.to_vec(), drain: TEN_MINUTES, tier_wait: TEN_MINUTES }
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
        some_time("serve.tier_wait", self.tier_wait)?;
        some_time("serve.drain", self.drain)
    }
}

impl BrokerPart {
    /// As the broker's client takes it, with the password.
    pub fn settings(&self) -> Result<broker::Settings, BadSettings> {
        let credential = Credential::find(self.password_file.as_deref(), BROKER_PASSWORD)?;
        let mut settings = broker::Settings::new(&self.url, &credential)?;
        settings.consumer_timeout = self.consumer_timeout;
        match &self.ca_file {
            Some(file) => settings.with_ca_file(file),
            None => Ok(settings),
        }
    }

    /// The longest that a job may run without a claim: the broker takes back what is held for longer.
    #[must_use]
    pub fn longest_held(&self) -> Duration {
        self.consumer_timeout.saturating_sub(HELD_BESIDE).max(self.consumer_timeout / 2)
    }
}

impl StorePart {
    /// As the store takes it, with the password. A Redis on loopback may have none.
    pub fn settings(&self) -> Result<RedisSettings, BadSettings> {
        let (url, user) = without_user(&self.url);
        if user.is_some_and(|user| user.contains(':')) {
            return Err(BadSettings::Url(
                "store.url has a password in it; put that into a file (store.password_file) or the environment"
                    .to_owned(),
            ));
        }
        let password = match (&self.password_file, std::env::var(STORE_PASSWORD)) {
            (Some(file), _) => Some(Credential::find(Some(file), STORE_PASSWORD)?),
            (None, Ok(password)) if !password.is_empty() => Some(Credential::new(password)),
            (None, _) => None,
        };
        let address = RedisAddress {
            user: user.filter(|user| !user.is_empty()).map(ToOwned::to_owned),
            password: password.map(Credential::into_inner),
            certificates: self.ca_file.clone(),
            ..RedisAddress::new(url)
        };
        let usual = RedisSettings::new(address);
        Ok(RedisSettings {
            prefix: self.prefix.clone(),
            lease: self.lease,
            results_for: self.result_ttl,
            // An id stays taken for longer than its result can be read.
            outcomes_for: usual.outcomes_for.max(self.result_ttl),
            ..usual
        })
    }
}

/// The URL without its user, and the user.
fn without_user(url: &str) -> (String, Option<&str>) {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find('/').unwrap_or(rest.len());
        let (user, host) = rest[..end].rsplit_once('@')?;
        Some((format!("{scheme}://{host}{}", &rest[end..]), user))
    });
    match parts {
        Some((url, user)) => (url, Some(user)),
        None => (url.to_owned(), None),
    }
}

fn half_an_hour() -> Duration {
    Duration::from_secs(30 * 60)
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

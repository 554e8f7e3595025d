//! The sections `[defaults]` and `[tenants]`: who may send jobs, and what they may ask for.

use std::time::Duration;

use pool::Tier;
use serde::Deserialize;
use worker::Size;

use super::{Allow, ConfigError, TenantNetworkPart, some_time};
use crate::policy::Policy;

/// The most that a weight may be: a tenant's turn must come.
const HEAVIEST: u32 = 1000;

/// What holds for tenants that do not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// The weakest isolation that any job gets.
    pub floor: Tier,
    /// The longest timeout that a job may ask for.
    #[serde(with = "humantime_serde")]
    pub longest_timeout: Duration,
    /// How long a job may run that does not say.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Output that a job may write which does not say how much.
    pub output: Size,
}

/// One tenant. What is missing is as in `[defaults]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tenant {
    /// Its share of the slots against the other tenants', where more want them than there are. 1 if missing.
    pub weight: Option<u32>,
    /// Jobs of it that may run at once on one host.
    pub max_running: Option<u32>,
    /// The weakest isolation that its jobs get.
    pub floor: Option<Tier>,
    /// The longest timeout that its jobs may ask for.
    #[serde(with = "humantime_serde")]
    pub longest_timeout: Option<Duration>,
    /// Hosts that its jobs may ask for.
    pub allow: Vec<Allow>,
    /// Tunnels that its jobs may ask for, by name.
    pub tunnels: Vec<String>,
    /// What of `[network]` is otherwise for it.
    pub network: TenantNetworkPart,
}

impl Default for Defaults {
    fn default() -> Self {
        let Policy { longest_timeout, timeout, output, .. } = Policy::default();
        // Who comes by queue is a stranger until somebody says otherwise.
        Self { floor: Tier::Docker, longest_timeout, timeout, output: output.into() }
    }
}

impl Defaults {
    pub(super) fn policy(&self) -> Policy {
        Policy {
            floor: self.floor,
            longest_timeout: self.longest_timeout,
            timeout: self.timeout.min(self.longest_timeout),
            output: self.output.bytes(),
            ..Policy::default()
        }
    }
}

impl Tenant {
    pub(super) fn check(&self, name: &str) -> Result<(), ConfigError> {
        let field = |field: &str| format!("tenants.{name}.{field}");
        if let Some(weight) = self.weight.filter(|weight| !(1..=HEAVIEST).contains(weight)) {
            return Err(ConfigError::value(field("weight"), format!("{weight} is not from 1 to {HEAVIEST}")));
        }
        if self.max_running == Some(0) {
            let problem = "with none, its jobs wait for ever; leave the tenant out to refuse it";
            return Err(ConfigError::value(field("max_running"), problem));
        }
        self.longest_timeout.map_or(Ok(()), |time| some_time(&field("longest_timeout"), time))
    }

    pub(super) fn policy(&self, defaults: &Policy) -> Policy {
        let longest_timeout = self.longest_timeout.unwrap_or(defaults.longest_timeout);
        Policy {
            floor: self.floor.unwrap_or(defaults.floor),
            longest_timeout,
            timeout: defaults.timeout.min(longest_timeout),
            ..defaults.clone()
        }
    }
}

//! `mayfly.toml`: what an operator decides. Its annotated example, `deploy/mayfly.toml`, is its documentation, and a test
//! reads it.
//!
//! What is left out has a default. What is unknown or cannot be is refused, with the line and what to do.

mod artifacts;
mod docker;
mod metrics;
mod network;
mod pool;
mod selftest;
mod services;
mod tenants;
mod traces;
mod vm;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ::pool::{LimitError, Tier};
use serde::Deserialize;
use thiserror::Error;

pub use self::{
    artifacts::{ArtifactsPart, S3Part},
    docker::DockerPart,
    metrics::MetricsPart,
    network::{
        Allow, AllowTable, FromWord, InjectPart, KindWord, NetworkPart, SecretPart, TenantNetworkPart,
        ToWord, TunnelPart,
    },
    pool::{Class, Keep, PoolPart},
    selftest::SelftestPart,
    services::{BrokerPart, ServePart, StorePart},
    tenants::{Defaults as TenantDefaults, Tenant},
    traces::TracesPart,
    vm::{AccelWord, EngineWord, SharingWord, VmPart},
};
use crate::{
    key::is_name,
    policy::{Policies, Policy},
    queue::AmqpTenant,
};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What this host does for the queue.
    pub serve: ServePart,
    /// The queue.
    pub broker: Option<BrokerPart>,
    /// The state that hosts share.
    pub store: Option<StorePart>,
    /// The files that jobs leave.
    pub artifacts: Option<ArtifactsPart>,
    /// Where numbers and health are shown.
    pub metrics: MetricsPart,
    /// Where traces of jobs go.
    pub traces: TracesPart,
    /// When the host attacks its own sandboxes.
    pub selftest: SelftestPart,
    /// How many sandboxes there are.
    pub pool: PoolPart,
    /// Which docker daemon makes containers.
    pub docker: DockerPart,
    /// How virtual machines are made.
    pub vm: VmPart,
    /// Limits of which sandboxes are made ahead, by name.
    pub classes: BTreeMap<String, Class>,
    /// How much jobs may send and receive.
    pub network: NetworkPart,
    /// Ports of a sandbox that lead to one place each, by name.
    pub tunnels: BTreeMap<String, TunnelPart>,
    /// Secrets of tenants.
    pub secret: Vec<SecretPart>,
    /// What holds for tenants that do not say otherwise.
    pub defaults: TenantDefaults,
    /// Who may send jobs, by name.
    pub tenants: BTreeMap<String, Tenant>,
}

/// The file cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is no TOML, or has a field that is unknown or of another kind.
    #[error("{path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and what.
        error: Box<toml::de::Error>,
    },
    /// A value that nothing can be made of.
    #[error("{field}: {problem}")]
    Value {
        /// Which, such as `tenants.acme.weight`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A class in which no sandbox can start.
    #[error("classes.{class}: {error}")]
    Class {
        /// Which.
        class: String,
        /// Why.
        error: LimitError,
    },
}

impl ConfigError {
    fn value(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value { field: field.into(), problem: problem.into() }
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        let config: Self = toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), error: Box::new(error) })?;
        config.check()?;
        Ok(config)
    }

    /// Machines that are kept for nobody, where each tenant has its own, would never be used.
    fn check_kept(&self) -> Result<(), ConfigError> {
        let apart = self.vm.sharing == SharingWord::Tenant;
        let nobodys = |keep: &Keep| apart && keep.tier == Tier::Vm && keep.tenant.is_none();
        match self.pool.keep.iter().position(nobodys) {
            None => Ok(()),
            Some(index) => {
                let problem = "vm.sharing = \"tenant\" makes machines for one tenant alone: name it (tenant)";
                Err(ConfigError::value(format!("pool.keep[{index}]"), problem))
            }
        }
    }

    /// Checks what the types alone do not say.
    fn check(&self) -> Result<(), ConfigError> {
        self.serve.check()?;
        if let Some(artifacts) = &self.artifacts {
            artifacts.check()?;
        }
        self.metrics.check()?;
        self.traces.check()?;
        self.selftest.check()?;
        self.pool.check(&self.classes)?;
        self.docker.check()?;
        self.vm.check()?;
        self.check_kept()?;
        for (name, class) in &self.classes {
            class.limits().check().map_err(|error| ConfigError::Class { class: name.clone(), error })?;
        }
        for (name, tenant) in &self.tenants {
            if !is_name(name) {
                let problem = "a tenant's name is 1 to 128 letters, digits, dots, underscores and dashes";
                return Err(ConfigError::value(format!("tenants.{name}"), problem));
            }
            tenant.check(name)?;
        }
        self.check_network()
    }

    /// What the jobs of each tenant may ask for.
    pub fn policies(&self) -> Result<Policies, ConfigError> {
        let mut default = self.defaults.policy();
        if let Some(broker) = &self.broker {
            // A job that does not say how long it runs is not one that takes a claim.
            default.timeout = default.timeout.min(broker.longest_held());
        }
        let resolver = Arc::default();
        let tenants = self.tenants.iter().map(|(name, tenant)| {
            let egress = Arc::new(self.rights(name, &resolver)?);
            Ok((name.clone(), Policy { egress, ..tenant.policy(&default) }))
        });
        let tenants = tenants.collect::<Result<_, ConfigError>>()?;
        Ok(Policies::new(default, tenants))
    }

    /// The same for jobs that the operator brings along: only what they may reach is the tenant's.
    pub fn own_policies(&self) -> Result<Policies, ConfigError> {
        let resolver = Arc::default();
        let tenants = self.tenants.keys().map(|name| {
            let egress = Arc::new(self.rights(name, &resolver)?);
            Ok((name.clone(), Policy { egress, ..Policy::default() }))
        });
        let tenants = tenants.collect::<Result<_, ConfigError>>()?;
        Ok(Policies::new(Policy::default(), tenants))
    }

    /// The tenants, as the queue takes them.
    #[must_use]
    pub fn lanes(&self) -> Vec<AmqpTenant> {
        self.tenants
            .iter()
            .map(|(name, tenant)| AmqpTenant {
                name: name.clone(),
                floor: self.floor(name),
                weight: tenant.weight.unwrap_or(1),
                max_running: tenant.max_running,
            })
            .collect()
    }

    /// The limits of which sandboxes are made ahead.
    #[must_use]
    pub fn shapes(&self) -> Vec<::pool::Limits> {
        self.classes.values().map(Class::limits).collect()
    }

    /// The tiers on which jobs of a tenant may run.
    #[must_use]
    pub fn floor(&self, tenant: &str) -> Tier {
        self.tenants.get(tenant).and_then(|tenant| tenant.floor).unwrap_or(self.defaults.floor)
    }
}

/// Refuses a time that is none.
fn some_time(field: &str, time: Duration) -> Result<(), ConfigError> {
    if time.is_zero() {
        return Err(ConfigError::value(field, "it is no time at all; write something like \"30s\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

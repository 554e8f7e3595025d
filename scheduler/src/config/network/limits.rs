//! The section `[network]`, and what of it is otherwise for one tenant.

use std::{collections::BTreeMap, net::IpAddr};

use egress::{Limits, Rule, Share, TenantLimits};
use serde::Deserialize;
use worker::Size;

use crate::config::ConfigError;

/// Connections that a job may have at once. Its agent carries no more.
const MOST: usize = 256;

/// How much jobs may send and receive, and names that the operator gave addresses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkPart {
    /// Connections to outside that a job may have at once.
    pub connections: usize,
    /// Bytes that a job may send and receive, together.
    pub bytes: Size,
    /// Bytes a second of a job; `None`: as fast as they come.
    pub rate: Option<Size>,
    /// Connections to outside that a job may ask for in a second, those that are refused among them.
    pub attempts: u64,
    /// Connections to outside that all jobs of a tenant may have at once on this host.
    pub tenant_connections: usize,
    /// Bytes that all jobs of a tenant may send and receive in an hour on this host; `None`: as many as come.
    pub tenant_bytes: Option<Size>,
    /// Bytes a second of all jobs of a tenant on this host.
    pub tenant_rate: Option<Size>,
    /// Connections to outside that all jobs of a tenant may ask for in a second on this host.
    pub tenant_attempts: u64,
    /// Names and their addresses. They come before the system's resolver, and lead wherever they say.
    pub hosts: BTreeMap<String, IpAddr>,
}

impl Default for NetworkPart {
    fn default() -> Self {
        let Limits { connections, bytes, attempts, .. } = Limits::default();
        let tenant = TenantLimits::default();
        Self {
            connections,
            bytes: bytes.into(),
            rate: None,
            attempts,
            tenant_connections: tenant.connections,
            tenant_bytes: None,
            tenant_rate: None,
            tenant_attempts: tenant.attempts,
            hosts: BTreeMap::new(),
        }
    }
}

/// What of `[network]` is otherwise for one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantNetworkPart {
    /// Connections to outside that a job may have at once.
    pub connections: Option<usize>,
    /// Bytes that a job may send and receive, together.
    pub bytes: Option<Size>,
    /// Bytes a second of a job.
    pub rate: Option<Size>,
    /// Connections to outside that a job may ask for in a second.
    pub attempts: Option<u64>,
    /// Connections to outside that all jobs of the tenant may have at once on this host.
    pub tenant_connections: Option<usize>,
    /// Bytes that all jobs of the tenant may send and receive in an hour on this host.
    pub tenant_bytes: Option<Size>,
    /// Bytes a second of all jobs of the tenant on this host.
    pub tenant_rate: Option<Size>,
    /// Connections to outside that all jobs of the tenant may ask for in a second on this host.
    pub tenant_attempts: Option<u64>,
}

impl NetworkPart {
    /// `section` is what it is called in the file.
    pub(in crate::config) fn check(&self, section: &str) -> Result<(), ConfigError> {
        let bad =
            |field: &str, problem: String| Err(ConfigError::value(format!("{section}.{field}"), problem));
        if !(1..=MOST).contains(&self.connections) {
            let problem = format!("it is not from 1 to {MOST}; whoever may reach nothing has no `allow`");
            return bad("connections", problem);
        }
        if self.tenant_connections == 0 {
            let problem = "with none, nothing is reached; whoever may reach nothing has no `allow`";
            return bad("tenant_connections", problem.to_owned());
        }
        let rates =
            [("rate", self.rate), ("tenant_rate", self.tenant_rate), ("tenant_bytes", self.tenant_bytes)];
        for (field, rate) in rates {
            if rate.is_some_and(|rate| rate.bytes() == 0) {
                return bad(field, "at that rate nothing ever arrives".to_owned());
            }
        }
        for (field, attempts) in [("attempts", self.attempts), ("tenant_attempts", self.tenant_attempts)] {
            if attempts == 0 {
                return bad(field, "at that rate nothing is ever reached".to_owned());
            }
        }
        for name in self.hosts.keys() {
            if name.parse::<Rule>().is_err() || name.contains(['*', ':']) {
                return bad(&format!("hosts.{name}"), "it is no name of a host".to_owned());
            }
        }
        Ok(())
    }

    /// What holds for a tenant that says this of its own.
    pub(in crate::config) fn of(&self, own: &TenantNetworkPart) -> Self {
        Self {
            connections: own.connections.unwrap_or(self.connections),
            bytes: own.bytes.unwrap_or(self.bytes),
            rate: own.rate.or(self.rate),
            attempts: own.attempts.unwrap_or(self.attempts),
            tenant_connections: own.tenant_connections.unwrap_or(self.tenant_connections),
            tenant_bytes: own.tenant_bytes.or(self.tenant_bytes),
            tenant_rate: own.tenant_rate.or(self.tenant_rate),
            tenant_attempts: own.tenant_attempts.unwrap_or(self.tenant_attempts),
            hosts: self.hosts.clone(),
        }
    }

    /// What holds for each job.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            connections: self.connections,
            bytes: self.bytes.bytes(),
            rate: self.rate.map(Size::bytes),
            attempts: self.attempts,
        }
    }

    /// What the jobs of one tenant share.
    pub(super) fn share(&self) -> Share {
        Share::new(TenantLimits {
            connections: self.tenant_connections,
            bytes: self.tenant_bytes.map(Size::bytes),
            rate: self.tenant_rate.map(Size::bytes),
            attempts: self.tenant_attempts,
        })
    }
}

//! Why something is not reached, for the job, for the result and for the metrics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::rule::Target;

/// Why a connection was not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No rule knows the host.
    #[error("denied: host {host} is not allowed for tenant {tenant}")]
    Name {
        /// Which host.
        host: String,
        /// Whose job asked.
        tenant: String,
    },
    /// The host is allowed, but not there.
    #[error("denied: port {} of host {} is not allowed for tenant {tenant}", target.port, target.host)]
    Port {
        /// What was asked for.
        target: Target,
        /// Whose job asked.
        tenant: String,
    },
    /// An address that no rule names.
    #[error("denied: address {host} is not allowed for tenant {tenant}: hosts are reached by name")]
    Literal {
        /// Which.
        host: String,
        /// Whose job asked.
        tenant: String,
    },
    /// The name leads to where no name may.
    #[error("denied: host {host} leads to {kind} address, which no rule names")]
    Address {
        /// Which host.
        host: String,
        /// What kind of address it is.
        kind: &'static str,
    },
    /// The name has no address.
    #[error("host {host} cannot be resolved: {why}")]
    Resolve {
        /// Which host.
        host: String,
        /// Why.
        why: String,
    },
    /// Nobody answers there.
    #[error("{target} cannot be reached: {why}")]
    Connect {
        /// What was asked for.
        target: Target,
        /// Why.
        why: String,
    },
    /// The job has as many connections as it may have.
    #[error("denied: {0}")]
    Connections(&'static str),
    /// The job asks faster than it may.
    #[error("denied: {0}")]
    Attempts(&'static str),
    /// The job has sent and received as much as it may.
    #[error("denied: the job's allowance of {0} bytes is used up")]
    Bytes(u64),
    /// The tenant's jobs have.
    #[error("denied: the tenant's allowance of {0} bytes an hour is used up")]
    TenantBytes(u64),
    /// What begins there is no TLS for the name that was asked for.
    #[error("denied: {0}")]
    Sni(String),
    /// What came is no request that a proxy knows.
    #[error("denied: {0}")]
    Request(&'static str),
}

/// The same as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// No rule knows the host.
    Name,
    /// The host is allowed at other ports.
    Port,
    /// An address that no rule names.
    Literal,
    /// The name leads to a special address.
    Address,
    /// The name has no address.
    Resolve,
    /// Nobody answers there.
    Connect,
    /// Too many connections.
    Connections,
    /// Connections asked for too fast.
    Attempts,
    /// Too many bytes.
    Bytes,
    /// No TLS for the name that was asked for.
    Sni,
    /// No request that a proxy knows.
    Request,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Name,
        Self::Port,
        Self::Literal,
        Self::Address,
        Self::Resolve,
        Self::Connect,
        Self::Connections,
        Self::Attempts,
        Self::Bytes,
        Self::Sni,
        Self::Request,
    ];

    /// The word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Port => "port",
            Self::Literal => "literal",
            Self::Address => "address",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Connections => "connections",
            Self::Attempts => "attempts",
            Self::Bytes => "bytes",
            Self::Sni => "sni",
            Self::Request => "request",
        }
    }
}

impl Refusal {
    /// The one word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Name { .. } => Reason::Name,
            Self::Port { .. } => Reason::Port,
            Self::Literal { .. } => Reason::Literal,
            Self::Address { .. } => Reason::Address,
            Self::Resolve { .. } => Reason::Resolve,
            Self::Connect { .. } => Reason::Connect,
            Self::Connections(_) => Reason::Connections,
            Self::Attempts(_) => Reason::Attempts,
            Self::Bytes(_) | Self::TenantBytes(_) => Reason::Bytes,
            Self::Sni(_) => Reason::Sni,
            Self::Request(_) => Reason::Request,
        }
    }
}

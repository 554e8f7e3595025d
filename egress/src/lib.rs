//! The door: what a job may reach, decided, connected and recorded on the host, and the secrets that it need not hold.
//!
//! A sandbox has no network. What its job sends to ports of its own loopback comes here as byte streams, one for each
//! connection: to a forward proxy that knows an allow-list, or to a tunnel that leads to one place. A tenant has
//! [`Rights`]; what a job asks of them becomes a [`Plan`]; an attempt of the job has a [`Session`], which ends with the
//! record of all that was asked for.

mod address;
mod connect;
mod fixed;
mod forward;
mod limits;
mod plan;
mod proxy;
mod record;
mod refusal;
mod resolve;
mod rule;
mod secret;
mod session;
mod sni;
mod tls;

pub use fixed::{Fixed, Inject, Kind};
pub use ipnet::IpNet;
pub use limits::{Limits, Share, TenantLimits};
pub use plan::{Ask, Denial, Plan, Rights};
pub use record::{Connection, Egress, Ended};
pub use refusal::{Reason, Refusal};
pub use resolve::{Hosts, Resolver};
pub use rule::{BadRule, HostPattern, Ports, Rule, Target};
pub use secret::{Place, SecretError, SecretRule, Source};
pub use session::{OpenError, PROXY_PORT, SecretFile, Session};
pub use tls::{BadAuthority, Trust};

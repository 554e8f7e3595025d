//! The sections `[network]`, `[tunnels]` and `[[secret]]`: what jobs may reach, and the secrets that they need not hold.

mod limits;
mod secrets;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use egress::{Fixed, Hosts, Inject, IpNet, Kind, Resolver, Rights, Rule, SecretRule, Target, Trust};
use serde::Deserialize;

pub use self::{
    limits::{NetworkPart, TenantNetworkPart},
    secrets::{FromWord, SecretPart, ToWord},
};
use super::{Config, ConfigError};
use crate::key::is_name;

/// Ports below are the kernel's to give to root alone; the agent is not.
const FIRST_PORT: u16 = 1024;

/// Something of `allow`: `"api.example.com"`, or a table that says more of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "write \"HOST\", \"HOST:PORT\" or a table with `host`, `addresses` and `sni`")]
pub enum Allow {
    /// Hosts at ports.
    Plain(String),
    /// The same, and more of it.
    Full(AllowTable),
}

/// Hosts at ports, and more of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowTable {
    /// Hosts at ports.
    pub host: String,
    /// Ranges to which the names may lead although they are not public.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// Whether what is sent there must begin with TLS for the very name that was asked for.
    #[serde(default)]
    pub sni: bool,
}

/// A port of the sandbox's loopback that leads to one place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelPart {
    /// Where it leads: `host:port`.
    pub to: String,
    /// The port in the sandbox.
    pub port: u16,
    /// What flows in it.
    #[serde(default)]
    pub kind: KindWord,
    /// For `http`: whether the host speaks TLS to the other end.
    pub tls: Option<bool>,
    /// For TLS: the authority that signed the other end's certificate; `None`: those that the system believes.
    pub ca_file: Option<PathBuf>,
    /// Ranges to which the name may lead although they are not public.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// For `http`: headers that the host adds.
    #[serde(default)]
    pub inject: Vec<InjectPart>,
}

/// What flows in a tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KindWord {
    /// Bytes, as they are.
    #[default]
    Tcp,
    /// Requests, to which the host adds what the job does not hold.
    Http,
}

/// A header that the host adds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectPart {
    /// Its name.
    pub header: String,
    /// Its value, with `{secret}` where the secret stands.
    #[serde(default = "secret_alone")]
    pub value: String,
    /// The name of the secret.
    pub secret: String,
}

fn secret_alone() -> String {
    MARK.to_owned()
}

/// Where in a header's value the secret stands.
const MARK: &str = "{secret}";

impl Allow {
    fn rule(&self, field: &str) -> Result<Rule, ConfigError> {
        let (text, addresses, sni) = match self {
            Self::Plain(text) => (text, &[][..], false),
            Self::Full(AllowTable { host, addresses, sni }) => (host, addresses.as_slice(), *sni),
        };
        let rule: Rule =
            text.parse().map_err(|error: egress::BadRule| ConfigError::value(field, error.to_string()))?;
        Ok(Rule { addresses: addresses.to_vec(), sni, ..rule })
    }
}

impl TunnelPart {
    fn check(&self, name: &str) -> Result<(), ConfigError> {
        let field = |field: &str| format!("tunnels.{name}.{field}");
        if self.port < FIRST_PORT {
            return Err(ConfigError::value(field("port"), format!("{} is below {FIRST_PORT}", self.port)));
        }
        let target = self.to.parse::<Target>();
        target.map_err(|problem| ConfigError::value(field("to"), format!("{:?} {problem}", self.to)))?;
        if self.kind == KindWord::Tcp && (self.tls.is_some() || !self.inject.is_empty()) {
            let problem = "bytes are carried as they are; write kind = \"http\" for `tls` and `inject`";
            return Err(ConfigError::value(field("kind"), problem));
        }
        for InjectPart { header, value, .. } in &self.inject {
            if value.matches(MARK).count() != 1 {
                let problem = format!("{value:?} does not say once where the secret stands: {MARK}");
                return Err(ConfigError::value(field("inject"), problem));
            }
            Inject::check(header, &value.replace(MARK, ""))
                .map_err(|problem| ConfigError::value(field("inject"), format!("{header:?} {problem}")))?;
        }
        Ok(())
    }
}

impl Config {
    pub(super) fn check_network(&self) -> Result<(), ConfigError> {
        self.network.check("network")?;
        self.secret.iter().try_for_each(SecretPart::check)?;
        for (at, secret) in self.secret.iter().enumerate() {
            if self.secret[..at]
                .iter()
                .any(|other| (&other.name, &other.tenant) == (&secret.name, &secret.tenant))
            {
                return Err(ConfigError::value(format!("secret.{}", secret.name), "there are two of it"));
            }
        }
        self.check_tunnels()?;
        for (name, tenant) in &self.tenants {
            self.network.of(&tenant.network).check(&format!("tenants.{name}.network"))?;
            for (at, allow) in tenant.allow.iter().enumerate() {
                allow.rule(&format!("tenants.{name}.allow[{at}]"))?;
            }
            for tunnel in &tenant.tunnels {
                let field = format!("tenants.{name}.tunnels");
                let Some(part) = self.tunnels.get(tunnel) else {
                    return Err(ConfigError::value(field, format!("there is no [tunnels.{tunnel}]")));
                };
                self.secrets_of(tunnel, part, name)?;
            }
        }
        Ok(())
    }

    fn check_tunnels(&self) -> Result<(), ConfigError> {
        let mut ports = BTreeMap::from([(egress::PROXY_PORT, "the forward proxy")]);
        let mut variables = BTreeMap::new();
        for (name, tunnel) in &self.tunnels {
            if !is_name(name) {
                let problem = "a tunnel's name is 1 to 128 letters, digits, dots, underscores and dashes";
                return Err(ConfigError::value(format!("tunnels.{name}"), problem));
            }
            tunnel.check(name)?;
            if let Some(other) = ports.insert(tunnel.port, name) {
                let problem = format!("{} is the port of {other}", tunnel.port);
                return Err(ConfigError::value(format!("tunnels.{name}.port"), problem));
            }
            let variable = Fixed::variable(name);
            if let Some(other) = variables.insert(variable.clone(), name) {
                let problem =
                    format!("jobs would find both it and {other} in {variable}; rename one of them");
                return Err(ConfigError::value(format!("tunnels.{name}"), problem));
            }
        }
        Ok(())
    }

    /// What jobs of a tenant may reach.
    pub(super) fn rights(&self, tenant: &str, resolver: &Arc<Resolver>) -> Result<Rights, ConfigError> {
        let resolver = resolver.clone();
        let Some(part) = self.tenants.get(tenant) else {
            return Ok(Rights { resolver, ..self.rights_to(tenant, Vec::new(), &[])? });
        };
        let rules = part.allow.iter().map(|allow| allow.rule("allow")).collect::<Result<_, _>>()?;
        Ok(Rights { resolver, ..self.rights_to(tenant, rules, &part.tunnels)? })
    }

    /// What jobs of the operator's own may reach, which they say on the command line.
    pub fn own_rights(
        &self,
        tenant: &str,
        allow: Vec<Rule>,
        tunnels: &[String],
    ) -> Result<Rights, ConfigError> {
        if let Some(unknown) = tunnels.iter().find(|name| !self.tunnels.contains_key(*name)) {
            let known: Vec<_> = self.tunnels.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ConfigError::value(
                "tunnels",
                format!("there is no [tunnels.{unknown}]; there is {known}"),
            ));
        }
        self.rights_to(tenant, allow, tunnels)
    }

    fn rights_to(&self, tenant: &str, allow: Vec<Rule>, tunnels: &[String]) -> Result<Rights, ConfigError> {
        let own = self.tenants.get(tenant).map(|tenant| &tenant.network);
        let network = own.map_or_else(|| self.network.clone(), |own| self.network.of(own));
        let mut rights = Rights {
            allow,
            limits: network.limits(),
            share: Arc::new(network.share()),
            hosts: Arc::new(network.hosts.into_iter().collect::<Hosts>()),
            ..Rights::default()
        };
        for name in tunnels {
            let fixed = self.fixed(name, &self.tunnels[name], tenant)?;
            rights.tunnels.insert(name.clone(), Arc::new(fixed));
        }
        let own = self.secret.iter().filter(|secret| secret.tenant.as_deref() == Some(tenant));
        rights.secrets = own.map(|secret| (secret.name.clone(), secret.rule())).collect();
        Ok(rights)
    }

    fn fixed(&self, name: &str, part: &TunnelPart, tenant: &str) -> Result<Fixed, ConfigError> {
        let field = |field: &str| format!("tunnels.{name}.{field}");
        let bad = |problem: String| ConfigError::value(field("ca_file"), problem);
        let secrets = self.secrets_of(name, part, tenant)?;
        let kind = match part.kind {
            KindWord::Tcp => Kind::Tcp,
            KindWord::Http => Kind::Http {
                tls: part
                    .tls
                    .unwrap_or(true)
                    .then(|| Trust::load(part.ca_file.as_deref()).map_err(|error| bad(error.to_string())))
                    .transpose()?,
                inject: part.inject.iter().zip(secrets).map(|(part, secret)| part.inject(secret)).collect(),
            },
        };
        let to =
            part.to.parse().map_err(|problem| ConfigError::value(field("to"), format!("it {problem}")))?;
        Ok(Fixed { name: name.to_owned(), port: part.port, to, addresses: part.addresses.clone(), kind })
    }

    /// Where each tunnel would lead now, and whether each secret can be had: what is spoken of, and what was found.
    pub async fn look_at_network(&self) -> Vec<(String, Result<String, String>)> {
        let mut seen = Vec::new();
        let hosts = Arc::new(self.network.hosts.clone().into_iter().collect::<Hosts>());
        for (name, part) in &self.tunnels {
            let users = self.tenants.iter().filter(|(_, tenant)| tenant.tunnels.contains(name));
            // Whoever may use it has the secrets for it; nobody's still leads somewhere.
            let tenant = users.map(|(name, _)| name.as_str()).next().unwrap_or("local");
            let found = match self.fixed(name, part, tenant) {
                Ok(fixed) => fixed.leads_to(hosts.clone()).await.map_err(|refusal| refusal.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let shown = |found: Vec<IpAddr>| {
                let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                format!("{} leads to {} ({})", name, part.to, found.join(", "))
            };
            seen.push((format!("tunnel {name}"), found.map(shown)));
        }
        for secret in &self.secret {
            let whose = secret
                .tenant
                .as_ref()
                .map_or("anybody's tunnels".to_owned(), |name| format!("tenant {name}"));
            let found = secret.rule().can_be_had().await.map_err(|error| error.to_string());
            seen.push((
                format!("secret {}", secret.name),
                found.map(|()| format!("{} can be had, for {whose}", secret.name)),
            ));
        }
        seen
    }

    /// The secrets that a tunnel adds for a tenant: its own, or anybody's.
    fn secrets_of(
        &self,
        name: &str,
        part: &TunnelPart,
        tenant: &str,
    ) -> Result<Vec<Arc<SecretRule>>, ConfigError> {
        let find = |inject: &InjectPart| {
            let named = || self.secret.iter().filter(|secret| secret.name == inject.secret);
            let own = named().find(|secret| secret.tenant.as_deref() == Some(tenant));
            let found = own.or_else(|| named().find(|secret| secret.tenant.is_none()));
            found.map(SecretPart::rule).ok_or_else(|| {
                let problem =
                    format!("there is no [[secret]] {} of tenant {tenant}, nor of anybody's", inject.secret);
                ConfigError::value(format!("tunnels.{name}.inject"), problem)
            })
        };
        part.inject.iter().map(find).collect()
    }
}

impl InjectPart {
    fn inject(&self, secret: Arc<SecretRule>) -> Inject {
        let (before, behind) = self.value.split_once(MARK).unwrap_or((&self.value, ""));
        Inject { header: self.header.clone(), before: before.to_owned(), behind: behind.to_owned(), secret }
    }
}

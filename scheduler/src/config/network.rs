//! The sections `[network]`, `[tunnels]` and `[[secret]]`: what jobs may reach, and the secrets that they need not hold.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use egress::{
    Fixed, Hosts, Inject, IpNet, Kind, Limits, Place, Resolver, Rights, Rule, SecretRule, Share, Source,
    Target, Trust,
};
use serde::Deserialize;
use worker::Size;

use super::{Config, ConfigError};
use crate::{admit, key::is_name};

/// Ports below are the kernel's to give to root alone; the agent is not.
const FIRST_PORT: u16 = 1024;

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
    /// Connections to outside that all jobs of a tenant may have at once on this host.
    pub tenant_connections: usize,
    /// Bytes a second of all jobs of a tenant on this host.
    pub tenant_rate: Option<Size>,
    /// Names and their addresses. They come before the system's resolver, and lead wherever they say.
    pub hosts: BTreeMap<String, IpAddr>,
}

impl Default for NetworkPart {
    fn default() -> Self {
        let Limits { connections, bytes, .. } = Limits::default();
        Self {
            connections,
            bytes: bytes.into(),
            rate: None,
            tenant_connections: 1024,
            tenant_rate: None,
            hosts: BTreeMap::new(),
        }
    }
}

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

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretPart {
    /// What jobs and tunnels call it.
    pub name: String,
    /// Whose it is; `None`: anybody's tunnels may add it, and no job may hold it.
    pub tenant: Option<String>,
    /// Where it is.
    pub from: FromWord,
    /// Where a job that asks for it finds it; `None`: it is for tunnels only.
    pub to: Option<ToWord>,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromWord {
    /// In a file of this host.
    File(PathBuf),
    /// In a variable of mayfly's own environment.
    Env(String),
    /// On the standard output of a program.
    Command(Vec<String>),
}

/// Where a job finds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToWord {
    /// In a variable.
    Env(String),
    /// In a file.
    File(String),
}

impl NetworkPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let most = 256;
        if !(1..=most).contains(&self.connections) {
            let problem = format!("it is not from 1 to {most}; whoever may reach nothing has no `allow`");
            return Err(ConfigError::value("network.connections", problem));
        }
        for (field, rate) in [("network.rate", self.rate), ("network.tenant_rate", self.tenant_rate)] {
            if rate.is_some_and(|rate| rate.bytes() == 0) {
                return Err(ConfigError::value(field, "at that rate nothing ever arrives"));
            }
        }
        for name in self.hosts.keys() {
            if name.parse::<Rule>().is_err() || name.contains(['*', ':']) {
                return Err(ConfigError::value(format!("network.hosts.{name}"), "it is no name of a host"));
            }
        }
        Ok(())
    }
}

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

impl SecretPart {
    fn check(&self) -> Result<(), ConfigError> {
        let field = |field: &str| format!("secret.{}.{field}", self.name);
        if !is_name(&self.name) {
            let problem = "it is not 1 to 128 letters, digits, dots, underscores and dashes";
            return Err(ConfigError::value("secret.name", problem));
        }
        if self.tenant.is_none() && self.to.is_some() {
            let problem = "say whose jobs may hold it, or leave `to` out: then only tunnels have it";
            return Err(ConfigError::value(field("tenant"), problem));
        }
        if let FromWord::Command(words) = &self.from
            && words.is_empty()
        {
            return Err(ConfigError::value(field("from"), "a command has at least one word"));
        }
        match &self.to {
            Some(ToWord::Env(name)) => admit::variable(name)
                .map_err(|problem| ConfigError::value(field("to"), format!("{name}: {problem}"))),
            Some(ToWord::File(path)) => admit::path("to", path)
                .map_err(|refusal| ConfigError::value(field("to"), refusal.to_string())),
            None => Ok(()),
        }
    }

    fn rule(&self) -> Arc<SecretRule> {
        Arc::new(SecretRule {
            name: self.name.clone(),
            from: match &self.from {
                FromWord::File(path) => Source::File(path.clone()),
                FromWord::Env(name) => Source::Env(name.clone()),
                FromWord::Command(words) => Source::Command(words.clone()),
            },
            to: self.to.as_ref().map(|to| match to {
                ToWord::Env(name) => Place::Env(name.clone()),
                ToWord::File(path) => Place::File(path.clone()),
            }),
        })
    }
}

impl Config {
    pub(super) fn check_network(&self) -> Result<(), ConfigError> {
        self.network.check()?;
        self.secret.iter().try_for_each(SecretPart::check)?;
        for (at, secret) in self.secret.iter().enumerate() {
            if self.secret[..at]
                .iter()
                .any(|other| (&other.name, &other.tenant) == (&secret.name, &secret.tenant))
            {
                return Err(ConfigError::value(format!("secret.{}", secret.name), "there are two of it"));
            }
        }
        let mut ports = BTreeMap::from([(egress::PROXY_PORT, "the forward proxy")]);
        for (name, tunnel) in &self.tunnels {
            let field = |field: &str| format!("tunnels.{name}.{field}");
            if !is_name(name) {
                let problem = "a tunnel's name is 1 to 128 letters, digits, dots, underscores and dashes";
                return Err(ConfigError::value(format!("tunnels.{name}"), problem));
            }
            if tunnel.port < FIRST_PORT {
                let problem = format!("{} is below {FIRST_PORT}", tunnel.port);
                return Err(ConfigError::value(field("port"), problem));
            }
            if let Some(other) = ports.insert(tunnel.port, name) {
                let problem = format!("{} is the port of {other}", tunnel.port);
                return Err(ConfigError::value(field("port"), problem));
            }
            let target = tunnel.to.parse::<Target>();
            target
                .map_err(|problem| ConfigError::value(field("to"), format!("{:?} {problem}", tunnel.to)))?;
            if tunnel.kind == KindWord::Tcp && (tunnel.tls.is_some() || !tunnel.inject.is_empty()) {
                let problem = "bytes are carried as they are; write kind = \"http\" for `tls` and `inject`";
                return Err(ConfigError::value(field("kind"), problem));
            }
            if let Some(inject) = tunnel.inject.iter().find(|inject| inject.value.matches(MARK).count() != 1)
            {
                let problem = format!("{:?} does not say once where the secret stands: {MARK}", inject.value);
                return Err(ConfigError::value(field("inject"), problem));
            }
        }
        for (name, tenant) in &self.tenants {
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
        let network = &self.network;
        let mut rights = Rights {
            allow,
            limits: Limits {
                connections: network.connections,
                bytes: network.bytes.bytes(),
                rate: network.rate.map(Size::bytes),
            },
            hosts: Arc::new(network.hosts.clone().into_iter().collect::<Hosts>()),
            share: Arc::new(Share::new(network.tenant_connections, network.tenant_rate.map(Size::bytes))),
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

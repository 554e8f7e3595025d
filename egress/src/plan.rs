//! What a tenant may have, and what one job of it was given.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    fixed::Fixed,
    limits::{Limits, Share, Spent},
    resolve::{Hosts, Resolver},
    rule::{Ports, Rule, parse},
    secret::SecretRule,
};

/// What the jobs of a tenant may ask for. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Hosts that may be reached through the proxy.
    pub allow: Vec<Rule>,
    /// Tunnels, by name.
    pub tunnels: BTreeMap<String, Arc<Fixed>>,
    /// Secrets, by name.
    pub secrets: BTreeMap<String, Arc<SecretRule>>,
    /// What holds for each job.
    pub limits: Limits,
    /// Names that the operator gave addresses.
    pub hosts: Arc<Hosts>,
    /// Who knows the others.
    pub resolver: Arc<Resolver>,
    /// What all jobs of the tenant share.
    pub share: Arc<Share>,
}

/// What a job asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Hosts, such as `api.example.com` or `*.example.com:443`.
    pub allow: &'a [String],
    /// Names of tunnels.
    pub tunnels: &'a [String],
    /// Names of secrets.
    pub secrets: &'a [String],
}

/// Something that a job may not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Which field of the job, such as `allow[0]`.
    pub field: String,
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: &'static str,
}

/// What a job was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(crate) allow: Vec<Rule>,
    pub(crate) tunnels: Vec<Arc<Fixed>>,
    pub(crate) secrets: Vec<Arc<SecretRule>>,
    pub(crate) limits: Limits,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) share: Arc<Share>,
    /// One for all tries of the job.
    pub(crate) spent: Arc<Spent>,
}

impl Rights {
    /// Goes on with what is counted for those of before: where what the tenant's jobs share is as much as it was, it is
    /// the same still, and nothing of it begins anew.
    pub fn go_on_from(&mut self, before: &Self) {
        if self.share == before.share {
            self.share = before.share.clone();
        }
        self.resolver = before.resolver.clone();
    }

    /// What a job gets that asks for this. `None`: it asks for nothing.
    pub fn grant(&self, tenant: &str, ask: &Ask<'_>) -> Result<Option<Plan>, Denial> {
        if ask.allow.is_empty() && ask.tunnels.is_empty() && ask.secrets.is_empty() {
            return Ok(None);
        }
        let mut plan = Plan {
            allow: Vec::new(),
            tunnels: Vec::new(),
            secrets: Vec::new(),
            limits: self.limits,
            hosts: self.hosts.clone(),
            resolver: self.resolver.clone(),
            share: self.share.clone(),
            spent: Arc::default(),
        };
        for (index, text) in ask.allow.iter().enumerate() {
            plan.allow.extend(self.rules_for(tenant, text).map_err(|(reason, hint)| Denial {
                field: format!("allow[{index}]"),
                reason,
                hint,
            })?);
        }
        plan.tunnels = named("tunnels", "tunnel", tenant, ask.tunnels, &self.tunnels)?;
        plan.secrets = named("secrets", "secret", tenant, ask.secrets, &self.secrets)?;
        if let Some(at) = plan.secrets.iter().position(|secret| secret.to.is_none()) {
            let reason = "this secret is for tunnels, and no job may hold it".to_owned();
            let hint = "ask for the tunnel that adds it";
            return Err(Denial { field: format!("secrets[{at}]"), reason, hint });
        }
        Ok(Some(plan))
    }

    /// The tenant's rules, narrowed to what is asked for.
    fn rules_for(&self, tenant: &str, text: &str) -> Result<Vec<Rule>, (String, &'static str)> {
        let (host, ports) = parse(text)
            .map_err(|error| (error.to_string(), "write something like \"api.example.com:443\""))?;
        let known: Vec<_> = self.allow.iter().filter(|rule| rule.covers(&host)).collect();
        let denied = |what: String| {
            let hint = "ask for what `allow` of the tenant has in mayfly.toml, or have it added there";
            (format!("{what} is not allowed for tenant {tenant}"), hint)
        };
        if known.is_empty() {
            return Err(denied(text.escape_default().to_string()));
        }
        let narrowed = |rule: &Rule, ports: Ports| Rule { host: host.clone(), ports, ..rule.clone() };
        match ports {
            None => Ok(known.into_iter().map(|rule| narrowed(rule, rule.ports.clone())).collect()),
            Some(Ports::All) => {
                let rule = known.into_iter().find(|rule| rule.ports == Ports::All);
                rule.map(|rule| vec![narrowed(rule, Ports::All)]).ok_or_else(|| denied(text.to_owned()))
            }
            Some(Ports::These(ports)) => {
                let rule_for = |port: &u16| known.iter().find(|rule| rule.ports.has(*port));
                let rules = ports.iter().map(|port| {
                    let rule = rule_for(port).ok_or_else(|| denied(format!("port {port} of {text}")))?;
                    Ok(narrowed(rule, Ports::These(vec![*port])))
                });
                rules.collect()
            }
        }
    }
}

/// Those that are asked for by name, each once.
fn named<T>(
    field: &str,
    what: &str,
    tenant: &str,
    names: &[String],
    known: &BTreeMap<String, Arc<T>>,
) -> Result<Vec<Arc<T>>, Denial> {
    let mut found = BTreeMap::new();
    for (index, name) in names.iter().enumerate() {
        let Some(one) = known.get(name) else {
            let shown: String = name.escape_default().take(128).collect();
            let known: Vec<_> = known.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let reason = format!("tenant {tenant} has no {what} {shown}; it has {known}");
            let hint = "ask for one of those, or have it added in mayfly.toml";
            return Err(Denial { field: format!("{field}[{index}]"), reason, hint });
        };
        found.insert(name, one.clone());
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TenantLimits;

    fn rights(allow: &[&str]) -> Rights {
        Rights { allow: allow.iter().map(|rule| rule.parse().unwrap()).collect(), ..Rights::default() }
    }

    fn asked(rights: &Rights, allow: &[&str]) -> Result<Vec<Rule>, String> {
        let allow: Vec<_> = allow.iter().map(ToString::to_string).collect();
        let plan = rights.grant("acme", &Ask { allow: &allow, tunnels: &[], secrets: &[] });
        plan.map(|plan| plan.unwrap().allow).map_err(|denial| format!("{}: {}", denial.field, denial.reason))
    }

    #[test]
    fn a_job_gets_of_its_tenants_what_it_asks_for_and_no_more() {
        let rights = rights(&["*.example.com", "*.example.com:8443", "pypi.org:443"]);
        let rules = asked(&rights, &["api.example.com"]).unwrap();
        assert_eq!(rules.len(), 2);
        assert!(rules.iter().all(|rule| rule.host == "api.example.com".parse::<Rule>().unwrap().host));
        assert_eq!(asked(&rights, &["pypi.org:443"]).unwrap(), ["pypi.org:443".parse().unwrap()]);
        assert_eq!(
            asked(&rights, &["pypi.org", "evil.org"]).unwrap_err(),
            "allow[1]: evil.org is not allowed for tenant acme"
        );
        assert_eq!(
            asked(&rights, &["pypi.org:80"]).unwrap_err(),
            "allow[0]: port 80 of pypi.org:80 is not allowed for tenant acme"
        );
        assert!(asked(&rights, &["*"]).is_err() && asked(&rights, &["pypi.org:*"]).is_err());
    }

    #[test]
    fn a_tenants_share_goes_on_unless_it_is_another() {
        let share = |connections| {
            Arc::new(Share::new(TenantLimits { connections, rate: Some(1000), ..TenantLimits::default() }))
        };
        let before = Rights { share: share(5), ..Rights::default() };
        let (mut same, mut other) =
            (Rights { share: share(5), ..rights(&["a.b"]) }, Rights { share: share(6), ..Rights::default() });
        same.go_on_from(&before);
        other.go_on_from(&before);
        assert!(Arc::ptr_eq(&same.share, &before.share) && !Arc::ptr_eq(&other.share, &before.share));
        assert!(Arc::ptr_eq(&other.resolver, &before.resolver), "look-ups are the host's");
        assert_eq!(same.allow.len(), 1);
    }

    #[test]
    fn who_asks_for_nothing_gets_nothing_and_an_unknown_name_is_told_the_known_ones() {
        let mut rights = rights(&[]);
        let nothing = Ask { allow: &[], tunnels: &[], secrets: &[] };
        assert_eq!(rights.grant("acme", &nothing), Ok(None));
        let secret =
            |to| Arc::new(SecretRule { name: "key".into(), from: crate::Source::Env("KEY".into()), to });
        rights.secrets.insert("key".into(), secret(None));
        let denied = |name: &str| {
            let names = [name.to_owned()];
            rights.grant("acme", &Ask { secrets: &names, ..nothing }).unwrap_err().reason
        };
        assert_eq!(denied("other"), "tenant acme has no secret other; it has key");
        assert_eq!(denied("key"), "this secret is for tunnels, and no job may hold it");
    }
}

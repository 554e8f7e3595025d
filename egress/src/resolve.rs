//! Names become addresses, on the host.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use tokio::time::timeout;

use crate::{
    address::special,
    refusal::Refusal,
    rule::{Host, Rule, Target},
};

/// How long a name may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names that the operator gave addresses. They come before the system's, and lead wherever they say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(HashMap<String, IpAddr>);

impl FromIterator<(String, IpAddr)> for Hosts {
    fn from_iter<I: IntoIterator<Item = (String, IpAddr)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(name, address)| (name.to_ascii_lowercase(), address)).collect())
    }
}

/// The addresses to which a target may lead. They are connected to as they are: nobody resolves twice.
pub(crate) async fn resolve(target: &Target, rule: &Rule, hosts: &Hosts) -> Result<Vec<IpAddr>, Refusal> {
    let name = match &target.host {
        // A rule names it.
        Host::Address(address) => return Ok(vec![*address]),
        Host::Name(name) => name,
    };
    if let Some(address) = hosts.0.get(name) {
        return Ok(vec![*address]);
    }
    let unknown = |why: String| Refusal::Resolve { host: name.clone(), why };
    let found = timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), target.port))).await;
    let found = found.map_err(|_| unknown(format!("no answer within {PATIENCE:?}")))?;
    let found: Vec<_> = found.map_err(|error| unknown(error.to_string()))?.map(|found| found.ip()).collect();
    let mut kind = None;
    let allowed: Vec<_> = found
        .into_iter()
        .filter(|address| {
            let what = special(*address).filter(|_| !rule.addresses.iter().any(|net| net.contains(address)));
            kind = kind.or(what);
            what.is_none()
        })
        .collect();
    match (allowed.is_empty(), kind) {
        (false, _) => Ok(allowed),
        (true, Some(kind)) => Err(Refusal::Address { host: name.clone(), kind }),
        (true, None) => Err(unknown("it has no address".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(rule: &str, addresses: &[&str]) -> (Target, Rule) {
        let mut rule: Rule = rule.parse().unwrap();
        rule.addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        ("localhost:80".parse().unwrap(), rule)
    }

    #[tokio::test]
    async fn a_name_that_leads_to_the_loopback_is_refused_unless_the_rule_names_that() {
        let (target, rule) = asked("localhost", &[]);
        let refusal = resolve(&target, &rule, &Hosts::default()).await.unwrap_err();
        assert_eq!(refusal, Refusal::Address { host: "localhost".into(), kind: "a loopback" });
        let (target, rule) = asked("localhost", &["127.0.0.0/8", "::1/128"]);
        assert!(resolve(&target, &rule, &Hosts::default()).await.is_ok());
    }

    #[tokio::test]
    async fn what_the_operator_wrote_comes_first() {
        let hosts = Hosts::from_iter([("LocalHost".to_owned(), "192.0.2.7".parse().unwrap())]);
        let (target, rule) = asked("localhost", &[]);
        let found = resolve(&target, &rule, &hosts).await.unwrap();
        assert_eq!(found, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }
}

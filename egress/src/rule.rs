//! Which hosts a rule means: a name, all names below one, an address, at some ports.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use thiserror::Error;

/// Where a rule says nothing of ports: plain and encrypted HTTP.
const WEB: [u16; 2] = [80, 443];
/// The longest name that the DNS has, and the longest of its labels.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// The text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} {problem}; write something like \"api.example.com\", \"*.example.com:443\" or \"192.0.2.7:8080\""
)]
pub struct BadRule {
    text: String,
    problem: &'static str,
}

/// Hosts and ports that may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which hosts.
    pub host: HostPattern,
    /// At which ports.
    pub ports: Ports,
    /// Ranges to which its names may lead although they are not public.
    pub addresses: Vec<IpNet>,
    /// Whether what is sent there must begin with TLS for the very name that was asked for.
    pub sni: bool,
}

/// Hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// One name.
    Name(String),
    /// All names below one: `*.example.com`, which is not `example.com` itself.
    Below(String),
    /// Each name. Addresses have no name.
    Any,
    /// One address, which whoever wrote the rule has looked at.
    Address(IpAddr),
}

/// Ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Each.
    All,
    /// These.
    These(Vec<u16>),
}

/// One place that somebody wants to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name, in lower case, or an address.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// A host that somebody wants to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// By name, in lower case.
    Name(String),
    /// By address.
    Address(IpAddr),
}

impl Rule {
    /// Whether it speaks of this host, at whatever port.
    pub(crate) fn knows(&self, host: &Host) -> bool {
        match (&self.host, host) {
            (HostPattern::Name(name), Host::Name(asked)) => name == asked,
            (HostPattern::Below(suffix), Host::Name(asked)) => is_below(asked, suffix),
            (HostPattern::Any, Host::Name(_)) => true,
            (HostPattern::Address(address), Host::Address(asked)) => address == asked,
            _ => false,
        }
    }

    /// Whether all hosts of the pattern are hosts of this rule.
    pub(crate) fn covers(&self, hosts: &HostPattern) -> bool {
        match (&self.host, hosts) {
            (HostPattern::Any, HostPattern::Name(_) | HostPattern::Below(_) | HostPattern::Any) => true,
            (HostPattern::Below(suffix), HostPattern::Name(name)) => is_below(name, suffix),
            (HostPattern::Below(suffix), HostPattern::Below(narrower)) => {
                narrower == suffix || is_below(narrower, suffix)
            }
            (mine, hosts) => mine == hosts,
        }
    }
}

impl Ports {
    pub(crate) fn has(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::These(ports) => ports.contains(&port),
        }
    }
}

fn is_below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// A pattern and what was said of ports, if anything was.
pub(crate) fn parse(text: &str) -> Result<(HostPattern, Option<Ports>), BadRule> {
    let bad = |problem| BadRule { text: text.chars().take(LONGEST_NAME).collect(), problem };
    let (host, port) = apart(text).ok_or_else(|| bad("has brackets that do not belong together"))?;
    let ports = match port {
        None => None,
        Some("*") => Some(Ports::All),
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err(bad("has a port that is none")),
            Ok(port) => Some(Ports::These(vec![port])),
        },
    };
    let pattern = match host.strip_prefix("*.") {
        _ if host == "*" => HostPattern::Any,
        Some(suffix) => match suffix.parse() {
            Ok(Host::Name(suffix)) => HostPattern::Below(suffix),
            _ => return Err(bad("has a \"*.\" before something that is no name")),
        },
        None => match host.parse() {
            Ok(Host::Name(name)) => HostPattern::Name(name),
            Ok(Host::Address(address)) => HostPattern::Address(address),
            Err(problem) => return Err(bad(problem)),
        },
    };
    Ok((pattern, ports))
}

/// Host and port, the brackets of an IPv6 address taken off.
fn apart(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    // An IPv6 address without brackets has no port.
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(port))),
        _ => Some((text, None)),
    }
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let (host, ports) = parse(text)?;
        let ports = ports.unwrap_or(Ports::These(WEB.to_vec()));
        Ok(Self { host, ports, addresses: Vec::new(), sni: false })
    }
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let letter = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        let label = |label: &str| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(letter);
        if name.len() > LONGEST_NAME || !name.split('.').all(label) {
            return Err("is no name of a host");
        }
        // Resolvers take 127.1, 0x7f.1 and 2130706433 for addresses; a name never ends so.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|c| c.is_ascii_digit()) || last.starts_with("0x") {
            return Err("is no address as it is usually written");
        }
        Ok(Self::Name(name))
    }
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (host, port) = apart(text).ok_or("has brackets that do not belong together")?;
        let port = port.and_then(|port| port.parse().ok()).filter(|port| *port != 0).ok_or("has no port")?;
        Ok(Self { host: host.parse()?, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn host(text: &str) -> Host {
        text.parse().unwrap_or_else(|problem| panic!("{text} {problem}"))
    }

    #[test]
    fn a_rule_knows_its_hosts_and_nobody_else() {
        assert!(rule("api.example.com").knows(&host("API.Example.COM.")));
        assert!(!rule("api.example.com").knows(&host("x.api.example.com")));
        assert!(rule("*.example.com").knows(&host("a.b.example.com")));
        assert!(!rule("*.example.com").knows(&host("example.com")));
        assert!(!rule("*.example.com").knows(&host("evilexample.com")));
        assert!(!rule("*.example.com").knows(&host("example.com.evil.org")));
        assert!(rule("*").knows(&host("anything.org")));
        assert!(!rule("*").knows(&host("192.0.2.1")), "an address is named or not reached");
        assert!(rule("[::1]:80").knows(&host("::1")));
    }

    #[test]
    fn ports_are_the_webs_unless_they_are_said() {
        assert_eq!(rule("a.b").ports, Ports::These(vec![80, 443]));
        assert!(rule("a.b:8080").ports.has(8080) && !rule("a.b:8080").ports.has(443));
        assert!(rule("a.b:*").ports.has(22));
        assert_eq!(rule("[::1]:80").host, HostPattern::Address("::1".parse().unwrap()));
        assert_eq!(rule("::1").host, HostPattern::Address("::1".parse().unwrap()));
    }

    #[test]
    fn what_only_looks_like_a_name_is_refused() {
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a/b",
            "http://a",
            "a:0",
            "a:99999",
            "a:x",
            "[::1",
            "*.*.a",
            "a*",
            "*.10.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "1.2.3.4.5",
            "a@b",
            "é.org",
            "user:pw@h:1",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_covers_what_is_narrower_and_nothing_wider() {
        let covers = |wide: &str, narrow: &str| rule(wide).covers(&rule(narrow).host);
        assert!(covers("*", "a.b") && covers("*", "*.b") && covers("*", "*"));
        assert!(
            covers("*.b", "a.b") && covers("*.b", "*.b") && covers("*.b", "*.a.b") && covers("a.b", "a.b")
        );
        assert!(
            !covers("*.b", "b") && !covers("a.b", "*.b") && !covers("*.a.b", "*.b") && !covers("*.b", "*")
        );
        assert!(!covers("*", "127.0.0.1") && covers("127.0.0.1", "127.0.0.1"));
    }

    #[test]
    fn a_target_has_a_host_and_a_port() {
        assert_eq!("A.b:443".parse(), Ok(Target { host: Host::Name("a.b".into()), port: 443 }));
        assert_eq!("[::1]:1".parse::<Target>().unwrap().to_string(), "[::1]:1");
        for bad in ["a.b", "a.b:", "a.b:0", ":80", "127.1:80"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}

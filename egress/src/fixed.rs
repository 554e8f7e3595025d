//! Tunnels: ports of the sandbox's loopback that lead to one place each.

use std::{net::IpAddr, sync::Arc};

use hyper::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::{
    forward::is_of_one_connection,
    refusal::Refusal,
    resolve::{Hosts, Names},
    rule::{Host, HostPattern, Ports, Rule, Target},
    secret::{SecretError, SecretRule},
    tls::Trust,
};

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// What jobs call it.
    pub name: String,
    /// The port of the sandbox's loopback.
    pub port: u16,
    /// Where it leads.
    pub to: Target,
    /// Ranges to which that name may lead although they are not public.
    pub addresses: Vec<IpNet>,
    /// What flows in it.
    pub kind: Kind,
}

/// What flows in a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, as they are.
    Tcp,
    /// HTTP: plain in the sandbox, as the host makes it outside.
    Http {
        /// Whom the host believes to be the other end; `None`: it speaks plain HTTP to it.
        tls: Option<Trust>,
        /// What the host adds to each request.
        inject: Vec<Inject>,
    },
}

/// A header with a secret in it, which the sandbox never holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inject {
    /// Its name.
    pub header: String,
    /// What stands before the secret, such as `Bearer `.
    pub before: String,
    /// What stands behind it.
    pub behind: String,
    /// The secret.
    pub secret: Arc<SecretRule>,
}

impl Fixed {
    /// The variable in which jobs find a tunnel of this name.
    #[must_use]
    pub fn variable(name: &str) -> String {
        format!("MAYFLY_TUNNEL_{}", name.to_uppercase().replace(['-', '.'], "_"))
    }

    /// The addresses to which it would lead now.
    pub async fn leads_to(&self, hosts: Arc<Hosts>) -> Result<Vec<IpAddr>, Refusal> {
        let names = Names { hosts, resolver: Arc::default(), share: Arc::default() };
        names.resolve(&self.to, &self.rule()).await
    }

    /// The one rule that it goes by: whoever made the tunnel named the place.
    pub(crate) fn rule(&self) -> Rule {
        let host = match &self.to.host {
            Host::Name(name) => HostPattern::Name(name.clone()),
            Host::Address(address) => HostPattern::Address(*address),
        };
        let ports = Ports::These(vec![self.to.port]);
        Rule { host, ports, addresses: self.addresses.clone(), sni: false }
    }
}

impl Inject {
    /// Whether a host may add a header of this name, with this around the secret.
    pub fn check(header: &str, around: &str) -> Result<(), &'static str> {
        let name = HeaderName::from_bytes(header.as_bytes()).map_err(|_| "is no name of a header")?;
        if name == HOST || name == CONTENT_LENGTH || is_of_one_connection(&name) {
            return Err("is a header that mayfly writes itself, or that is of one connection");
        }
        HeaderValue::from_str(around).map(drop).map_err(|_| "has a value that no header may have")
    }

    /// The header, as it is sent.
    pub(crate) async fn header(&self) -> Result<(HeaderName, HeaderValue), SecretError> {
        let secret = self.secret.read().await?;
        let value = [self.before.as_bytes(), secret.bytes(), self.behind.as_bytes()].concat();
        let name = HeaderName::from_bytes(self.header.as_bytes());
        let name =
            name.map_err(|_| self.secret.problem(format!("{:?} is no name of a header", self.header)))?;
        let value = HeaderValue::from_bytes(&value);
        let mut value =
            value.map_err(|_| self.secret.problem("it has bytes in it that no header may have"))?;
        value.set_sensitive(true);
        Ok((name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mayfly_writes_itself_or_strips_is_nothing_to_add() {
        for bad in
            ["Host", "connection", "Keep-Alive", "Transfer-Encoding", "content-length", "", "a b", "x:"]
        {
            assert!(Inject::check(bad, "Bearer ").is_err(), "{bad}");
        }
        assert!(Inject::check("Authorization", "a\nb").is_err());
        assert_eq!(Inject::check("X-Api-Key", "").and(Inject::check("authorization", "Bearer ")), Ok(()));
    }

    #[test]
    fn a_tunnels_variable_is_one_that_shells_know() {
        assert_eq!(Fixed::variable("my-model.v2"), "MAYFLY_TUNNEL_MY_MODEL_V2");
    }
}

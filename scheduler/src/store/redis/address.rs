//! Where Redis is, who we are there, and how it proves itself.

use std::{fmt, fs, path::PathBuf};

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use super::RedisStoreError;

/// Where a Redis server is. Credentials are no part of the address, so that it can be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// `redis://host:port`, `rediss://host:port` (TLS) or `redis+unix:///path`, with `/N` or `?db=N` for a database.
    pub url: String,
    /// The user; missing for the default one.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// A file of certificates (PEM) that sign the server's; missing for those that this host trusts.
    pub certificates: Option<PathBuf>,
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisAddress")
            .field("url", &without_credentials(&self.url))
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("certificates", &self.certificates)
            .finish()
    }
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_credentials(&self.url))
    }
}

impl RedisAddress {
    /// An address without credentials.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), user: None, password: None, certificates: None }
    }

    /// A client, which is not yet connected.
    pub(super) fn client(&self) -> Result<Client, RedisStoreError> {
        let bad = |error| RedisStoreError::Address { url: self.to_string(), error };
        let mut info = self.url.as_str().into_connection_info().map_err(bad)?;
        let mut who = info.redis_settings().clone();
        if let Some(user) = &self.user {
            who = who.set_username(user);
        }
        if let Some(password) = &self.password {
            who = who.set_password(password);
        }
        info = info.set_redis_settings(who);
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            self.over_tls(info)
        } else {
            Client::open(info).map_err(bad)
        }
    }

    fn over_tls(&self, info: ConnectionInfo) -> Result<Client, RedisStoreError> {
        // The first that speaks TLS in this process decides for all; it is the same provider everywhere.
        let _ = rustls::crypto::CryptoProvider::install_default(rustls::crypto::ring::default_provider());
        let bad = |error| RedisStoreError::Address { url: self.to_string(), error };
        let Some(path) = &self.certificates else { return Client::open(info).map_err(bad) };
        let pem =
            fs::read(path).map_err(|error| RedisStoreError::Certificates { path: path.clone(), error })?;
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem) }).map_err(bad)
    }
}

/// What stands between `//` and `@` is nobody's to see.
fn without_credentials(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_never_shown_with_its_credentials() {
        let mut address = RedisAddress::new("redis://user:topsecret@host:1/2");
        address.password = Some("topsecret".to_owned());
        assert_eq!(address.to_string(), "redis://host:1/2");
        assert!(!format!("{address:?}").contains("topsecret"));
        let bad = RedisAddress::new("http://user:topsecret@host");
        assert!(!format!("{:?}", bad.client().unwrap_err()).contains("topsecret"));
    }
}

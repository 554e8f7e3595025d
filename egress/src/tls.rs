//! TLS to outside, for the tunnels of which the host is the client.

use std::{fmt, fs, io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, IpAddr, ServerName, pem::PemObject},
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::rule::Host;

/// Whom the host believes.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

/// The authorities cannot be had.
#[derive(Debug, Error)]
pub enum BadAuthority {
    /// A file of them is not there or is none.
    #[error("no certificates can be read from {path}: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// The system has none.
    #[error("this system has no certificates of authorities (package ca-certificates): {0}")]
    System(String),
    /// They cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Trust {
    /// Those that the system believes, or those in a file.
    pub fn load(authority: Option<&Path>) -> Result<Self, BadAuthority> {
        let certificates = match authority {
            Some(path) => from_file(path)?,
            None => from_system()?,
        };
        let mut roots = RootCertStore::empty();
        let (known, _) = roots.add_parsable_certificates(certificates);
        if known == 0 {
            let path = authority.map_or("the system".to_owned(), |path| path.display().to_string());
            return Err(BadAuthority::File { path, why: "there are none".to_owned() });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Gives the stream back with the error: it is not over before somebody has said how it ended.
    pub(crate) async fn connect<S>(&self, host: &Host, stream: S) -> Result<TlsStream<S>, (io::Error, S)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match host {
            Host::Name(name) => match ServerName::try_from(name.clone()) {
                Ok(name) => name,
                Err(error) => return Err((io::Error::other(error), stream)),
            },
            Host::Address(address) => ServerName::IpAddress(IpAddr::from(*address)),
        };
        TlsConnector::from(self.0.clone()).connect(name, stream).into_fallible().await
    }
}

fn from_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadAuthority> {
    let problem = |why: String| BadAuthority::File { path: path.display().to_string(), why };
    let text = fs::read(path).map_err(|error| problem(error.to_string()))?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| problem(error.to_string()))
}

fn from_system() -> Result<Vec<CertificateDer<'static>>, BadAuthority> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(BadAuthority::System(format!("{:?}", found.errors)));
    }
    Ok(found.certs)
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl PartialEq for Trust {
    /// Two that were loaded by themselves may differ in what was in their files.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trust {}

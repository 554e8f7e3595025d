//! The section `[metrics]`: where a host that serves shows its numbers and its health.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error};

use super::{ConfigError, some_time};
use crate::web::Token;

/// Where it is shown when nobody says so.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// Where numbers and health are shown.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsPart {
    /// The address and port; `None` (`"off"`): nowhere.
    #[serde(deserialize_with = "address")]
    pub listen: Option<SocketAddr>,
    /// The file with the token that whoever asks must show. Needed where others than this host can ask.
    pub token_file: Option<PathBuf>,
    /// The longest that a job should wait for a slot: those that wait longer are counted.
    #[serde(with = "humantime_serde")]
    pub acceptable_wait: Duration,
}

impl Default for MetricsPart {
    fn default() -> Self {
        Self { listen: Some(USUAL), token_file: None, acceptable_wait: Duration::from_secs(60) }
    }
}

impl MetricsPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        some_time("metrics.acceptable_wait", self.acceptable_wait)?;
        match self.listen {
            Some(address) if !address.ip().is_loopback() && self.token_file.is_none() => {
                let problem = format!(
                    "{address} can be reached from other hosts: name a file with a token in metrics.token_file, or \
                     listen on 127.0.0.1"
                );
                Err(ConfigError::value("metrics.listen", problem))
            }
            _ => Ok(()),
        }
    }

    /// What whoever asks must show, if anything.
    pub fn token(&self) -> Result<Option<Token>, ConfigError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.clone(), error })?;
        Token::new(text.trim()).map(Some).ok_or_else(|| {
            let problem = format!("{} holds no token of 16 printable characters or more", path.display());
            ConfigError::value("metrics.token_file", problem)
        })
    }
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if text == "off" {
        return Ok(None);
    }
    let hint = "write an address and a port, such as \"127.0.0.1:9477\", or \"off\"";
    text.parse().map(Some).map_err(|_| D::Error::custom(format!("\"{text}\" is no place to listen: {hint}")))
}

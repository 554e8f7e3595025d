//! The section `[traces]`: where a host that serves sends the traces of its jobs.

use std::{fs, path::PathBuf};

use reqwest::Url;
use serde::Deserialize;

use super::ConfigError;
use crate::traces::{TraceHeaders, TraceSettings};

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesPart {
    /// The collector's address for traces, such as `http://127.0.0.1:4318/v1/traces`; `None`: nowhere.
    pub endpoint: Option<String>,
    /// The file with the headers that go with each request, one a line.
    pub headers_file: Option<PathBuf>,
    /// The share of the jobs without a producer's trace of which one is recorded, from 0 to 1.
    pub share: f64,
}

impl Default for TracesPart {
    fn default() -> Self {
        Self { endpoint: None, headers_file: None, share: 1.0 }
    }
}

impl TracesPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(ConfigError::value("traces.share", "it is not from 0 to 1"));
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let url = endpoint.parse::<Url>().ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        let Some(url) = url else {
            let problem = format!(
                "{endpoint:?} is no address of a collector: write one such as \"http://127.0.0.1:4318/v1/traces\""
            );
            return Err(ConfigError::value("traces.endpoint", problem));
        };
        if !url.username().is_empty() || url.password().is_some() {
            let problem = "it has a user in it; put a header into the file of traces.headers_file";
            return Err(ConfigError::value("traces.endpoint", problem));
        }
        Ok(())
    }

    /// Where they go, from a host of this name; `None`: nowhere.
    pub fn settings(&self, host: String, version: String) -> Result<Option<TraceSettings>, ConfigError> {
        let Some(endpoint) = self.endpoint.clone() else { return Ok(None) };
        let headers = match &self.headers_file {
            None => TraceHeaders::default(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|error| ConfigError::Read { path: path.clone(), error })?;
                TraceHeaders::read(&text).map_err(|line| {
                    let problem = format!("line {line} of {} is no `Name: value`", path.display());
                    ConfigError::value("traces.headers_file", problem)
                })?
            }
        };
        Ok(Some(TraceSettings { endpoint, headers, share: self.share, host, version }))
    }
}

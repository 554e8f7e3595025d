//! The sections `[[secret]]`.

use std::{path::PathBuf, sync::Arc};

use egress::{Place, SecretRule, Source};
use serde::Deserialize;

use crate::{admit, config::ConfigError, key::is_name};

/// What is memory in a sandbox of every tier and every image.
const IN_MEMORY: [&str; 3] = ["/job/", "/tmp/", "/dev/shm/"];

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

impl SecretPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
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
            Some(ToWord::File(path)) => {
                admit::path("to", path)
                    .map_err(|refusal| ConfigError::value(field("to"), refusal.to_string()))?;
                if IN_MEMORY.iter().any(|place| path.starts_with(place)) {
                    return Ok(());
                }
                let problem = format!("{path} may be on a disk; put it below {}", IN_MEMORY.join(", "));
                Err(ConfigError::value(field("to"), problem))
            }
            None => Ok(()),
        }
    }

    pub(super) fn rule(&self) -> Arc<SecretRule> {
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

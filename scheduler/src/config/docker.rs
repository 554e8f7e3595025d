//! The section `[docker]`: which daemon makes the containers of the docker tier.

use pool::DockerSettings;
use serde::Deserialize;

use super::ConfigError;

/// Which docker daemon, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DockerPart {
    /// The daemon's socket.
    pub socket: Option<String>,
    /// The runtime, by the name that the daemon knows it by.
    pub runtime: Option<String>,
    /// Whether a runtime with known ways out of its containers is used all the same.
    pub allow_old_runtime: bool,
}

impl DockerPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match &self.socket {
            Some(socket) if !socket.starts_with('/') => {
                let problem =
                    format!("\"{socket}\" is no absolute path of a socket, such as /var/run/docker.sock");
                Err(ConfigError::value("docker.socket", problem))
            }
            _ => Ok(()),
        }
    }

    /// As the pool takes it. `host` is what `DOCKER_HOST` says, and counts where the file says nothing.
    #[must_use]
    pub fn settings(&self, host: Option<String>) -> DockerSettings {
        let default = DockerSettings::default();
        let socket = self.socket.as_ref().map(|socket| format!("unix://{socket}"));
        DockerSettings {
            host: socket.or(host).filter(|host| !host.is_empty()).unwrap_or(default.host),
            runtime: self.runtime.clone(),
            allow_old_runtime: self.allow_old_runtime,
        }
    }
}

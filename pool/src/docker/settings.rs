//! What an operator decides about Docker.

use std::path::PathBuf;

use super::{DockerError, engine::SHARING};

/// Where the daemon is when nobody says otherwise.
const SOCKET: &str = "unix:///var/run/docker.sock";

/// Which daemon makes containers, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// The daemon's socket as docker's own programs take it: `unix:///…`.
    pub host: String,
    /// The runtime by the name that the daemon knows it by; its default if missing.
    pub runtime: Option<String>,
    /// Whether a runtime with known ways out of its containers is used all the same.
    pub allow_old_runtime: bool,
}

impl Default for Docker {
    fn default() -> Self {
        Self { host: SOCKET.to_owned(), runtime: None, allow_old_runtime: false }
    }
}

impl Docker {
    /// Whether the runtime may be one with a kernel of its own. Then nothing of a container's disk can be changed later.
    pub(crate) fn may_have_own_kernel(&self) -> bool {
        self.runtime.as_ref().is_some_and(|runtime| !SHARING.contains(&runtime.as_str()))
    }

    /// The daemon's socket. A daemon elsewhere makes containers elsewhere: their processes and cgroups are not to be seen.
    pub(super) fn socket(&self) -> Result<PathBuf, DockerError> {
        match self.host.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(path.into()),
            _ => Err(DockerError::NotLocal(self.host.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_of_this_host_is_taken() {
        assert_eq!(Docker::default().socket().unwrap(), PathBuf::from("/var/run/docker.sock"));
        for host in ["tcp://10.0.0.1:2375", "ssh://host", "unix://relative", "/run/docker.sock", ""] {
            let docker = Docker { host: host.to_owned(), ..Docker::default() };
            assert!(matches!(docker.socket(), Err(DockerError::NotLocal(_))), "{host}");
        }
    }
}

//! The files of an image of a docker daemon on this host, flattened: its layers, volumes and configuration are gone.
//!
//! Three requests over the daemon's socket: a container is made and never started, exported, and removed. Nothing is ever
//! pulled. HTTP/1.0, so that an answer is its bytes up to the end of the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SourceError;
use crate::error::At;
use crate::rootfs::{Links, Rootfs};
use crate::{Digest, unpack};

const SOCKET: &str = "/var/run/docker.sock";

/// How long the daemon may be silent.
const PATIENCE: Duration = Duration::from_secs(120);

/// An image's name at the daemon: `name`, `name:tag`, `registry/name@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DockerImage(String);

impl TryFrom<String> for DockerImage {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let letters = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-/:@".contains(&c));
        // It becomes part of a path: a part of dots would lead elsewhere.
        let parts = name.split('/').all(|part| part.bytes().any(|c| c != b'.'));
        if letters && parts && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric()) {
            Ok(Self(name))
        } else {
            Err(format!("`{name}` is not the name of a docker image, such as debian:12"))
        }
    }
}

impl From<DockerImage> for String {
    fn from(name: DockerImage) -> Self {
        name.0
    }
}

/// The daemon's id of the image, which is a digest of all that is in it.
pub(super) fn fingerprint(image: &DockerImage) -> Result<Digest, SourceError> {
    let daemon = Daemon::of_this_host()?;
    let found = daemon.json("GET", &format!("/images/{}/json", image.0), None)?;
    let id = found["Id"].as_str().unwrap_or_default();
    id.parse().map_err(|_| daemon.failed(format!("says that the image's id is `{id}`")))
}

/// Fills an empty root.
pub(super) fn fill(root: &Path, image: &DockerImage) -> Result<(), SourceError> {
    let daemon = Daemon::of_this_host()?;
    let order = json!({ "Image": image.0, "Cmd": ["/"], "NetworkDisabled": true });
    let made = daemon.json("POST", "/containers/create", Some(&order))?;
    let id = made["Id"].as_str().unwrap_or_default();
    let filled = daemon.export(id, root);
    // Whatever came of it; with the volumes that the image's configuration asked for.
    let removed = daemon.ask("DELETE", &format!("/containers/{id}?force=true&v=true"), None);
    filled.and(removed.map(drop))
}

struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    fn of_this_host() -> Result<Self, SourceError> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        match host.strip_prefix("unix://") {
            Some(path) => Ok(Self { socket: path.into() }),
            None if host.is_empty() => Ok(Self { socket: SOCKET.into() }),
            None => Err(SourceError::Docker {
                socket: host.into(),
                problem: "is no socket of this host: name one as unix:///… in DOCKER_HOST".to_owned(),
            }),
        }
    }

    fn failed(&self, problem: String) -> SourceError {
        SourceError::Docker { socket: self.socket.clone(), problem }
    }

    /// The body of an answer, if it is a good one.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<impl Read + use<>, SourceError> {
        let (status, mut body) = self
            .send(method, path, body)
            .map_err(|error| self.failed(format!("does not answer: {error}")))?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let mut said = String::new();
        // What it says is for the message only.
        let _ = body.by_ref().take(4096).read_to_string(&mut said);
        let said = serde_json::from_str::<Value>(&said).map_or(said, |said| said["message"].to_string());
        Err(self.failed(format!("answers {status}: {}", said.trim_matches('"'))))
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, BufReader<UnixStream>)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("`{}` is no answer", line.trim())))?;
        while !line.trim().is_empty() {
            line.clear();
            answer.read_line(&mut line)?;
        }
        Ok((status, answer))
    }

    fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, SourceError> {
        let answer = self.ask(method, path, body)?;
        serde_json::from_reader(answer).map_err(|error| self.failed(format!("answers no JSON: {error}")))
    }

    fn export(&self, id: &str, root: &Path) -> Result<(), SourceError> {
        let archive = self.ask("GET", &format!("/containers/{id}/export"), None)?;
        let rootfs = Rootfs::open(root, Links::Refuse).at("open", root)?;
        unpack::root_tree(archive, &rootfs)
            .map_err(|cause| SourceError::Unpack { path: self.socket.clone(), cause })?;
        // Of every container, and not of the image.
        let mark = Path::new(".dockerenv");
        Ok(rootfs.remove(mark).at("remove", root.join(mark))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_is_no_other_path_of_the_daemon() {
        for name in ["debian", "debian:12", "registry.example:5000/team/name:tag", "a@sha256:00"] {
            assert!(DockerImage::try_from(name.to_owned()).is_ok(), "{name}");
        }
        for name in ["", "-x", "../containers", "a/../b", "a b", "a?b", "a%2fb", "a//b", "/a"] {
            assert!(DockerImage::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}

//! Asks the live processes of this host. Blocking: whoever asks waits for nothing else.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use super::{Answer, Ask, Envelope, VERSION, folder};

/// How long an answer may take: a note has to reach the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// A live process did not answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// It cannot be talked to.
    #[error("cannot ask the mayfly behind {path}")]
    Io {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It says that it cannot answer.
    #[error("the mayfly behind {path} cannot answer: {why}")]
    Refused {
        /// Its socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The live processes, by their sockets. Sockets that nobody listens on are removed.
pub fn live(run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder(run_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut live = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "sock") {
            continue;
        }
        match UnixStream::connect(&path) {
            Ok(_) => live.push(path),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Its process is dead. Whoever removes it first is as good as anybody.
                let _ = fs::remove_file(&path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    live.sort();
    Ok(live)
}

/// Asks one of them.
pub fn ask(socket: &Path, ask: &Ask) -> Result<Answer, AskError> {
    let answer = exchange(socket, ask).map_err(|error| AskError::Io { path: socket.to_owned(), error })?;
    match answer {
        Answer::Error { why } => Err(AskError::Refused { path: socket.to_owned(), why }),
        answer => Ok(answer),
    }
}

fn exchange(socket: &Path, ask: &Ask) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Envelope { version: VERSION, content: ask })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let Envelope { content, .. } = serde_json::from_str(&answer)?;
    Ok(content)
}

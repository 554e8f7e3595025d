//! Secrets: where they come from and where they go. Their values are read when a job begins, and kept nowhere.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

/// The longest secret.
const LONGEST: usize = 64 * 1024;
/// How long a command may take to tell one.
const PATIENCE: Duration = Duration::from_secs(10);

/// A secret of a tenant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRule {
    /// What jobs call it.
    pub name: String,
    /// Where its value is.
    pub from: Source,
    /// Where a job that asks for it finds it; `None`: it is for tunnels only.
    pub to: Option<Place>,
}

/// Where a secret's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a file of the host's.
    File(PathBuf),
    /// In a variable of mayfly's own environment.
    Env(String),
    /// On the standard output of a program.
    Command(Vec<String>),
}

/// Where a job finds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a variable.
    Env(String),
    /// In a file that its user alone may read.
    File(String),
}

/// A secret cannot be had. What it is never appears in one of these.
#[derive(Debug, Error)]
#[error("secret {name}: {why}")]
pub struct SecretError {
    name: String,
    why: String,
}

/// A secret's value, which nobody sees by accident.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value(Vec<u8>);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(…)")
    }
}

impl Value {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl SecretRule {
    /// Reads the value. One line break at its end is the editor's, and not the secret's.
    pub(crate) async fn read(&self) -> Result<Value, SecretError> {
        let problem = |why: String| SecretError { name: self.name.clone(), why };
        let mut bytes = match &self.from {
            Source::File(path) => {
                from_file(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
            }
            Source::Env(name) => std::env::var(name)
                .map(String::into_bytes)
                .map_err(|_| format!("mayfly's environment has no variable {name} that is text")),
            Source::Command(words) => from_command(words).await,
        }
        .map_err(problem)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        match bytes.len() {
            0 => Err(problem("it is empty".to_owned())),
            len if len > LONGEST => Err(problem(format!("it is longer than {LONGEST} bytes"))),
            _ => Ok(Value(bytes)),
        }
    }

    /// Whether it can be had now.
    pub async fn can_be_had(&self) -> Result<(), SecretError> {
        self.read().await.map(drop)
    }

    pub(crate) fn problem(&self, why: impl Into<String>) -> SecretError {
        SecretError { name: self.name.clone(), why: why.into() }
    }
}

/// Blocks: a file of a few bytes, once a job, is read before a thread for it would have begun.
fn from_file(path: &Path) -> io::Result<Vec<u8>> {
    // A FIFO would be waited for until somebody writes, and a device might never end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST as u64 + 2).read_to_end(&mut bytes)?;
    Ok(bytes)
}

async fn from_command(words: &[String]) -> Result<Vec<u8>, String> {
    let [program, arguments @ ..] = words else { return Err("its command is empty".to_owned()) };
    let problem = |error: io::Error| format!("cannot run {program}: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it complains of may hold what it should keep.
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(problem)?;
    let mut bytes = Vec::new();
    let mut output = child.stdout.take().ok_or("its output cannot be read")?.take(LONGEST as u64 + 2);
    let told = async {
        output.read_to_end(&mut bytes).await?;
        drop(output);
        // Who says too much is not listened to, and may end by that.
        if bytes.len() > LONGEST + 1 { Ok(ExitStatus::default()) } else { child.wait().await }
    };
    match timeout(PATIENCE, told).await {
        Ok(Ok(status)) if status.success() => Ok(bytes),
        Ok(Ok(status)) => Err(format!("{program} ended with {status}")),
        Ok(Err(error)) => Err(problem(error)),
        Err(_) => Err(format!("{program} said nothing within {PATIENCE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(from: Source) -> SecretRule {
        SecretRule { name: "key".into(), from, to: None }
    }

    fn sh(script: &str) -> SecretRule {
        secret(Source::Command(["sh", "-c", script].map(ToOwned::to_owned).to_vec()))
    }

    #[tokio::test]
    async fn a_secret_is_read_from_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(secret(Source::File(path)).read().await.unwrap().bytes(), b"s3cret");
        assert_eq!(sh("printf 'two\\nlines\\n'").read().await.unwrap().bytes(), b"two\nlines");
        assert!(!secret(Source::Env("PATH".into())).read().await.unwrap().bytes().is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_said_without_saying_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let cases = [
            (secret(Source::File("/nowhere".into())), "cannot read /nowhere"),
            (secret(Source::File(fifo)), "no regular file"),
            (secret(Source::File("/dev/zero".into())), "no regular file"),
            (secret(Source::Env("MAYFLY_NOBODY_HAS_THIS".into())), "no variable"),
            (sh("echo half-a-secret; exit 3"), "exit status: 3"),
            (sh("true"), "empty"),
            (sh("head -c 70000 /dev/zero"), "longer"),
        ];
        for (secret, expected) in cases {
            let error = secret.read().await.unwrap_err().to_string();
            assert!(error.starts_with("secret key: ") && error.contains(expected), "{error}");
            assert!(!error.contains("half-a-secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_value_is_never_shown() {
        let value = sh("echo s3cret").read().await.unwrap();
        assert!(!format!("{value:?}").contains("s3cret"));
    }
}

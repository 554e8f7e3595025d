//! Where the broker is, and who mayfly is there. The password never stands in the URL, which is shown and logged.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use lapin::uri::AMQPUri;
use thiserror::Error;

/// How the broker is reached.
#[derive(Clone)]
pub struct Settings {
    pub(crate) uri: AMQPUri,
    pub(crate) authorities: Option<String>,
    /// After how long without a word the other side is taken for dead.
    pub heartbeat: Duration,
    /// How long connecting may take, everything included.
    pub connect_within: Duration,
    /// How long the broker may take to answer one request.
    pub answer_within: Duration,
    /// How long the broker lets a job be held, where it does not know the queues' own setting (before 3.12): what its
    /// `consumer_timeout` says.
    pub consumer_timeout: Duration,
}

/// A password. It is not shown.
#[derive(Clone)]
pub struct Credential(String);

/// The settings cannot be used.
#[derive(Debug, Error)]
pub enum BadSettings {
    /// The URL.
    #[error("the broker's url: {0}")]
    Url(String),
    /// A password in the URL.
    #[error(
        "the broker's url has a password in it; put that into a file (broker.password_file) or the environment"
    )]
    PasswordInUrl,
    /// No password anywhere.
    #[error(
        "there is no password for the broker: set broker.password_file, or {variable} in the environment"
    )]
    NoPassword {
        /// Where it was looked for.
        variable: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A file that others may read.
    #[error("{0} can be read by others than its owner and group: chmod 640 or less")]
    Readable(PathBuf),
}

impl Credential {
    /// This password.
    #[must_use]
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    /// The first line of a file that only its owner and group may read; without a file, the value of an environment
    /// variable.
    pub fn find(file: Option<&Path>, variable: &str) -> Result<Self, BadSettings> {
        let Some(path) = file else {
            let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
            return value.map(Self).ok_or_else(|| BadSettings::NoPassword { variable: variable.to_owned() });
        };
        let trouble = |error| BadSettings::Read { path: path.to_owned(), error };
        let metadata = fs::metadata(path).map_err(trouble)?;
        if std::os::unix::fs::MetadataExt::mode(&metadata) & 0o007 != 0 {
            return Err(BadSettings::Readable(path.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(trouble)?;
        Ok(Self(text.lines().next().unwrap_or_default().to_owned()))
    }
}

impl Credential {
    pub(crate) fn into_inner(self) -> String {
        self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a password)")
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the password nor the URI, which has it.
        f.debug_struct("Settings")
            .field("address", &self.address())
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Settings for `amqp://USER@HOST:PORT/VHOST` or `amqps://…`.
    pub fn new(url: &str, credential: &Credential) -> Result<Self, BadSettings> {
        // The parser fills in a user and a password where there are none, so that is looked for by hand.
        let authority =
            url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(""));
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        match user {
            Some(user) if user.contains(':') => return Err(BadSettings::PasswordInUrl),
            Some(user) if !user.is_empty() => {}
            _ => {
                return Err(BadSettings::Url(
                    "it names no user; write amqps://USER@HOST:PORT/VHOST".to_owned(),
                ));
            }
        }
        let mut uri: AMQPUri = url.parse().map_err(BadSettings::Url)?;
        uri.authority.userinfo.password.clone_from(&credential.0);
        Ok(Self {
            uri,
            authorities: None,
            heartbeat: Duration::from_secs(10),
            connect_within: Duration::from_secs(10),
            answer_within: Duration::from_secs(15),
            consumer_timeout: Duration::from_secs(30 * 60),
        })
    }

    /// Checks the broker's certificate against these authorities (PEM), too. The system's are believed as well.
    pub fn with_ca_file(mut self, path: &Path) -> Result<Self, BadSettings> {
        let read = fs::read_to_string(path);
        self.authorities = Some(read.map_err(|error| BadSettings::Read { path: path.to_owned(), error })?);
        Ok(self)
    }

    /// The same broker for another user.
    #[must_use]
    pub fn as_user(mut self, user: &str, credential: &Credential) -> Self {
        user.clone_into(&mut self.uri.authority.userinfo.username);
        self.uri.authority.userinfo.password.clone_from(&credential.0);
        self
    }

    /// The virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// The broker's address, for people: without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        format!("{scheme}://{}:{}/{vhost}", authority.host, authority.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_neither_taken_from_the_url_nor_shown() {
        let secret = Credential::new("hush");
        assert!(matches!(Settings::new("amqp://me:hush@host/v", &secret), Err(BadSettings::PasswordInUrl)));
        let settings = Settings::new("amqps://me@host:5671/jobs", &secret).unwrap();
        assert_eq!(settings.address(), "amqps://host:5671/jobs");
        assert!(!format!("{settings:?} {secret:?}").contains("hush"));
        assert_eq!((settings.user(), settings.vhost()), ("me", "jobs"));
    }

    #[test]
    fn an_url_without_a_user_is_refused() {
        for url in ["amqp://host/v", "amqp://@host/v", "host", "http://me@host/"] {
            assert!(matches!(Settings::new(url, &Credential::new("x")), Err(BadSettings::Url(_))), "{url}");
        }
    }

    #[test]
    fn a_password_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "hush\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Credential::find(Some(&path), "X"), Err(BadSettings::Readable(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(Credential::find(Some(&path), "X").unwrap().0, "hush");
        assert!(matches!(Credential::find(None, "MAYFLY_NO_SUCH"), Err(BadSettings::NoPassword { .. })));
    }
}

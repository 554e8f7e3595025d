//! Which systemd-nspawn this host has.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use thiserror::Error;

/// Where distributions put it. `PATH` is the caller's, and this runs as root.
const PLACES: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// The first version that maps owners without changing them (`--private-users-ownership=map`).
const OLDEST: u32 = 249;

/// A systemd-nspawn that can make sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: u32,
}

/// There is none.
#[derive(Debug, Error)]
pub enum NotInstalled {
    /// No such program.
    #[error("systemd-nspawn is not installed: apt-get install systemd-container")]
    Missing,
    /// It cannot be asked.
    #[error("cannot ask {path} for its version")]
    Silent {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It does not say which version it is.
    #[error("{path} says \"{said}\" when asked for its version")]
    Odd {
        /// The program.
        path: PathBuf,
        /// Its answer.
        said: String,
    },
    /// It cannot map owners.
    #[error(
        "systemd-nspawn is version {found} and knows no --private-users-ownership=map: version {OLDEST} or later is needed"
    )]
    Old {
        /// Its version.
        found: u32,
    },
}

/// Looks for it and asks it.
pub(crate) fn find() -> Result<Installed, NotInstalled> {
    let places = PLACES.iter().map(|place| Path::new(place).join("systemd-nspawn"));
    let program = places.into_iter().find(|path| path.is_file()).ok_or(NotInstalled::Missing)?;
    let output = Command::new(&program).arg("--version").env_clear().output();
    let said = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => return Err(NotInstalled::Silent { path: program, error }),
    };
    let first = said.lines().next().unwrap_or_default();
    match version(first) {
        Some(found) if found < OLDEST => Err(NotInstalled::Old { found }),
        Some(version) => Ok(Installed { program, version }),
        None => Err(NotInstalled::Odd { path: program, said: first.to_owned() }),
    }
}

/// The number in `systemd 252 (252.39-1~deb12u2)`.
fn version(line: &str) -> Option<u32> {
    let word = line.strip_prefix("systemd ")?.split([' ', '~', '.', '-']).next()?;
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_number_behind_the_name() {
        assert_eq!(version("systemd 252 (252.39-1~deb12u2)"), Some(252));
        assert_eq!(version("systemd 257~rc1 (257~rc1-1)"), Some(257));
        assert_eq!(version("systemd 249.11 (x)"), Some(249));
        assert_eq!(version("busybox 1.35"), None);
    }

    #[test]
    fn an_old_one_is_told_what_it_lacks() {
        let message = NotInstalled::Old { found: 247 }.to_string();
        assert!(message.contains("247") && message.contains("249"), "{message}");
    }
}

//! Image definitions: what a person writes in TOML, checked before anything is built.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::At;
use crate::source::Source;
use crate::{ImageConfig, ImageName, IoError, RootMode};

/// The definitions that every mayfly knows, whatever its working directory.
const BUILT_IN: &[(&str, &str)] = &[
    ("base", include_str!("../base.toml")),
    ("base-writable", include_str!("../base-writable.toml")),
    ("minimal", include_str!("../minimal.toml")),
];

const DEFAULT_USER: u32 = 1000;
const DEFAULT_WORKDIR: &str = "/job";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Its name in the store.
    pub name: ImageName,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Where its files come from.
    pub source: Source,
    /// What jobs get that do not say otherwise.
    #[serde(default)]
    pub job: JobDefaults,
    /// Text files that are added, by absolute path. One that begins with `#!` can be executed.
    #[serde(default)]
    pub files: BTreeMap<ImagePath, String>,
    /// Relative paths of the source start here.
    #[serde(skip)]
    folder: PathBuf,
}

/// The `[job]` table. What is not given is chosen by [`Definition::config`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobDefaults {
    /// The job's user id: 1000, or 0 where the root is writable.
    pub user: Option<Id>,
    /// The job's group id: the same as its user id.
    pub group: Option<Id>,
    /// The job's working directory: `/job`.
    pub workdir: Option<ImagePath>,
    /// Environment variables, added to `PATH`, `HOME` and `LANG`.
    #[serde(default)]
    pub env: BTreeMap<EnvName, String>,
    /// Whether jobs may write to the root file system, into an overlay that is thrown away.
    #[serde(default)]
    pub root: RootMode,
}

/// A definition that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] IoError),
    /// It is no TOML, or says something that is no definition.
    #[error("{}, {message}", path.display())]
    Malformed {
        /// The definition's file.
        path: PathBuf,
        /// Where in it, and what is wrong there.
        message: String,
    },
    /// A name that is not built in.
    #[error("no built-in image definition is called `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

impl DefinitionError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => {
                let names = Definition::built_in_names().collect::<Vec<_>>().join(", ");
                Some(format!("built in are {names}; give your own as a path such as ./my-image.toml"))
            }
            Self::Read(_) | Self::Malformed { .. } => None,
        }
    }
}

impl Definition {
    /// A built-in definition by its name, or the file when the text is a path (has a `/` or ends in `.toml`).
    pub fn find(name_or_path: &str) -> Result<Self, DefinitionError> {
        if name_or_path.contains('/') || Path::new(name_or_path).extension().is_some_and(|e| e == "toml") {
            return Self::load(Path::new(name_or_path));
        }
        Self::built_in(name_or_path).ok_or_else(|| DefinitionError::Unknown { name: name_or_path.to_owned() })
    }

    /// Reads a definition's file.
    pub fn load(path: &Path) -> Result<Self, DefinitionError> {
        let text = fs::read_to_string(path).at("read the image definition", path)?;
        let mut definition = Self::parse(&text, path)?;
        path.parent().unwrap_or(Path::new("")).clone_into(&mut definition.folder);
        Ok(definition)
    }

    /// Parses a definition; `path` is where it came from, for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, DefinitionError> {
        let malformed = |message| DefinitionError::Malformed { path: path.to_owned(), message };
        let definition: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            malformed(place + error.message())
        })?;
        definition.config().check().map_err(malformed)?;
        Ok(definition)
    }

    /// The names of the built-in definitions.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    pub(crate) fn built_in(name: &str) -> Option<Self> {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(text, Path::new(name)).expect("a test parses every built-in definition"))
    }

    /// A path of the source, taken from the definition's own folder.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// What jobs get in this image.
    #[must_use]
    pub fn config(&self) -> ImageConfig {
        let job = &self.job;
        let default_user = if job.root == RootMode::Writable { 0 } else { DEFAULT_USER };
        let user = job.user.map_or(default_user, u32::from);
        let workdir = job.workdir.as_ref().map_or(DEFAULT_WORKDIR, ImagePath::as_str).to_owned();
        let defaults = [("PATH", DEFAULT_PATH), ("HOME", &workdir), ("LANG", "C.UTF-8")];
        let mut env: BTreeMap<_, _> =
            defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        env.extend(job.env.iter().map(|(name, value)| (name.0.clone(), value.clone())));
        ImageConfig { user, group: job.group.map_or(user, u32::from), workdir, env, root: job.root }
    }
}

/// An absolute path inside an image, without `.`, `..` or empty parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePath(String);

impl ImagePath {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Relative to the image's root.
    pub(crate) fn relative(&self) -> &str {
        &self.0[1..]
    }
}

impl TryFrom<String> for ImagePath {
    type Error = String;

    fn try_from(path: String) -> Result<Self, String> {
        let mut parts = path.split('/');
        let absolute = parts.next() == Some("");
        if absolute && parts.all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0')) {
            Ok(Self(path))
        } else {
            Err(format!("`{path}` is not an absolute path in the image without `.`, `..` or empty parts"))
        }
    }
}

impl From<ImagePath> for String {
    fn from(path: ImagePath) -> Self {
        path.0
    }
}

/// The name of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvName(String);

impl TryFrom<String> for EnvName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let letters = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if letters && name.bytes().next().is_some_and(|c| !c.is_ascii_digit()) {
            Ok(Self(name))
        } else {
            Err(format!("`{name}` is not the name of an environment variable"))
        }
    }
}

impl From<EnvName> for String {
    fn from(name: EnvName) -> Self {
        name.0
    }
}

/// A user or group id that every tier can map: 0 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "u32")]
pub struct Id(u16);

impl TryFrom<i64> for Id {
    type Error = String;

    fn try_from(id: i64) -> Result<Self, String> {
        u16::try_from(id).map(Self).map_err(|_| format!("{id} is not a user or group id from 0 to 65535"))
    }
}

impl From<Id> for u32 {
    fn from(id: Id) -> Self {
        Self::from(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Definition::parse(text, Path::new("my.toml")).unwrap_err().to_string()
    }

    #[test]
    fn every_built_in_definition_parses_and_is_called_what_its_file_is_called() {
        for name in Definition::built_in_names() {
            assert_eq!(Definition::find(name).unwrap().name.as_str(), name);
        }
    }

    #[test]
    fn a_job_is_user_1000_unless_the_root_is_writable() {
        let read_only = "name = 'a'\nsource = { kind = 'busybox' }";
        let writable = format!("{read_only}\njob = {{ root = 'writable' }}");
        let user = |text: &str| Definition::parse(text, Path::new("a")).unwrap().config().user;
        assert_eq!((user(read_only), user(&writable)), (1000, 0));
    }

    #[test]
    fn a_wrong_definition_is_refused_with_file_line_and_reason() {
        let head = "name = 'a'\nsource = { kind = 'busybox' }\n";
        for (text, line, reason) in [
            ("nam = 'a'".to_owned(), 1, "unknown field `nam`"),
            ("name = 'A B'".to_owned(), 1, "`A B` is not an image name"),
            ("name = 'a'\n[source]\nkind = 'magic'".to_owned(), 3, "unknown variant `magic`"),
            ("name = 'a'\n[source]\nkind = 'busybox'\nx = 1".to_owned(), 2, "unknown field `x`"),
            (
                "name = 'a'\n[source]\nkind = 'debian'\nsuite = '-x'\npackages = []".to_owned(),
                2,
                "`-x` is not a",
            ),
            (format!("{head}[job]\nuser = 70000"), 4, "70000 is not a user or group id"),
            (format!("{head}[job]\nroot = 'rw'"), 4, "unknown variant `rw`"),
            (format!("{head}[job]\nworkdir = 'job'"), 4, "`job` is not an absolute path"),
            (format!("{head}[job.env]\n'A=B' = ''"), 4, "`A=B` is not the name of an environment variable"),
            (format!("{head}[files]\n'/a/../b' = ''"), 4, "`/a/../b` is not an absolute path"),
            ("name = \n".to_owned(), 1, ""),
        ] {
            let error = error(&text);
            assert!(error.starts_with(&format!("my.toml, line {line}: ")), "{error:?} for {text:?}");
            assert!(error.contains(reason), "{error:?} for {text:?}");
        }
    }
}

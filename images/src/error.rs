//! How this crate says what went wrong: an error enum per part, and one over them for whoever uses several.

use std::io;
use std::path::{Path, PathBuf};

use crate::{ArchiveError, BuildError, DefinitionError, MachineError, StoreError};

/// A file operation that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {cause}", path.display())]
pub struct IoError {
    doing: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl IoError {
    pub(crate) fn new(doing: &'static str, path: &Path, cause: io::Error) -> Self {
        Self { doing, path: path.to_owned(), cause }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }
}

/// Says what was being done, on which path, when an operation failed.
pub(crate) trait At<T> {
    fn at(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, IoError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, IoError> {
        self.map_err(|cause| IoError::new(doing, path.as_ref(), cause.into()))
    }
}

/// Anything that this crate can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A definition.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// A build.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A machine's form.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// An export or import.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A plain file operation, such as writing the answer.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Definition(error) => error.hint(),
            Self::Build(error) => error.hint(),
            Self::Machine(error) => error.hint(),
            Self::Archive(error) => error.hint(),
            Self::Io(_) => None,
        }
    }

    /// The answer could not be written to standard output.
    #[must_use]
    pub fn output(cause: io::Error) -> Self {
        Self::Io(IoError::new("write to", Path::new("standard output"), cause))
    }
}

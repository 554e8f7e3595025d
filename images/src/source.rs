//! Where an image's files come from. Each kind fills an empty root; what all images need is added afterwards.

mod busybox;
mod debian;
mod directory;
mod docker;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::At;
use crate::lint::Finding;
use crate::rootfs::{Links, Rootfs};
use crate::tree::TreeError;
use crate::unpack::{self, UnpackError};
use crate::{Definition, Digest, Image, ImageName, IoError, Progress};

use debian::{DebianSuite, PackageName, Variant};
use docker::DockerImage;

/// The `[source]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// The host's static busybox with a link for each of its commands.
    Busybox {},
    /// Debian packages, by mmdebstrap and the host's apt configuration.
    Debian {
        /// The release, such as `bookworm`.
        suite: DebianSuite,
        /// What is there besides the packages: `apt` (essential packages and apt) or `minbase`.
        #[serde(default)]
        variant: Variant,
        /// Packages to install.
        packages: Vec<PackageName>,
    },
    /// A root file system in a directory.
    Directory {
        /// The directory, from the definition's own folder.
        path: PathBuf,
    },
    /// A root file system as a tar archive, plain or compressed by zstd.
    Tar {
        /// The archive, from the definition's own folder.
        path: PathBuf,
    },
    /// An image of a docker daemon on this host, without its configuration and volumes.
    Docker {
        /// Its name there, such as `debian:12`.
        image: DockerImage,
    },
    /// Another image, with which this one shares its bytes on the disk.
    Image {
        /// Its name.
        name: ImageName,
    },
}

/// A source that does not give its files.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A program that this source needs is not on the host.
    #[error("`{tool}` is needed to build this image and is not on this host")]
    MissingTool {
        /// The program or file.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The host's busybox needs libraries that the image will not have.
    #[error("{} is linked dynamically and would not start in an image", path.display())]
    DynamicBusybox {
        /// The program.
        path: PathBuf,
    },
    /// A program of the host failed.
    #[error("`{tool}` failed ({status}); its last words:\n{tail}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// The last lines of its output.
        tail: String,
    },
    /// The docker daemon does not give the image.
    #[error("the docker daemon at {} {problem}", socket.display())]
    Docker {
        /// Its socket.
        socket: PathBuf,
        /// What it says, or does not.
        problem: String,
    },
    /// The directory has something in it that no image may have.
    #[error("the directory cannot be an image: {}", list(.0))]
    Unfit(Vec<Finding>),
    /// The archive is compressed in a way that is not read.
    #[error("{} is compressed by {by}", path.display())]
    Compressed {
        /// The archive.
        path: PathBuf,
        /// The compressor.
        by: &'static str,
    },
    /// The archive is refused.
    #[error("{}: {cause}", path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// Why.
        cause: UnpackError,
    },
    /// A tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl SourceError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::MissingTool { package, .. } => Some(format!("apt-get install {package}")),
            Self::DynamicBusybox { .. } => Some("apt-get install busybox-static".to_owned()),
            Self::Compressed { .. } => Some("decompress it first; plain tar and zstd are read".to_owned()),
            Self::Docker { .. } => Some("the daemon must run here and have the image: docker pull NAME; DOCKER_HOST names another socket".to_owned()),
            Self::Unfit(_) => Some("remove these entries from the directory".to_owned()),
            Self::Tool { .. } | Self::Unpack { .. } | Self::Tree(_) | Self::Io(_) => None,
        }
    }
}

/// The first findings of many, for a message.
pub(crate) fn list(findings: &[Finding]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<_> = findings.iter().take(SHOWN).map(ToString::to_string).collect();
    if findings.len() > SHOWN {
        text.push(format!("and {} more", findings.len() - SHOWN));
    }
    text.join("; ")
}

/// A digest of what the definition's text does not say: an equal definition and fingerprint give an equal image.
/// What Debian's archive holds today is not in it: an image is built anew for that when asked to, never by itself.
pub(crate) fn fingerprint(
    definition: &Definition,
    base: Option<&Image>,
) -> Result<Option<Digest>, SourceError> {
    Ok(match &definition.source {
        Source::Busybox {} => Some(file(&busybox::find()?)?),
        Source::Debian { .. } => None,
        Source::Directory { path } => Some(directory::fingerprint(&definition.path(path))?),
        Source::Tar { path } => Some(file(&definition.path(path))?),
        Source::Docker { image } => Some(docker::fingerprint(image)?),
        Source::Image { .. } => base.map(|base| base.digest),
    })
}

fn file(path: &Path) -> Result<Digest, IoError> {
    File::open(path).and_then(Digest::of_reader).at("read", path)
}

/// Fills an empty root. `lock` is held by every process that writes to it, also when this one is killed.
pub(crate) fn fill(
    root: &Path,
    lock: &File,
    definition: &Definition,
    base: Option<&Image>,
    progress: &mut dyn Progress,
) -> Result<(), SourceError> {
    match &definition.source {
        Source::Busybox {} => busybox::fill(root),
        Source::Debian { suite, variant, packages } => {
            debian::fill(root, lock, &debian::Wanted { suite, variant: *variant, packages }, progress)
        }
        Source::Directory { path } => directory::copy(&definition.path(path), root),
        Source::Tar { path } => tar(&definition.path(path), root),
        Source::Docker { image } => docker::fill(root, image),
        Source::Image { .. } => base.map_or(Ok(()), |base| directory::share(&base.rootfs, root)),
    }
}

fn tar(path: &Path, root: &Path) -> Result<(), SourceError> {
    let mut file = File::open(path).at("open", path)?;
    let mut magic = Vec::new();
    file.by_ref().take(6).read_to_end(&mut magic).at("read", path)?;
    file.rewind().at("read", path)?;
    let rootfs = Rootfs::open(root, Links::Refuse).at("open", root)?;
    let unpacked = match magic[..] {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            unpack::root_tree(zstd::Decoder::new(file).at("decompress", path)?, &rootfs)
        }
        [0x1f, 0x8b, ..] => return Err(SourceError::Compressed { path: path.to_owned(), by: "gzip" }),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            return Err(SourceError::Compressed { path: path.to_owned(), by: "xz" });
        }
        _ => unpack::root_tree(file, &rootfs),
    };
    unpacked.map_err(|cause| SourceError::Unpack { path: path.to_owned(), cause })
}

/// A program on the host's `PATH`.
pub(crate) fn program(tool: &str, package: &'static str) -> Result<PathBuf, SourceError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let found = std::env::split_paths(&path).map(|folder| folder.join(tool)).find(runs);
    found.ok_or_else(|| SourceError::MissingTool { tool: tool.to_owned(), package })
}

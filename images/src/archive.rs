//! One image as one file, to carry to another host: a tar archive under zstd, the manifest first. The same image
//! always gives the same file, and what is imported has the very same digest or is not kept.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use agent::message::AGENT_PATH;
use tar::{EntryType, Header};

use crate::error::At;
use crate::lint::{self, Finding};
use crate::normalise::{MTIME, same_times};
use crate::rootfs::{Links, Rootfs};
use crate::source;
use crate::store::NewImage;
use crate::tree::{self, Entry, Kind, TreeError};
use crate::unpack::{self, Headers, LIMITS, Limits, UnpackError, Unpacker};
use crate::{Digest, Image, IoError, Manifest, Progress, Store, StoreError, manifest};

const MANIFEST: &str = "manifest.json";
const ROOTFS: &str = "rootfs";
/// A manifest has a few hundred bytes.
const LONGEST_MANIFEST: u64 = 1 << 20;
const COMPRESSION: i32 = 6;

/// An image that could not be exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The archive is refused.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// It does not begin with a manifest that can be understood.
    #[error("the archive's manifest cannot be used: {0}")]
    Manifest(String),
    /// It has something in it that no image may have.
    #[error("the archive is no image: {}", source::list(.0))]
    Lint(Vec<Finding>),
    /// Its content is not what its manifest says.
    #[error("the archive's content is {found}, but its manifest says {expected}")]
    Digest {
        /// What the manifest says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
}

impl ArchiveError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Unpack(_) | Self::Manifest(_) | Self::Lint(_) | Self::Digest { .. } => {
                Some("nothing of it was kept; export the image anew with: mayfly image export".to_owned())
            }
            Self::Tree(_) | Self::Io(_) => None,
        }
    }
}

impl Store {
    /// Writes an image to a file, which is there whole or not at all.
    pub fn export(
        &self,
        image: &Image,
        file: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), ArchiveError> {
        progress.step(&format!("exporting {} {}", image.name, image.digest));
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut partial = tempfile::NamedTempFile::new_in(folder).at("make a file in", folder)?;
        let encoder = zstd::Encoder::new(partial.as_file_mut(), COMPRESSION).at("compress", file)?;
        let mut tar = tar::Builder::new(encoder);

        let text = image.manifest.to_json();
        let mut header = header(EntryType::Regular, 0o644, 0, 0, text.len() as u64);
        tar.append_data(&mut header, MANIFEST, &text[..]).at("write", file)?;
        for entry in tree::read(&image.rootfs, &[])? {
            append(&mut tar, &image.rootfs, Path::new(ROOTFS), &entry)?;
        }
        let encoder = tar.into_inner().at("write", file)?;
        encoder.finish().at("write", file)?;
        partial.as_file().sync_all().at("write", file)?;
        partial.persist(file).map_err(|error| error.error).at("write", file)?;
        Ok(())
    }

    /// Reads an image from a file that anybody may have written.
    pub fn import(&self, file: &Path, progress: &mut dyn Progress) -> Result<Image, ArchiveError> {
        progress.step(&format!("importing {}", file.display()));
        let decoder = File::open(file).and_then(zstd::Decoder::new).at("open", file)?;
        let mut archive = tar::Archive::new(decoder);
        let staging = self.stage()?;
        let root = staging.rootfs();
        let rootfs = Rootfs::open(&root, Links::Refuse).at("open", &root)?;
        let manifest = unpack_image(&mut archive, &rootfs)?;
        unpack::only_zeros(archive.into_inner())?;

        progress.step("checking and hashing");
        let entries = tree::read(&root, &[])?;
        same_times(&rootfs, &entries)?;
        let listing = check(&root, &entries, &manifest)?;
        let new = NewImage {
            name: &manifest.name,
            description: &manifest.description,
            definition: manifest.definition,
            agent: manifest.agent,
            config: &manifest.config,
            entries: &entries,
            listing: &listing,
        };
        Ok(self.publish(&staging, &new)?)
    }
}

impl Image {
    /// Writes an image's files as a plain tar archive, such as a container engine takes in. The same image always gives
    /// the same bytes.
    pub fn write_rootfs(&self, out: impl Write) -> Result<(), ArchiveError> {
        let mut tar = tar::Builder::new(out);
        for entry in tree::read(&self.rootfs, &[])? {
            append(&mut tar, &self.rootfs, Path::new("."), &entry)?;
        }
        let mut out = tar.into_inner().at("write", &self.rootfs)?;
        Ok(out.flush().at("write", &self.rootfs)?)
    }
}

/// Gives the manifest, and the tree its entries: no more of them than the manifest says.
fn unpack_image<R: Read>(archive: &mut tar::Archive<R>, rootfs: &Rootfs) -> Result<Manifest, ArchiveError> {
    let mut headers = Headers::of(archive)?;
    let manifest = read_manifest(&mut headers)?;
    let limits =
        Limits { entries: manifest.entries.min(LIMITS.entries), bytes: manifest.size.min(LIMITS.bytes) };
    let mut unpacker = Unpacker::new(rootfs, limits);
    while let Some((header, mut content)) = headers.next()? {
        let path = unpack::inside(&header.path)?;
        let below = path.strip_prefix(ROOTFS);
        let below = below.map_err(|_| UnpackError::Outside(tree::escaped(path.as_os_str())))?;
        unpacker.add(below, &prefix_cut(header)?, &mut content)?;
    }
    Ok(manifest)
}

/// A hard link names its first file as the archive does.
fn prefix_cut(mut header: unpack::Header) -> Result<unpack::Header, UnpackError> {
    if header.kind == EntryType::Link {
        let rest = header.link.strip_prefix(b"rootfs/");
        header.link =
            rest.ok_or_else(|| UnpackError::Outside(header.link.escape_ascii().to_string()))?.to_vec();
    }
    Ok(header)
}

fn read_manifest(headers: &mut Headers<'_, impl Read>) -> Result<Manifest, ArchiveError> {
    let wrong = ArchiveError::Manifest;
    let first = headers.next()?.ok_or_else(|| wrong("the archive is empty".to_owned()))?;
    let (header, content) = first;
    if header.path != MANIFEST.as_bytes()
        || header.kind != EntryType::Regular
        || header.size > LONGEST_MANIFEST
    {
        return Err(wrong(format!("its first entry is not {MANIFEST}")));
    }
    let mut text = Vec::new();
    content.take(LONGEST_MANIFEST).read_to_end(&mut text).map_err(UnpackError::Read)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if manifest.version != manifest::VERSION {
        return Err(wrong(format!("version {} is not {}", manifest.version, manifest::VERSION)));
    }
    manifest.config.check().map_err(wrong)?;
    Ok(manifest)
}

fn check(root: &Path, entries: &[Entry], manifest: &Manifest) -> Result<String, ArchiveError> {
    let findings = lint::image(entries, &manifest.config);
    if !findings.is_empty() {
        return Err(ArchiveError::Lint(findings));
    }
    let agent = root.join(&AGENT_PATH[1..]);
    let found = Digest::of(&fs::read(&agent).at("read", &agent)?);
    if found != manifest.agent {
        return Err(ArchiveError::Digest { expected: manifest.agent, found });
    }
    let listing = tree::listing(root, entries)?;
    let found = Manifest::digest_of(&manifest.config, manifest.agent, &listing);
    if found != manifest.digest {
        return Err(ArchiveError::Digest { expected: manifest.digest, found });
    }
    Ok(listing)
}

fn header(kind: EntryType, mode: u32, uid: u32, gid: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(u64::from(uid));
    header.set_gid(u64::from(gid));
    header.set_size(size);
    header.set_mtime(MTIME.unsigned_abs());
    header
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    root: &Path,
    prefix: &Path,
    entry: &Entry,
) -> Result<(), IoError> {
    let (path, full) = (prefix.join(&entry.path), root.join(&entry.path));
    let plain = |kind, size| header(kind, entry.mode, entry.uid, entry.gid, size);
    let xattrs = entry.xattrs.iter().filter_map(|(name, value)| Some((name.to_str()?, value.as_slice())));
    let names: Vec<_> = xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value)).collect();
    if !names.is_empty() && !matches!(entry.kind, Kind::HardLink { .. }) {
        let pairs = names.iter().map(|(name, value)| (name.as_str(), *value));
        tar.append_pax_extensions(pairs).at("export", &full)?;
    }
    match &entry.kind {
        Kind::Directory => tar.append_data(&mut plain(EntryType::Directory, 0), path, io::empty()),
        Kind::File { size } => {
            let file = File::open(&full).at("open", &full)?;
            tar.append_data(&mut plain(EntryType::Regular, *size), path, file.take(*size))
        }
        Kind::Symlink { target } => tar.append_link(&mut plain(EntryType::Symlink, 0), path, target),
        Kind::HardLink { first } => tar.append_link(&mut plain(EntryType::Link, 0), path, prefix.join(first)),
        Kind::Special(_) => Ok(()),
    }
    .at("export", &full)
}

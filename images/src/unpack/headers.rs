//! Headers of a tar archive with their extensions. The `tar` crate would read an extension of any length into
//! memory, so they are taken raw and each is capped.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use tar::{Archive, Entries, Entry, EntryType, PaxExtensions};

use super::UnpackError;

/// A path has at most 4 KiB, an entry's attributes at most 64 KiB each: this is plenty for both.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// What an archive says of one entry. Nothing of it is checked.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
}

/// The entries of an archive, one after the other.
pub(crate) struct Headers<'a, R: Read> {
    entries: Entries<'a, R>,
}

/// What came before an entry and belongs to it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl<'a, R: Read> Headers<'a, R> {
    pub(crate) fn of(archive: &'a mut Archive<R>) -> Result<Self, UnpackError> {
        Ok(Self { entries: archive.entries().map_err(UnpackError::Read)?.raw(true) })
    }

    pub(crate) fn next(&mut self) -> Result<Option<(Header, Entry<'a, R>)>, UnpackError> {
        let mut extensions = Extensions::default();
        for entry in self.entries.by_ref() {
            let mut entry = entry.map_err(UnpackError::Read)?;
            match entry.header().entry_type() {
                EntryType::GNULongName => extensions.path = Some(name(&mut entry)?),
                EntryType::GNULongLink => extensions.link = Some(name(&mut entry)?),
                EntryType::XHeader => extensions.pax = Some(capped(&mut entry)?),
                EntryType::XGlobalHeader => {}
                _ => return Ok(Some((header(&entry, extensions)?, entry))),
            }
        }
        Ok(None)
    }
}

fn capped(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    entry.take(LONGEST_EXTENSION + 1).read_to_end(&mut bytes).map_err(UnpackError::Read)?;
    if bytes.len() as u64 > LONGEST_EXTENSION {
        return Err(UnpackError::Kind {
            path: "././@LongLink".to_owned(),
            what: "longer than any path".to_owned(),
        });
    }
    Ok(bytes)
}

fn name(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut name = capped(entry)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn header<R: Read>(entry: &Entry<'_, R>, extensions: Extensions) -> Result<Header, UnpackError> {
    let raw = entry.header();
    let mut header = Header {
        path: extensions.path.unwrap_or_else(|| raw.path_bytes().into_owned()),
        link: extensions.link.unwrap_or_else(|| raw.link_name_bytes().unwrap_or_default().into_owned()),
        kind: raw.entry_type(),
        size: raw.entry_size().map_err(UnpackError::Read)?,
        mode: raw.mode().map_err(UnpackError::Read)?,
        uid: raw.uid().map_err(UnpackError::Read)?,
        gid: raw.gid().map_err(UnpackError::Read)?,
        mtime: i64::try_from(raw.mtime().map_err(UnpackError::Read)?).unwrap_or_default(),
        xattrs: Vec::new(),
    };
    for extension in PaxExtensions::new(&extensions.pax.unwrap_or_default()) {
        let extension = extension.map_err(UnpackError::Read)?;
        let value = extension.value_bytes();
        let refused = || UnpackError::Kind {
            path: header.path.escape_ascii().to_string(),
            what: format!("described by `{}`, which is not understood", extension.key_bytes().escape_ascii()),
        };
        let number = || str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        match extension.key_bytes() {
            b"path" => value.clone_into(&mut header.path),
            b"linkpath" => value.clone_into(&mut header.link),
            b"uid" => header.uid = number().ok_or_else(refused)?,
            b"gid" => header.gid = number().ok_or_else(refused)?,
            // The bytes that follow are counted by the plain header: another size would shift all that comes after.
            b"size" if number() == Some(header.size) => {}
            b"size" => return Err(refused()),
            key => {
                // GNU's sparse formats 0.x and 1.0 hide the true name and size in here.
                if key.starts_with(b"GNU.sparse") {
                    return Err(refused());
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    header.xattrs.push((OsStr::from_bytes(name).to_owned(), value.to_owned()));
                }
            }
        }
    }
    Ok(header)
}

//! Export and import: the very same image elsewhere, or nothing.

use std::fs;
use std::path::{Path, PathBuf};

use images::{ArchiveError, ImageRef};

use crate::Scratch;

fn export(scratch: &Scratch) -> (images::Image, PathBuf) {
    let image = scratch.build();
    let file = scratch.path().join("own.tar.zst");
    scratch.store().export(&image, &file, &mut images::Silent).unwrap();
    (image, file)
}

#[test]
fn an_imported_image_has_the_very_same_digest_and_config() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let long = here.source().join("usr/lib").join("x".repeat(120)).join("y".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("a file with spaces\nand a newline"), "x").unwrap();
    std::os::unix::fs::symlink("z".repeat(300), here.source().join("etc/long")).unwrap();
    let (image, file) = export(&here);
    let imported = there.store().import(&file, &mut images::Silent).unwrap();
    assert_eq!((imported.digest, &imported.config), (image.digest, &image.config));
    assert_eq!(imported.verify().unwrap(), None);
    let name: ImageRef = "own".parse().unwrap();
    assert_eq!(there.store().resolve(&name).unwrap().digest, image.digest);

    let again = there.path().join("again.tar.zst");
    here.store().export(&image, &again, &mut images::Silent).unwrap();
    assert_eq!(fs::read(&file).unwrap(), fs::read(&again).unwrap(), "the same image gives the same file");
}

#[test]
fn an_archive_with_a_byte_changed_is_refused_and_nothing_is_kept() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let (_, file) = export(&here);
    let mut plain = zstd::decode_all(fs::File::open(&file).unwrap()).unwrap();
    let at = plain.windows(8).position(|bytes| bytes == b"good day").unwrap();
    plain[at] = b'G';
    refused(&there, &plain, "but its manifest says");
}

#[test]
fn an_archive_that_is_cut_short_or_has_more_behind_its_end_is_refused() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let (_, file) = export(&here);
    let plain = zstd::decode_all(fs::File::open(&file).unwrap()).unwrap();
    refused(&there, &[&plain[..], b"more"].concat(), "bytes behind its end");
    refused(&there, &plain[..plain.len() / 2 - 100], "");
    refused(&there, b"", "the archive is empty");
    let cut = there.path().join("cut.tar.zst");
    let whole = fs::read(&file).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert!(there.store().import(&cut, &mut images::Silent).is_err());
    fs::write(&cut, "no archive at all").unwrap();
    assert!(there.store().import(&cut, &mut images::Silent).is_err());
    empty(&there);
}

#[test]
fn a_manifest_that_says_anything_else_is_refused() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let (_, file) = export(&here);
    let plain = zstd::decode_all(fs::File::open(&file).unwrap()).unwrap();
    for (from, to, message) in [
        ("\"version\": 1", "\"version\": 2", "version 2 is not 1"),
        ("\"user\": 1000", "\"user\": 1001", "but its manifest says"),
        ("\"workdir\": \"/job\"", "\"workdir\": \"/../\"", "is not an absolute path"),
        ("\"root\": \"read-only\"", "\"root\": \"writable\" ", "but its manifest says"),
        ("\"LANG\": \"C.UTF-8\"", "\"L=NG\": \"C.UTF-8\"", "is not the name of an environment variable"),
    ] {
        let at = plain.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        assert_eq!(from.len(), to.len(), "the archive keeps its form");
        let changed = [&plain[..at], to.as_bytes(), &plain[at + to.len()..]].concat();
        refused(&there, &changed, message);
    }
}

/// Compresses and imports an archive that must be refused.
pub(crate) fn refused(there: &Scratch, plain: &[u8], message: &str) {
    let file = there.path().join("bad.tar.zst");
    fs::write(&file, zstd::encode_all(plain, 1).unwrap()).unwrap();
    let error: ArchiveError = there.store().import(&file, &mut images::Silent).unwrap_err();
    assert!(error.to_string().contains(message), "{error}, not {message}");
    empty(there);
}

fn empty(there: &Scratch) {
    let images = there.path().join("images");
    let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
    let kept = ["names", "sha256", "staging"].map(|folder| count(&images.join(folder)));
    assert_eq!(kept, [0, 0, 0]);
}

//! Archives that want more than to be unpacked, as a source and as an import.

use std::fs;

use tar::{Builder, EntryType, Header};

use crate::{Scratch, exchange};

/// Writes an entry as it is told, which the `tar` crate's own functions would refuse.
fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

type Fill = fn(&mut Builder<Vec<u8>>, &str);

const DIRECTORY: EntryType = EntryType::Directory;
const FILE: EntryType = EntryType::Regular;

/// What is wrong with each, and how the refusal names it. The prefix is `rootfs/` in an import, nothing in a source.
const CASES: &[(Fill, &str)] = &[
    (|tar, _| add(tar, FILE, "/etc/evil", "", b"x"), "outside of the image: `/etc/evil`"),
    (|tar, p| add(tar, FILE, &format!("{p}../../evil"), "", b"x"), "outside of the image: `"),
    (|tar, p| add(tar, FILE, &format!("{p}etc/../../evil"), "", b"x"), "outside of the image: `"),
    (
        |tar, p| add(tar, EntryType::Char, &format!("{p}etc/null"), "", b""),
        "`etc/null`, which is a character device",
    ),
    (
        |tar, p| add(tar, EntryType::Block, &format!("{p}etc/disk"), "", b""),
        "`etc/disk`, which is a block device",
    ),
    (|tar, p| add(tar, EntryType::Fifo, &format!("{p}etc/pipe"), "", b""), "`etc/pipe`, which is a fifo"),
    (|tar, p| add(tar, EntryType::GNUSparse, &format!("{p}etc/holes"), "", b""), "which is a sparse file"),
    (|tar, p| twice(tar, p, FILE), "`etc/x` twice"),
    (|tar, p| twice(tar, p, DIRECTORY), "`etc/x` twice"),
    (|tar, p| add(tar, EntryType::Link, &format!("{p}etc/shadow"), "/etc/shadow", b""), "/etc/shadow"),
    (
        |tar, p| {
            add(tar, EntryType::Link, &format!("{p}etc/shadow"), &format!("{p}../../../etc/shadow"), b"");
        },
        "outside of the image",
    ),
    (|tar, p| add(tar, EntryType::Link, &format!("{p}a"), &format!("{p}later"), b""), "`a` to `later`"),
    (through_a_link, "cannot"),
    (link_through_a_link, "no earlier file"),
    (long_name, "longer than any path"),
];

fn twice(tar: &mut Builder<Vec<u8>>, prefix: &str, kind: EntryType) {
    add(tar, kind, &format!("{prefix}etc/x"), "", b"");
    add(tar, kind, &format!("{prefix}etc/x"), "", b"");
}

/// The classic: a symlink out, then a file through it.
fn through_a_link(tar: &mut Builder<Vec<u8>>, prefix: &str) {
    add(tar, EntryType::Symlink, &format!("{prefix}out"), "/tmp", b"");
    add(tar, FILE, &format!("{prefix}out/mayfly-test-evil"), "", b"x");
}

fn link_through_a_link(tar: &mut Builder<Vec<u8>>, prefix: &str) {
    add(tar, EntryType::Symlink, &format!("{prefix}out"), "/etc", b"");
    add(tar, EntryType::Link, &format!("{prefix}stolen"), &format!("{prefix}out/passwd"), b"");
}

fn long_name(tar: &mut Builder<Vec<u8>>, _: &str) {
    add(tar, EntryType::GNULongName, "././@LongLink", "", &vec![b'a'; 2 << 20]);
}

#[test]
fn a_hostile_archive_as_a_source_is_refused_and_touches_nothing_outside() {
    for (fill, message) in CASES {
        let scratch = Scratch::new();
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, DIRECTORY, "etc/", "", b"");
        fill(&mut tar, "");
        fs::write(scratch.path().join("root.tar"), tar.into_inner().unwrap()).unwrap();
        let definition = scratch.definition_of("kind = 'tar'\npath = 'root.tar'", "");
        let error =
            images::build(&scratch.store(), &definition, &mut images::Silent).unwrap_err().to_string();
        assert!(error.contains(message), "{error}, not {message}");
        assert!(!fs::exists("/tmp/mayfly-test-evil").unwrap());
        assert_eq!((scratch.store().list().unwrap().len(), scratch.unfinished()), (0, 0));
    }
}

#[test]
fn a_hostile_archive_as_an_import_is_refused_and_nothing_is_kept() {
    let manifest = manifest(1000, 1000);
    for (fill, message) in CASES {
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, FILE, "manifest.json", "", manifest.as_bytes());
        add(&mut tar, DIRECTORY, "rootfs/", "", b"");
        add(&mut tar, DIRECTORY, "rootfs/etc/", "", b"");
        fill(&mut tar, "rootfs/");
        exchange::refused(&Scratch::new(), &tar.into_inner().unwrap(), message);
        assert!(!fs::exists("/tmp/mayfly-test-evil").unwrap());
    }
}

#[test]
fn an_import_brings_no_more_than_its_manifest_says() {
    let archive = |manifest: &str| {
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, FILE, "manifest.json", "", manifest.as_bytes());
        add(&mut tar, DIRECTORY, "rootfs/", "", b"");
        add(&mut tar, FILE, "rootfs/a", "", &[0; 100]);
        add(&mut tar, FILE, "rootfs/b", "", &[0; 100]);
        tar.into_inner().unwrap()
    };
    exchange::refused(&Scratch::new(), &archive(&manifest(2, 1000)), "more than 2 entries");
    exchange::refused(&Scratch::new(), &archive(&manifest(10, 150)), "more than 150 bytes");
    exchange::refused(&Scratch::new(), &archive(&manifest(10, 1000)), "/dev is not a directory");
}

#[test]
fn an_import_that_does_not_begin_with_its_manifest_is_refused() {
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, DIRECTORY, "rootfs/", "", b"");
    exchange::refused(&Scratch::new(), &tar.into_inner().unwrap(), "its first entry is not manifest.json");
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, FILE, "manifest.json", "", manifest(9, 9).as_bytes());
    add(&mut tar, FILE, "elsewhere", "", b"");
    exchange::refused(&Scratch::new(), &tar.into_inner().unwrap(), "outside of the image: `elsewhere`");
}

#[test]
fn an_ordinary_archive_is_a_source_plain_or_under_zstd() {
    let mut digests = Vec::new();
    for compressed in [false, true] {
        let scratch = Scratch::new();
        let mut tar = Builder::new(Vec::new());
        tar.follow_symlinks(false);
        tar.append_dir_all(".", scratch.source()).unwrap();
        add(&mut tar, EntryType::Char, "./dev/null", "", b"");
        let plain = tar.into_inner().unwrap();
        let bytes = if compressed { zstd::encode_all(&plain[..], 1).unwrap() } else { plain };
        fs::write(scratch.path().join("root.tar"), bytes).unwrap();
        let definition = scratch.definition_of("kind = 'tar'\npath = 'root.tar'", "");
        let image = images::build(&scratch.store(), &definition, &mut images::Silent).unwrap();
        assert_eq!(fs::read_to_string(image.rootfs.join("etc/motd")).unwrap(), "good day\n");
        digests.push(image.digest);
    }
    assert_eq!(digests[0], digests[1]);
}

fn manifest(entries: u64, size: u64) -> String {
    let digest = format!("sha256:{}", "0".repeat(64));
    format!(
        r#"{{"version": 1, "digest": "{digest}", "name": "evil", "description": "", "definition": "{digest}", "created": 0,
        "agent": "{digest}", "config": {{"user": 1000, "group": 1000, "workdir": "/job", "env": {{}}, "root": "read-only"}},
        "size": {size}, "entries": {entries}}}"#
    )
}

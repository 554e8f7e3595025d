//! Bytes that nobody well-meaning sends: frames to the host's side of the agent's channel, archives to the reader of images, and
//! devices that are none in an image. The controls read the same without suspicion.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use agent::{
    codec::{Decoder, MAX_PAYLOAD},
    message::ToHost,
};
use images::{Definition, Store, build};
use tar::{Archive, EntryType, Header};

use crate::looks::Look;

/// C01: what is no frame ends the conversation at once, and what never becomes whole is never waited for by memory.
pub(super) fn frames() -> (Look, Look) {
    let oversize = [&u32::MAX.to_le_bytes()[..], &[1, 0, 0, 0]].concat();
    let broken: [(&str, Vec<u8>); 4] = [
        ("a frame of 4 GiB", oversize.clone()),
        ("a kind that there is not", vec![0, 0, 0, 0, 0xff, 0, 0, 0]),
        ("a reserved byte", vec![0, 0, 0, 0, 1, 0xff, 0, 0]),
        ("garbage in a frame", [&16_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 16]].concat()),
    ];
    let taken = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.feed(bytes);
        decoder.next_frame::<ToHost>().is_ok()
    };
    let open: Vec<_> = broken.iter().filter(|(_, bytes)| taken(bytes)).map(|(what, _)| *what).collect();
    let held = format!(
        "{} kinds of broken frames end the conversation, none above {MAX_PAYLOAD} bytes",
        broken.len()
    );
    // Whoever believes the header makes room for what it says.
    let believed = oversize.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    (
        if open.is_empty() { Look::held(held) } else { Look::open(format!("taken: {}", open.join(", "))) },
        Look::told(
            believed <= MAX_PAYLOAD,
            format!("a reader that believes the header makes room for {believed} bytes"),
        ),
    )
}

/// F13: no device of an image is a link to something else.
pub(super) fn devices(rootfs: &Path, scratch: &Path) -> (Look, Look) {
    let broken = scratch.join("image/dev");
    let made = fs::create_dir_all(&broken)
        .and_then(|()| symlink("/proc/sys/kernel/core_pattern", broken.join("null")));
    let control = match made {
        Ok(()) => links(&scratch.join("image")),
        Err(error) => Look::unknown(error.to_string()),
    };
    let _ = fs::remove_dir_all(scratch.join("image"));
    (links(rootfs), control)
}

fn links(rootfs: &Path) -> Look {
    let dev = rootfs.join("dev");
    if dev.is_symlink() {
        return Look::open("/dev of the image is a link");
    }
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let links: Vec<_> = entries.filter(|entry| entry.path().is_symlink()).map(|entry| entry.path()).collect();
    match links.first() {
        Some(link) => Look::open(format!("{} is a link", link.display())),
        None => Look::held("no link in /dev of the image"),
    }
}

/// A03 and A04: an archive with such an entry becomes no image.
pub(super) fn archives(scratch: &Path) -> [(Look, Look); 2] {
    let file = |path: &str| entry(path, EntryType::Regular, 0, "", &[]);
    let strange: Vec<(&str, Vec<u8>)> = vec![
        ("an absolute path", file("/etc/passwd")),
        ("a way up", file("a/../../etc/passwd")),
        ("a hard link out", entry("link", EntryType::Link, 0, "/etc/passwd", &[])),
        ("a device", entry("node", EntryType::Char, 0, "", &[])),
        ("a fifo", entry("fifo", EntryType::Fifo, 0, "", &[])),
        ("the same twice", [file("twice"), file("twice")].concat()),
    ];
    // The size in front says more than the header behind it, so that two readers go on at different places.
    let pax = b"13 size=1536\n";
    let hidden = file("hidden");
    let mismatch = vec![(
        "two sizes",
        [
            entry("pax", EntryType::XHeader, pax.len() as u64, "", pax),
            entry("two", EntryType::Regular, 512, "", &hidden),
        ]
        .concat(),
    )];
    [refused(&strange, scratch), refused(&mismatch, scratch)]
}

fn entry(path: &str, kind: EntryType, size: u64, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    // Not by the builder's own functions, which refuse what this is about.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn refused(archives: &[(&str, Vec<u8>)], scratch: &Path) -> (Look, Look) {
    let (mut taken, mut listed) = (Vec::new(), 0);
    for (what, bytes) in archives {
        let whole = [bytes.as_slice(), &[0; 1024]].concat();
        match becomes_image(&whole, scratch) {
            Ok(true) => taken.push(*what),
            Ok(false) => {}
            Err(error) => return (Look::unknown(error.to_string()), Look::unknown(error.to_string())),
        }
        let lists = |mut archive: Archive<&[u8]>| {
            archive.entries().is_ok_and(|entries| entries.flatten().count() > 0)
        };
        listed += usize::from(lists(Archive::new(whole.as_slice())));
    }
    let held = Look::held(format!("{} such archives become no image", archives.len()));
    (
        if taken.is_empty() {
            held
        } else {
            Look::open(format!("an image was made of {}", taken.join(", ")))
        },
        Look::told(listed < archives.len(), format!("a plain reader goes through {listed} of them")),
    )
}

fn becomes_image(archive: &[u8], scratch: &Path) -> io::Result<bool> {
    let folder = scratch.join("archive");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("root.tar"), archive)?;
    let text = "name = \"strange\"\n[source]\nkind = \"tar\"\npath = \"root.tar\"\n";
    let definition = Definition::parse(text, &folder.join("strange.toml")).map_err(io::Error::other)?;
    let store = Store::open(&folder.join("store")).map_err(io::Error::other)?;
    let built = build(&store, &definition, &mut images::Silent);
    let refused_by_reader = matches!(&built, Err(images::BuildError::Source(_)));
    let became = built.is_ok();
    fs::remove_dir_all(&folder)?;
    Ok(became || !refused_by_reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Seen;

    #[test]
    fn frames_that_are_none_are_refused_and_believed_by_whoever_trusts_them() {
        let (look, control) = frames();
        assert_eq!((look.seen, control.seen), (Seen::Held, Seen::Open), "{look:?} {control:?}");
    }

    #[test]
    fn an_image_with_a_link_among_its_devices_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/dev")).unwrap();
        let (look, control) = devices(&folder.path().join("root"), folder.path());
        assert_eq!((look.seen, control.seen), (Seen::Held, Seen::Open), "{look:?} {control:?}");
    }

    #[test]
    fn archives_that_are_not_what_they_seem_become_no_image() {
        let folder = tempfile::tempdir().unwrap();
        for (look, control) in archives(folder.path()) {
            assert_eq!((look.seen, control.seen), (Seen::Held, Seen::Open), "{look:?} {control:?}");
        }
    }
}

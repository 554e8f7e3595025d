//! The store: finding, holding, removing, collecting, verifying.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;

use images::{Difference, ImageRef, Resolver, Store, StoreError};

use crate::Scratch;

pub(crate) fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

#[test]
fn an_image_is_found_by_name_by_digest_and_by_its_first_digits() {
    let scratch = Scratch::new();
    let image = scratch.build();
    let (store, hex) = (scratch.store(), image.digest.hex());
    for text in
        ["own", &format!("own@sha256:{hex}"), &format!("own@sha256:{}", &hex[..12]), &format!("sha256:{hex}")]
    {
        assert_eq!(store.resolve(&reference(text)).unwrap().digest, image.digest, "{text}");
    }
    for text in [&format!("other@sha256:{hex}"), "own@sha256:000000000000"] {
        assert!(matches!(store.resolve(&reference(text)), Err(StoreError::NotFound { .. })), "{text}");
    }
}

#[test]
fn an_earlier_build_can_still_be_pinned() {
    let scratch = Scratch::new();
    let first = scratch.build().digest;
    fs::write(scratch.source().join("etc/motd"), "newer\n").unwrap();
    let second = scratch.build().digest;
    let store = scratch.store();
    assert_eq!(store.resolve(&reference("own")).unwrap().digest, second);
    assert_eq!(store.resolve(&reference(&format!("own@{first}"))).unwrap().digest, first);
}

#[test]
fn a_resolver_finds_again_what_is_held_and_follows_a_name_that_moves() {
    let scratch = Scratch::new();
    let first = scratch.build().digest;
    let resolver = Resolver::new(scratch.store());
    let held = resolver.resolve(&reference("own")).unwrap();
    assert!(Arc::ptr_eq(&held, &resolver.resolve(&reference("own")).unwrap()), "the store is not read again");

    fs::write(scratch.source().join("etc/motd"), "newer\n").unwrap();
    let second = scratch.build().digest;
    assert_eq!(resolver.resolve(&reference("own")).unwrap().digest, second);
    let pinned = resolver.resolve(&reference(&format!("own@{first}"))).unwrap();
    assert_eq!(pinned.digest, first);

    drop((held, pinned));
    assert!(scratch.store().list().unwrap().iter().all(|image| !image.in_use), "it holds nothing itself");
}

#[test]
fn an_image_in_use_cannot_be_removed_and_the_user_is_named() {
    let scratch = Scratch::new();
    let image = scratch.build();
    let store = scratch.store();
    let error = store.remove(&reference("own")).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }));
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    assert!(store.list().unwrap()[0].in_use);
    assert_eq!(store.resolve(&reference("own")).unwrap().verify().unwrap(), None, "nothing was touched");

    drop(image);
    assert!(!store.list().unwrap()[0].in_use);
    assert_eq!(store.remove(&reference("own")).unwrap().len(), 1);
    assert!(store.list().unwrap().is_empty());
    assert_eq!(
        (scratch.unfinished(), fs::read_dir(scratch.path().join("images/sha256")).unwrap().count()),
        (0, 0)
    );
    assert_eq!(scratch.build().verify().unwrap(), None, "it can be built again");
}

#[test]
fn a_name_goes_with_its_earlier_builds_but_never_with_what_another_name_has() {
    let scratch = Scratch::new();
    drop(scratch.build());
    let shared = {
        let text = fs::read_to_string(scratch.path().join("own.toml")).unwrap().replace("'own'", "'other'");
        let path = scratch.path().join("other.toml");
        fs::write(&path, text).unwrap();
        let definition = images::Definition::load(&path).unwrap();
        images::build(&scratch.store(), &definition, &mut images::Silent).unwrap().digest
    };
    fs::write(scratch.source().join("etc/motd"), "newer\n").unwrap();
    drop(scratch.build());

    let store = scratch.store();
    assert_eq!(store.remove(&reference("own")).unwrap().len(), 1);
    assert_eq!(store.resolve(&reference("other")).unwrap().digest, shared);
    let error = store.remove(&reference(&shared.to_string())).unwrap_err();
    assert!(matches!(error, StoreError::Current { .. }), "{error}");
}

#[test]
fn gc_removes_what_no_name_needs_and_keeps_what_is_in_use() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let builds: Vec<_> = (0..4)
        .map(|n| {
            fs::write(scratch.source().join("etc/motd"), n.to_string()).unwrap();
            scratch.build().digest
        })
        .collect();
    let digests = |images: &[images::Manifest]| {
        let mut digests: Vec<_> = images.iter().map(|image| image.digest).collect();
        digests.sort();
        digests
    };
    let mut oldest = vec![builds[0], builds[1]];
    oldest.sort();

    assert_eq!(digests(&store.gc(1, true).unwrap().removed), oldest);
    assert_eq!(store.list().unwrap().len(), 4, "a dry run removes nothing");
    let held = store.resolve(&reference(&builds[0].to_string())).unwrap();
    let collected = store.gc(1, false).unwrap();
    assert_eq!(digests(&collected.removed), [builds[1]]);
    assert_eq!(digests(&collected.in_use), [builds[0]]);
    drop(held);
    assert_eq!(digests(&store.gc(0, false).unwrap().removed).len(), 2);
    assert_eq!(store.list().unwrap()[0].manifest.digest, builds[3]);
}

#[test]
fn verify_names_the_first_entry_that_is_not_what_was_built() {
    type Spoil = fn(&std::path::Path);
    let cases: [(Spoil, &str); 5] = [
        (|root| fs::write(root.join("etc/motd"), "Good day\n").unwrap(), "/etc/motd"),
        (|root| chown(root.join("bin/tool"), Some(5), None).unwrap(), "/bin/tool"),
        (|root| fs::remove_file(root.join("usr/lib/link")).unwrap(), "/usr/lib/link"),
        (|root| fs::write(root.join("etc/added"), "").unwrap(), "/etc/added"),
        (|root| fs::set_permissions(root.join("bin"), fs::Permissions::from_mode(0o777)).unwrap(), "/bin"),
    ];
    for (spoil, expected) in cases {
        let scratch = Scratch::new();
        let image = scratch.build();
        assert_eq!(image.verify().unwrap(), None);
        spoil(&image.rootfs);
        let difference = image.verify().unwrap().unwrap();
        let (Difference::Missing { path } | Difference::Added { path } | Difference::Changed { path, .. }) =
            difference;
        assert_eq!(path, expected);
    }
}

#[test]
fn no_other_user_of_the_host_reaches_an_images_files() {
    let scratch = Scratch::new();
    drop(scratch.build());
    assert_eq!(fs::metadata(scratch.path().join("images")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_store_of_a_later_version_is_left_alone() {
    let scratch = Scratch::new();
    drop(scratch.build());
    fs::write(scratch.path().join("images/format"), "2\n").unwrap();
    let error = Store::open(&scratch.path().join("images")).unwrap_err();
    assert!(matches!(error, StoreError::Format { .. }), "{error}");
}

//! A builder that is killed half-way. It is this test binary itself, started again as a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use images::{Definition, ImageRef, Store, StoreError};

use crate::{AtStep, Scratch};

const FOLDER: &str = "MAYFLY_TEST_BUILD_IN";

/// Builds until its last step before publishing, says so, and then waits to be killed.
#[test]
#[ignore = "another test starts it as a process of its own"]
fn a_builder_that_stops_half_way() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("another test starts this"));
    let store = Store::open(&folder.join("images")).unwrap();
    let definition = Definition::load(&folder.join("own.toml")).unwrap();
    let mut progress = AtStep(|step: &str| {
        if step.starts_with("putting") {
            let _ = writeln!(std::io::stderr(), "half-way");
            let _ = std::io::stdin().read(&mut [0]);
        }
    });
    drop(images::build(&store, &definition, &mut progress));
}

#[test]
fn a_half_built_image_is_never_used_and_the_next_build_clears_it_away() {
    let scratch = Scratch::new();
    let definition = scratch.definition("");
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::a_builder_that_stops_half_way", "--ignored", "--nocapture"])
        .env(FOLDER, scratch.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(builder.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("half-way")));

    let store = scratch.store();
    let collected = store.gc(0, false).unwrap();
    assert_eq!((collected.abandoned, scratch.unfinished()), (0, 1), "a live build is left alone");
    builder.kill().unwrap();
    builder.wait().unwrap();

    let name: ImageRef = "own".parse().unwrap();
    assert!(matches!(store.resolve(&name), Err(StoreError::NotFound { .. })));
    assert!(store.list().unwrap().is_empty());
    let image = images::build(&store, &definition, &mut images::Silent).unwrap();
    assert_eq!(image.verify().unwrap(), None);
    assert_eq!(scratch.unfinished(), 0);
}

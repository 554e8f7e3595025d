//! Definitions and references that cannot be used, and what a person is told.

use std::path::Path;

use images::{Definition, ImageRef};

use crate::Scratch;

#[test]
fn a_wrong_definition_file_is_named_with_its_line() {
    let scratch = Scratch::new();
    let path = scratch.path().join("bad.toml");
    std::fs::write(&path, "name = 'own'\n\n[source]\nkind = 'directory'\npath = 'tree'\n\n[jobs]\n").unwrap();
    let error = Definition::find(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}, line 7: unknown field `jobs`", path.display())), "{error}");
}

#[test]
fn a_missing_definition_says_what_there_is() {
    let error = Definition::find("bse").unwrap_err();
    assert_eq!(error.to_string(), "no built-in image definition is called `bse`");
    assert!(error.hint().unwrap().contains("base, base-writable, minimal"));
    let error = Definition::load(Path::new("/nowhere/x.toml")).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot read the image definition /nowhere/x.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn a_missing_source_is_named_by_its_path() {
    let scratch = Scratch::new();
    let definition = scratch.definition_of("kind = 'directory'\npath = 'nowhere'", "");
    let error = images::build(&scratch.store(), &definition, &mut images::Silent).unwrap_err().to_string();
    let path = scratch.path().join("nowhere");
    assert!(error.starts_with(&format!("cannot look at {}", path.display())), "{error}");
}

#[test]
fn an_unknown_image_says_how_to_get_it() {
    let scratch = Scratch::new();
    let hint = |text: &str| {
        let reference: ImageRef = text.parse().unwrap();
        scratch.store().resolve(&reference).unwrap_err().hint().unwrap()
    };
    assert_eq!(hint("base"), "mayfly image build base");
    assert_eq!(hint("other"), "the store is empty; begin with: mayfly image build base");
    drop(scratch.build());
    assert!(hint("other").starts_with("known images: own; "));
    assert_eq!(hint("base@sha256:0123456789ab"), "mayfly image build base");
}

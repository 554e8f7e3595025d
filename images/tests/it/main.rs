//! The image store from outside: what is built, what is kept, what is refused. Needs root, as building does.

mod build;
mod crash;
mod definitions;
mod exchange;
mod hostile;
mod machines;
mod store;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use images::{Definition, Image, Progress, Store};
use tempfile::TempDir;

/// A store, and a source tree with a definition beside it.
struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let scratch = Self { folder: tempfile::tempdir().unwrap() };
        let source = scratch.source();
        for folder in ["bin", "etc", "usr/lib"] {
            fs::create_dir_all(source.join(folder)).unwrap();
        }
        fs::write(source.join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(source.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(source.join("bin/tool"), source.join("bin/twin")).unwrap();
        fs::write(source.join("etc/motd"), "good day\n").unwrap();
        symlink("../etc/motd", source.join("usr/lib/link")).unwrap();
        scratch
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn source(&self) -> PathBuf {
        self.path().join("tree")
    }

    fn store(&self) -> Store {
        Store::open(&self.path().join("images")).unwrap()
    }

    /// A definition of the source tree, with more TOML behind it.
    fn definition(&self, more: &str) -> Definition {
        self.definition_of("kind = 'directory'\npath = 'tree'", more)
    }

    fn definition_of(&self, source: &str, more: &str) -> Definition {
        let path = self.path().join("own.toml");
        fs::write(&path, format!("name = 'own'\n[source]\n{source}\n{more}")).unwrap();
        Definition::load(&path).unwrap()
    }

    fn build(&self) -> Image {
        images::build(&self.store(), &self.definition(""), &mut images::Silent).unwrap()
    }

    /// What lies unfinished in the store.
    fn unfinished(&self) -> usize {
        fs::read_dir(self.path().join("images/staging")).unwrap().count()
    }
}

/// Remembers every step.
#[derive(Default)]
struct Steps(Vec<String>);

impl Progress for Steps {
    fn step(&mut self, what: &str) {
        self.0.push(what.to_owned());
    }

    fn detail(&mut self, _line: &str) {}
}

/// Calls a function at every step.
struct AtStep<F>(F);

impl<F: FnMut(&str)> Progress for AtStep<F> {
    fn step(&mut self, what: &str) {
        (self.0)(what);
    }

    fn detail(&mut self, _line: &str) {}
}

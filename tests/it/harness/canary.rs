//! A word that is to be nowhere but where the test put it, and all the places on a host where it could be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Node, dockerd, libvirtd};

/// A secret of one test's, which no other program on this machine knows.
#[derive(Debug)]
pub(crate) struct Canary {
    /// The only file that may hold it. Programs are given this, never the word, which whoever lists processes would see.
    pub(crate) file: String,
    word: String,
}

impl Canary {
    pub(crate) fn new(node: &Node, name: &str) -> Self {
        Self::of(node, name, format!("canary-{}", pool::Id::random()))
    }

    /// A word that is no secret, to see that a look sees.
    pub(crate) fn of(node: &Node, name: &str, word: impl Into<String>) -> Self {
        let word = word.into();
        Self { file: node.write(name, &word), word }
    }

    pub(crate) fn len(&self) -> usize {
        self.word.len()
    }

    pub(crate) fn is_in(&self, text: impl AsRef<[u8]>) -> bool {
        text.as_ref().windows(self.word.len()).any(|part| part == self.word.as_bytes())
    }

    /// Files below these folders that hold it, however large they are.
    pub(crate) fn files(&self, folders: &[PathBuf]) -> Vec<String> {
        // A slash behind a link: what it leads to is meant. Memory and disks are long runs of zeros, which end lines here.
        let places = folders.iter().map(|folder| folder.join(""));
        let grep = Command::new("grep")
            .args(["--recursive", "--files-with-matches", "--text", "--null-data", "--fixed-strings"])
            .args(["--no-messages", "--devices=skip", "--file", &self.file, "--"])
            .args(places)
            .output()
            .unwrap();
        // Beside the matches it tells by 2 that a file went away meanwhile.
        String::from_utf8_lossy(&grep.stdout).lines().map(ToOwned::to_owned).collect()
    }

    /// Processes that were started with it, by their arguments.
    pub(crate) fn arguments(&self) -> Vec<u32> {
        self.processes("cmdline")
    }

    /// Processes that were started with it, by their environment.
    pub(crate) fn environments(&self) -> Vec<u32> {
        self.processes("environ")
    }

    fn processes(&self, file: &str) -> Vec<u32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| self.is_in(bytes)))
            .collect()
    }
}

impl Node {
    /// Where mayfly and the daemons that it uses keep files, with what they gave sandboxes to begin in.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let own = [self.data_dir(), self.data_dir().join("images"), Self::run_dir()];
        let daemons = [dockerd::folder(), libvirtd::folder()].into_iter().flatten().map(Path::to_owned);
        own.into_iter().chain(daemons).collect()
    }

    /// What daemons tell whoever asks them for this node's containers and machines.
    pub(crate) fn told_by_daemons(&self) -> Vec<String> {
        let instances = self.instances();
        instances
            .iter()
            .flat_map(|instance| [dockerd::told(instance), libvirtd::told(instance)].concat())
            .collect()
    }
}

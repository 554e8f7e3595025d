//! A test's own data directory, and the check that nothing is left of it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::process::Pid;
use tempfile::TempDir;

use super::{Mayfly, Sandbox, eventually, host, images};

/// A node: it names everything that this test's mayflies make.
#[derive(Debug)]
pub(crate) struct Node {
    folder: TempDir,
    sessions: Arc<Mutex<Vec<u32>>>,
    /// What its mayflies find in their environment besides.
    env: Vec<(&'static str, String)>,
    /// What every configuration of its mayflies ends with.
    config: String,
}

impl Node {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("it-node-").tempdir().unwrap();
        for name in ["data", "tmp", "files"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        // Images are the same bytes for all; the ledger is what makes the node.
        symlink(images::store(), folder.path().join("data/images")).unwrap();
        Self { folder, sessions: Arc::default(), env: Vec::new(), config: String::new() }
    }

    /// Puts something into the environment of its mayflies.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// Has its mayflies read a configuration that ends with this.
    pub(crate) fn configured(mut self, config: impl Into<String>) -> Self {
        self.config = config.into();
        let path = self.config("");
        self.with("MAYFLY_CONFIG", &path)
    }

    /// A configuration file.
    pub(crate) fn config(&self, text: &str) -> String {
        self.write("mayfly.toml", format!("{text}{}", self.config))
    }

    /// A place for a test's own files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// A local file with these bytes, as an argument.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.file(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn run_dir() -> PathBuf {
        std::env::var_os("MAYFLY_RUN_DIR").map_or_else(|| PathBuf::from("/run/mayfly"), PathBuf::from)
    }

    /// A mayfly of this node.
    pub(crate) fn mayfly<W: Into<String>>(&self, words: impl IntoIterator<Item = W>) -> Mayfly {
        self.place(Mayfly::new()).args(words)
    }

    /// The same environment for another way to start it.
    pub(crate) fn place(&self, mayfly: Mayfly) -> Mayfly {
        let mayfly = mayfly.noted_in(&self.sessions);
        let mayfly = self.env.iter().fold(mayfly, |mayfly, (name, value)| mayfly.env(name, value));
        mayfly.env("MAYFLY_DATA_DIR", self.data_dir()).env("TMPDIR", self.folder.path().join("tmp"))
    }

    /// Every instance that this node ever had, in the order of their starts: each opened the ledger before it made
    /// anything but its mark.
    pub(crate) fn instances(&self) -> Vec<String> {
        let opened = self.ledger().into_iter().filter(|record| record["event"] == "opened");
        opened.map(|record| record["instance"].as_str().unwrap().to_owned()).collect()
    }

    /// The live sandboxes of this node in which a job is.
    pub(crate) fn sandboxes(&self) -> Vec<Sandbox> {
        let ledger = self.ledger();
        let used = |generation: &str| {
            ledger.iter().any(|record| record["event"] == "consumed" && record["generation"] == generation)
        };
        let all = self.instances();
        let sandboxes = all.iter().flat_map(|instance| Sandbox::all_of(instance));
        sandboxes.filter(|sandbox| used(sandbox.generation())).collect()
    }

    /// The process that clones the sandboxes of a mayfly that runs.
    pub(crate) fn spawner(&self) -> Pid {
        let sessions = self.sessions.lock().unwrap().clone();
        let found = eventually("there is a spawner", || host::spawner(&sessions));
        Pid::from_raw(found.cast_signed()).unwrap()
    }

    /// The ledger's records, oldest segment first.
    pub(crate) fn ledger(&self) -> Vec<serde_json::Value> {
        let entries = fs::read_dir(self.data_dir().join("ledger")).into_iter().flatten().flatten();
        let texts: Vec<_> = entries.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
        // A record that is being written has no end of line yet.
        let lines =
            texts.iter().flat_map(|text| text.split_inclusive('\n').filter(|line| line.ends_with('\n')));
        let mut records: Vec<serde_json::Value> =
            lines.map(|line| serde_json::from_str(line.rsplit_once('\t').unwrap().0).unwrap()).collect();
        records.sort_by_key(|record| record["at"].as_u64());
        records
    }

    /// All that is left of this node's jobs: on the host, and as files.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let sessions = self.sessions.lock().unwrap().clone();
        let mut found = host::leftovers(&self.instances(), &sessions, &Self::run_dir());
        let places = [self.folder.path(), images::store().as_path(), &Self::run_dir()];
        found.extend(host::mounts_below(&places).into_iter().map(|line| format!("mount {line}")));
        let temporary = fs::read_dir(self.folder.path().join("tmp")).unwrap().flatten();
        found.extend(temporary.map(|entry| format!("file {}", entry.path().display())));
        found.extend(files(&self.data_dir()));
        found
    }
}

/// What a node's data directory holds beside images, the ledger and the place where artifacts arrive.
fn files(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data).unwrap().flatten();
    let others = entries
        .filter(|entry| !["images", "ledger", "arriving"].iter().any(|known| entry.file_name() == *known));
    let arriving = fs::read_dir(data.join("arriving")).into_iter().flatten().flatten();
    others.chain(arriving).map(|entry| format!("file {}", entry.path().display())).collect()
}

impl Drop for Node {
    fn drop(&mut self) {
        let left = self.leftovers();
        if left.is_empty() {
            return;
        }
        // Whatever broke, the next test and the machine shall not suffer from it: every mayfly sweeps its node.
        let _ = self.mayfly(["run", "--image", "minimal"]).job(["true"]).finish();
        assert!(std::thread::panicking(), "left behind:\n{}", left.join("\n"));
    }
}

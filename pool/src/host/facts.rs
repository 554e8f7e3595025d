//! Where the observations read from: the host's own root, or a planted one in tests.

use std::io;
use std::path::{Path, PathBuf};

/// Files such as `/proc/swaps`, named as they are on the host.
#[derive(Debug)]
pub(super) struct Facts {
    root: PathBuf,
}

impl Facts {
    pub(super) fn of_this_host() -> Self {
        Self { root: PathBuf::from("/") }
    }

    #[cfg(test)]
    pub(super) fn planted(root: &Path, files: &[(&str, &str)]) -> Self {
        for (path, text) in files {
            let path = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self { root: root.to_path_buf() }
    }

    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn text(&self, path: &str) -> io::Result<String> {
        std::fs::read_to_string(self.path(path))
    }

    pub(super) fn line(&self, path: &str) -> io::Result<String> {
        Ok(self.text(path)?.trim().to_owned())
    }

    /// The value of a `Name:  value` line, as `/proc/meminfo` and `/proc/self/status` have them.
    pub(super) fn field(&self, path: &str, name: &str) -> Option<String> {
        let text = self.text(path).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }

    pub(super) fn memory(&self) -> u64 {
        let kib = self.field("/proc/meminfo", "MemTotal");
        kib.and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
    }
}

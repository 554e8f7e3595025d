//! Directories that go with the test process.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory for one server's data, removed when this is dropped. A server that is started in it has its keeper
/// remove it when the process ends without dropping anything.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one; `what` becomes part of its name.
    pub fn new(what: &str) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("mayfly-{what}-{}-{number}", process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left by a process with this id that was killed together with its keepers.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes one for what runs in this process, of which nobody else is the keeper: it goes even if the process is killed.
    #[cfg(feature = "s3")]
    pub(crate) fn of_this_process(what: &str) -> io::Result<(Self, process::Child)> {
        use std::os::unix::process::CommandExt;

        let scratch = Self::new(what)?;
        let mut keeper = process::Command::new("bash");
        keeper.args(["-c", r#"read -r _; rm -rf -- "$1""#, "keeper"]).arg(&scratch.0);
        // Ctrl-C at a terminal ends the tests first, and then the pipe.
        let keeper = keeper.process_group(0).stdin(process::Stdio::piped()).spawn()?;
        Ok((scratch, keeper))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left then is in the directory for temporary things.
        let _ = fs::remove_dir_all(&self.0);
    }
}

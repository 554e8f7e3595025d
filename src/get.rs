//! `--get PATH:LOCAL`: where artifacts go on this host.
//!
//! The names come from a sandbox. So nothing below LOCAL is reached through a link, and each file appears under
//! its name only once it is whole.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, openat, renameat, unlinkat};
use worker::{Arrival, ArtifactSink, ErrorReport};

/// What to get out of a sandbox, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Get {
    /// An absolute path or a glob.
    pub(crate) path: String,
    /// A file for a single file; a directory for everything else.
    local: PathBuf,
}

impl FromStr for Get {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, local) = text
            .split_once(':')
            .ok_or("write PATH:LOCAL, such as /job/report.md:report.md or /job/*.log:logs")?;
        if local.is_empty() {
            return Err("LOCAL is empty; write PATH:LOCAL, such as /job/report.md:report.md".to_owned());
        }
        scheduler::check_path("PATH", path).map_err(|refusal| format!("{refusal}; {}", refusal.hint()))?;
        Ok(Self { path: path.to_owned(), local: local.into() })
    }
}

/// Refuses places where nothing could be written, before any sandbox is made.
pub(crate) fn check(gets: &[Get]) -> Result<(), ErrorReport> {
    for Get { local, .. } in gets {
        let parent = parent(local);
        if !parent.is_dir() {
            let what = format!("cannot write {}", local.display());
            let why = format!("there is no directory {}", parent.display());
            return Err(ErrorReport::new(what, why, "make it first, or name another place; nothing was run"));
        }
    }
    Ok(())
}

fn parent(local: &Path) -> &Path {
    local.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes artifacts where `--get` says.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    gets: Vec<Get>,
    /// How many files each of them gave.
    given: Vec<usize>,
    current: Option<Arriving>,
}

/// A file that arrives.
#[derive(Debug)]
struct Arriving {
    asked: usize,
    file: File,
    /// The folder, the name while it arrives and the name that it gets; `None` for what is no regular file here.
    names: Option<(OwnedFd, PathBuf, PathBuf)>,
}

impl LocalFiles {
    pub(crate) fn new(gets: Vec<Get>) -> Self {
        Self { given: vec![0; gets.len()], gets, current: None }
    }

    /// Writes each file below a directory, under its whole path in the sandbox.
    pub(crate) fn below(directory: &Path) -> Self {
        Self::new(vec![Get { path: String::new(), local: directory.to_owned() }])
    }

    /// The paths that gave no file at all.
    pub(crate) fn without_any(&self) -> impl Iterator<Item = &str> {
        self.gets.iter().zip(&self.given).filter(|(_, given)| **given == 0).map(|(get, _)| get.path.as_str())
    }

    fn open(&self, arrival: Arrival<'_>) -> io::Result<Arriving> {
        let Get { path, local } = &self.gets[arrival.asked];
        let asked = arrival.asked;
        let single = arrival.path == path.as_bytes();
        if single && !local.is_dir() {
            // A link that the user names is the user's own: what it points to is replaced, as a shell would.
            let local = fs::canonicalize(local).unwrap_or_else(|_| local.clone());
            if fs::metadata(&local).is_ok_and(|kind| !kind.is_file()) {
                let file = File::options().write(true).open(&local)?;
                return Ok(Arriving { asked, file, names: None });
            }
            let name = local.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            return arriving(asked, folder(parent(&local))?, name, arrival.mode);
        }
        let relative = relative(arrival.path, path);
        fs::create_dir_all(local)?;
        let mut at = folder(local)?;
        let mut names = relative.split(|byte| *byte == b'/').map(OsStr::from_bytes);
        let last = names.next_back().ok_or(io::ErrorKind::InvalidInput)?;
        for name in names {
            at = descend(&at, name)?;
        }
        arriving(asked, at, last, arrival.mode)
    }
}

/// A file's path below what a pattern names literally; its name, where it is just what was asked for.
fn relative<'a>(path: &'a [u8], pattern: &str) -> &'a [u8] {
    let root = worker::literal_root(pattern).as_bytes();
    let below =
        path.strip_prefix(root).and_then(|rest| rest.strip_prefix(b"/")).filter(|rest| !rest.is_empty());
    below.unwrap_or_else(|| path.rsplit(|byte| *byte == b'/').next().unwrap_or(path))
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The directory `name` in `at`, made if it is missing, and never through a link.
fn descend(at: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(openat(at, name, flags, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

fn arriving(asked: usize, at: OwnedFd, name: &OsStr, mode: u32) -> io::Result<Arriving> {
    let temporary = PathBuf::from(format!(".mayfly-{}-{}", std::process::id(), asked));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&at, &temporary, flags, Mode::from_raw_mode(mode))?;
    Ok(Arriving { asked, file: file.into(), names: Some((at, temporary, name.into())) })
}

impl ArtifactSink for LocalFiles {
    async fn begin(&mut self, arrival: Arrival<'_>) -> io::Result<()> {
        self.current = Some(self.open(arrival)?);
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.current.as_mut().map_or(Ok(()), |current| current.file.write_all(bytes))
    }

    async fn keep(&mut self) -> io::Result<()> {
        let Some(current) = &self.current else { return Ok(()) };
        if let Some((at, temporary, name)) = &current.names {
            renameat(at, temporary, at, name)?;
        }
        self.given[current.asked] += 1;
        self.current = None;
        Ok(())
    }

    async fn discard(&mut self) {
        if let Some((at, temporary, _)) = self.current.take().and_then(|current| current.names) {
            // Nothing refers to it, and a failure here would only repeat the one that led to it.
            let _ = unlinkat(at.as_fd(), &temporary, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn give(sink: &mut LocalFiles, path: &str, bytes: &[u8]) -> io::Result<()> {
        sink.begin(Arrival { asked: 0, path: path.as_bytes(), mode: 0o644 }).await?;
        sink.write(bytes).await?;
        sink.keep().await
    }

    fn sink(path: &str, local: &Path) -> LocalFiles {
        LocalFiles::new(vec![Get { path: path.to_owned(), local: local.to_owned() }])
    }

    #[test]
    fn a_get_is_split_at_its_first_colon() {
        let get: Get = "/job/*.log:a:b".parse().unwrap();
        assert_eq!(get, Get { path: "/job/*.log".to_owned(), local: "a:b".into() });
        for bad in ["", "/job/x", "/job/x:", "job:x", "/job/../x:y"] {
            assert!(bad.parse::<Get>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_single_file_becomes_local_and_goes_into_a_directory_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("out.txt");
        give(&mut sink("/job/a", &local), "/job/a", b"one").await.unwrap();
        assert_eq!(fs::read(&local).unwrap(), b"one");
        give(&mut sink("/job/a", folder.path()), "/job/a", b"two").await.unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half-written stays");
    }

    #[tokio::test]
    async fn a_glob_keeps_the_tree_below_its_literal_part() {
        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("logs");
        let mut sink = sink("/job/**/*.log", &local);
        give(&mut sink, "/job/a.log", b"1").await.unwrap();
        give(&mut sink, "/job/sub/b.log", b"2").await.unwrap();
        assert_eq!(fs::read(local.join("a.log")).unwrap(), b"1");
        assert_eq!(fs::read(local.join("sub/b.log")).unwrap(), b"2");
        assert_eq!(sink.without_any().count(), 0);
    }

    #[tokio::test]
    async fn no_link_below_local_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (local, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir(&local).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "old").unwrap();
        std::os::unix::fs::symlink(&outside, local.join("door")).unwrap();
        std::os::unix::fs::symlink(outside.join("precious"), local.join("file")).unwrap();
        let mut sink = sink("/job", &local);
        assert!(give(&mut sink, "/job/door/new", b"x").await.is_err());
        sink.discard().await;
        give(&mut sink, "/job/file", b"new").await.unwrap();
        assert_eq!(
            fs::read(outside.join("precious")).unwrap(),
            b"old",
            "the link was replaced, not followed"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_is_discarded_leaves_the_former_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let local = folder.path().join("out");
        fs::write(&local, "former").unwrap();
        let mut sink = sink("/job/a", &local);
        sink.begin(Arrival { asked: 0, path: b"/job/a", mode: 0o644 }).await.unwrap();
        sink.write(b"half").await.unwrap();
        sink.discard().await;
        assert_eq!(fs::read(&local).unwrap(), b"former");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(sink.without_any().collect::<Vec<_>>(), ["/job/a"]);
    }
}

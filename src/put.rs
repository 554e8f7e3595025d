//! `--put LOCAL:PATH`: which local files go where. They are looked at before any sandbox is made, and read
//! when it is there.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use worker::{Content, ErrorReport, StagedFile};

/// A local file or directory, and its path in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Put {
    local: PathBuf,
    path: String,
}

impl FromStr for Put {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The sandbox's path is absolute, so it begins at the last ":/"; a local name may have colons of its own.
        let (local, path) = text
            .rsplit_once(":/")
            .ok_or("write LOCAL:PATH with an absolute PATH, such as main.py:/job/main.py")?;
        if local.is_empty() {
            return Err("LOCAL is empty; write LOCAL:PATH, such as main.py:/job/main.py".to_owned());
        }
        let path = format!("/{path}");
        scheduler::check_path("PATH", &path).map_err(|refusal| format!("{refusal}; {}", refusal.hint()))?;
        Ok(Self { local: local.into(), path })
    }
}

/// The files that `puts` name, directories opened up, each known to be readable.
pub(crate) fn files(puts: &[Put]) -> Result<Vec<StagedFile>, ErrorReport> {
    let mut files = Vec::new();
    for Put { local, path } in puts {
        // What the user names may be a link. What lies below it may not: it could lead anywhere.
        let kind = fs::metadata(local).map_err(|error| unreadable(local, &error))?;
        if kind.is_dir() {
            directory(local, path.trim_end_matches('/'), &mut files)?;
        } else if let Some(folder) = path.strip_suffix('/') {
            let name = local.file_name().unwrap_or(local.as_os_str());
            let target = format!("{folder}/{}", utf8(local, name)?);
            files.push(file(local, target, &kind)?);
        } else {
            files.push(file(local, path.clone(), &kind)?);
        }
    }
    Ok(files)
}

fn directory(local: &Path, path: &str, files: &mut Vec<StagedFile>) -> Result<(), ErrorReport> {
    let entries = fs::read_dir(local).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = entries.map_err(|error| unreadable(local, &error))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let local = entry.path();
        let target = format!("{path}/{}", utf8(&local, &entry.file_name())?);
        let kind = fs::symlink_metadata(&local).map_err(|error| unreadable(&local, &error))?;
        if kind.is_dir() {
            directory(&local, &target, files)?;
        } else if kind.is_symlink() {
            let what = format!("cannot put {} into the sandbox", local.display());
            let hint = "put what it points to on its own, or remove the link";
            return Err(ErrorReport::new(what, "it is a symbolic link, and links are not followed", hint));
        } else {
            files.push(file(&local, target, &kind)?);
        }
    }
    Ok(())
}

fn file(local: &Path, path: String, kind: &fs::Metadata) -> Result<StagedFile, ErrorReport> {
    if !kind.is_file() {
        let what = format!("cannot put {} into the sandbox", local.display());
        let why = "it is a fifo, a socket or a device";
        return Err(ErrorReport::new(what, why, "put regular files, or pipe it in with --stdin"));
    }
    File::open(local).map_err(|error| unreadable(local, &error))?;
    let mode = if kind.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
    Ok(StagedFile { path, mode, content: Content::LocalFile(local.to_owned()) })
}

fn utf8<'a>(local: &Path, name: &'a std::ffi::OsStr) -> Result<&'a str, ErrorReport> {
    name.to_str().ok_or_else(|| {
        let what = format!("cannot put {} into the sandbox", local.display());
        ErrorReport::new(what, "its name is not UTF-8", "rename it")
    })
}

fn unreadable(local: &Path, error: &io::Error) -> ErrorReport {
    let what = format!("cannot read {}", local.display());
    ErrorReport::new(what, error.to_string(), "check the path and its permissions; nothing was run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_split_where_the_absolute_path_begins() {
        let put: Put = "a:b.txt:/job/x".parse().unwrap();
        assert_eq!(put, Put { local: "a:b.txt".into(), path: "/job/x".to_owned() });
        for bad in ["", "a", "a:", "a:b", ":/job/x", "a:/job/../x", "a:/proc/1/mem"] {
            assert!(bad.parse::<Put>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_is_put_with_all_below_it_and_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/b"), "b").unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        let put = [Put { local: folder.path().to_owned(), path: "/job/".to_owned() }];
        let paths: Vec<_> = files(&put).unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(paths, ["/job/a", "/job/sub/b"]);

        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("sub/link")).unwrap();
        let refused = files(&put).unwrap_err();
        assert!(refused.why.contains("symbolic link"), "{refused:?}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let refused = files(&["/nowhere/at/all:/job/x".parse().unwrap()]).unwrap_err();
        assert_eq!(refused.what, "cannot read /nowhere/at/all");
    }
}

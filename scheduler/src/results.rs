//! The results file of a batch: one line of JSON for each job, in the order in which they ended.
//!
//! It is only ever appended to. What a crash may tear is what was appended since the last length that the
//! journal knows to be durable: that is cut, back to the last whole line. Damage before it is refused.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use pool::Source;
use serde::Deserialize;
use thiserror::Error;
use worker::{Outcome, Phases};

/// The results file is not usable.
#[derive(Debug, Error)]
pub enum ResultsError {
    /// It cannot be read or written.
    #[error("cannot {what} the results file {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It was changed by somebody else.
    #[error("line {line} of {path} is no result of mayfly, and no crash can have done that")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
    },
}

/// What is read of each line when a batch is taken up again.
#[derive(Debug, Deserialize)]
pub(crate) struct Seen<'a> {
    #[serde(borrow)]
    pub(crate) tenant: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    pub(crate) attempt: u32,
    pub(crate) outcome: Outcome,
    pub(crate) phases: Phases,
    pub(crate) source: Option<Source>,
}

/// Where a line lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct ResultsFile {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
}

impl ResultsFile {
    /// Opens the file, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, ResultsError> {
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let trouble = |error| ResultsError::Io { what: "open", path: path.to_owned(), error };
        let file = opened.map_err(trouble)?;
        let meta = file.metadata().map_err(trouble)?;
        if !meta.is_file() {
            return Err(trouble(io::Error::other(
                "it is not a regular file, and could not be taken up again",
            )));
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), length: meta.len() })
    }

    /// Reads every line and cuts what a crash tore: nothing before `durable`, and with `last_only` no more than a
    /// last line that begins as results do. Returns how many bytes were cut.
    pub(crate) fn recover(
        &mut self,
        durable: u64,
        last_only: bool,
        mut each: impl FnMut(Place, &Seen<'_>) -> Result<(), ResultsError>,
    ) -> Result<u64, ResultsError> {
        let file = Arc::clone(&self.file);
        (&*file).seek(SeekFrom::Start(0)).map_err(|error| self.trouble("read", error))?;
        let mut reader = BufReader::with_capacity(1 << 16, &*file);
        let mut line = Vec::new();
        let (mut number, mut offset) = (0, 0);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|error| self.trouble("read", error))?;
            number += 1;
            let length = read as u64;
            let seen =
                if line.ends_with(b"\n") { serde_json::from_slice::<Seen<'_>>(&line).ok() } else { None };
            match seen {
                Some(seen) => each(Place { offset, length }, &seen)?,
                None if read == 0 && offset >= durable => break,
                None if offset < durable || (last_only && !is_beginning(&line)) => {
                    return Err(ResultsError::Damaged { path: self.path.clone(), line: number });
                }
                None => break,
            }
            offset += length;
        }
        let cut = self.length - offset;
        if cut > 0 {
            self.file.set_len(offset).map_err(|error| self.trouble("cut", error))?;
            self.length = offset;
        }
        Ok(cut)
    }

    /// Appends whole lines. If it fails nothing of them stays, as far as the disk allows.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<u64, ResultsError> {
        let offset = self.length;
        if let Err(error) = self.file.write_all_at(lines, offset) {
            // What cannot be cut now is cut when the batch is taken up again.
            let _ = self.file.set_len(offset);
            return Err(self.trouble("write to", error));
        }
        self.length += lines.len() as u64;
        Ok(offset)
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&self) -> Result<(), ResultsError> {
        self.file.sync_data().map_err(|error| self.trouble("flush", error))
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// A second handle, for reading single lines.
    pub(crate) fn reader(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    fn trouble(&self, what: &'static str, error: io::Error) -> ResultsError {
        ResultsError::Io { what, path: self.path.clone(), error }
    }
}

/// Whether a line can be the first part of a result.
fn is_beginning(line: &[u8]) -> bool {
    const START: &[u8] = br#"{"schema_version":"#;
    !line.ends_with(b"\n") && (line.starts_with(START) || START.starts_with(line))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use worker::{ErrorReport, JobResult};

    use super::*;

    fn line(id: &str) -> Vec<u8> {
        let result = JobResult::never_started(
            id,
            "local",
            Outcome::Rejected,
            ErrorReport::new("a\nb", "because", "so"),
        );
        let mut line = serde_json::to_vec(&result).unwrap();
        line.push(b'\n');
        line
    }

    fn ids(file: &mut ResultsFile, durable: u64) -> Result<(Vec<String>, u64), ResultsError> {
        let mut ids = Vec::new();
        let cut = file.recover(durable, durable == 0, |_, seen| {
            ids.push(seen.id.to_string());
            Ok(())
        })?;
        Ok((ids, cut))
    }

    #[test]
    fn a_torn_last_line_is_cut_and_all_before_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results");
        let (one, two, three) = (line("one"), line("two"), line("three"));
        for torn in 1..three.len() {
            fs::write(&path, [&one[..], &two, &three[..torn]].concat()).unwrap();
            let mut file = ResultsFile::open(&path).unwrap();
            let (ids, cut) = ids(&mut file, one.len() as u64).unwrap();
            assert_eq!((ids, cut), (vec!["one".to_owned(), "two".to_owned()], torn as u64));
            assert_eq!(file.append(&three).unwrap(), (one.len() + two.len()) as u64);
            assert_eq!(fs::read(&path).unwrap(), [&one[..], &two, &three].concat());
        }
    }

    #[test]
    fn zeroes_of_a_power_loss_are_cut_with_what_follows_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results");
        let (one, two) = (line("one"), line("two"));
        fs::write(&path, [&one[..], &[0; 4096], b"\n", &two].concat()).unwrap();
        let mut file = ResultsFile::open(&path).unwrap();
        assert_eq!(ids(&mut file, one.len() as u64).unwrap().0, ["one"]);
        assert_eq!(fs::read(&path).unwrap(), one);
    }

    #[test]
    fn where_nothing_is_known_of_a_crash_no_more_than_the_last_line_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results");
        for notes in [&b"not a result\n"[..], b"not a result"] {
            let whole = [&line("one")[..], notes].concat();
            fs::write(&path, &whole).unwrap();
            let error = ids(&mut ResultsFile::open(&path).unwrap(), 0).unwrap_err();
            assert!(matches!(error, ResultsError::Damaged { line: 2, .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), whole, "somebody else's file is left as it is");
        }
    }

    #[test]
    fn damage_in_what_was_durable_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results");
        let (one, two) = (line("one"), line("two"));
        let durable = (one.len() + two.len()) as u64;
        fs::write(&path, [&one[..], &two[1..]].concat()).unwrap();
        let error = ids(&mut ResultsFile::open(&path).unwrap(), durable).unwrap_err();
        assert!(matches!(error, ResultsError::Damaged { line: 2, .. }), "{error}");
        fs::write(&path, &one).unwrap();
        let error = ids(&mut ResultsFile::open(&path).unwrap(), durable).unwrap_err();
        assert!(matches!(error, ResultsError::Damaged { line: 2, .. }), "a shortened file: {error}");
    }
}

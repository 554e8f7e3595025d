//! The starts of a batch's jobs: one short line each, appended before the job's first byte is sent.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
};

use crate::key::JobKey;

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct Starts {
    file: File,
    length: u64,
}

impl Starts {
    /// Opens the file or makes it, and tells which attempt each job in it has reached. A torn last line is of a start
    /// that was never allowed.
    pub(super) fn open(path: &Path) -> io::Result<(Self, HashMap<JobKey, u32>)> {
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut numbers = HashMap::new();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let (number, job) = line
                .split_once(' ')
                .and_then(|(number, job)| Some((number.parse().ok()?, job.parse::<JobKey>().ok()?)))
                .ok_or_else(|| {
                    io::Error::other(format!("\"{line}\" is no start; somebody changed the file"))
                })?;
            numbers.insert(job, number);
        }
        Ok((Self { length: text.len() as u64, file }, numbers))
    }

    /// The attempt `number` of a job starts.
    pub(super) fn begun(&mut self, job: &JobKey, number: u32) -> io::Result<()> {
        self.append(job, number)
    }

    /// It did not count.
    pub(super) fn released(&mut self, job: &JobKey, number: u32) -> io::Result<()> {
        self.append(job, number - 1)
    }

    fn append(&mut self, job: &JobKey, number: u32) -> io::Result<()> {
        // In one call, or a torn line could be completed by the next one.
        let line = format!("{number} {job}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Forgets everything: the database knows it.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.length = 0;
        Ok(())
    }
}

//! The jobs file of a batch: one job a line. Reads it once to learn what there is, and each line again when its
//! turn comes.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use pool::{Limits, Tier, Want};
use redb::{ReadableTable, Table};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use worker::{ErrorReport, Job};

use crate::{
    admit::{Origin, admit},
    failpoint,
    journal::{
        Fact, IDS, JOBS, Journal, JournalError, KINDS, LINES, Line, Record, fact, set_fact, set_text, text,
    },
    key::{BodyDigest, JobKey, is_name},
    policy::Policies,
    results::Place,
};

/// The longest line that is read. A job with all files that it may bring inline is shorter.
const LONGEST_LINE: u64 = 64 << 20;
/// Lines that are taken in between two flushes.
const GROUP: usize = 20_000;
/// Kinds of sandboxes that are told apart ahead of time.
const KINDS_MOST: usize = 1024;
/// Whose jobs those are that name no tenant.
const TENANT: &str = "local";

/// What jobs get that do not say.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// For those that give neither a tier nor a trust; `None`: whoever runs them decides.
    pub tier: Option<Tier>,
    /// For those that name no image.
    pub image: Option<String>,
    /// Whose they are, where others run them. Then each has a name that no job of another file has, unless it names
    /// itself.
    pub tenant: Option<String>,
}

/// The jobs file cannot be used.
#[derive(Debug, Error)]
pub enum IntakeError {
    /// It cannot be read.
    #[error("cannot read the jobs file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The batch was begun with other jobs.
    #[error("{0} is not what it was when the batch began")]
    Changed(PathBuf),
    /// The batch was begun for another tenant, or to be run elsewhere.
    #[error("{0} was begun to be run by others, or not by these others")]
    Elsewhere(PathBuf),
    /// What it holds cannot be noted.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What is left to do.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Lines with a job, or with what was to be one, done ones included.
    pub(crate) total: u64,
    pub(crate) kinds: HashMap<u32, Want>,
    /// Lines that wait, by kind.
    pub(crate) waiting: HashMap<Option<u32>, u64>,
}

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct JobsFile {
    path: PathBuf,
    file: Arc<File>,
    defaults: Defaults,
    /// What the names begin with that are made up.
    prefix: String,
}

/// A kind of sandbox, as the journal keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Kind {
    tier: Tier,
    image: String,
    limits: Limits,
    /// Missing in a journal of an older version.
    #[serde(default)]
    owner: Option<String>,
}

impl JobsFile {
    /// Opens the file.
    pub(crate) fn open(path: &Path, defaults: Defaults) -> Result<Self, IntakeError> {
        let trouble = |error| IntakeError::Read { path: path.to_owned(), error };
        let file = File::open(path).map_err(trouble)?;
        if !file.metadata().map_err(trouble)?.is_file() {
            return Err(trouble(io::Error::other("it is not a regular file; write the jobs to one first")));
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), defaults, prefix: String::new() })
    }

    /// Settles for whom the jobs are named, once for the whole batch.
    pub(crate) fn name_for(&mut self, journal: &Journal) -> Result<(), IntakeError> {
        let tenant = self.defaults.tenant.as_deref();
        let (known, prefix, taken_in) = journal.fill(|write| {
            Ok((text(write, "tenant")?, text(write, "prefix")?, text(write, "jobs")?.is_some()))
        })?;
        if (taken_in || known.is_some()) && known.as_deref() != tenant {
            return Err(IntakeError::Elsewhere(self.path.clone()));
        }
        let Some(tenant) = tenant else { return Ok(()) };
        // The same file has the same names: one that is sent again, after its state is gone, runs nothing twice.
        self.prefix = match prefix {
            Some(prefix) => prefix,
            None => format!("{}-", &self.digest()?[..16]),
        };
        journal.fill(|write| {
            set_text(write, "tenant", tenant)?;
            set_text(write, "prefix", &self.prefix)
        })?;
        Ok(())
    }

    /// Takes the file in, or, where the journal has it already, checks that it is the same.
    pub(crate) fn take_in(&self, journal: &Journal, policies: &Policies) -> Result<Left, IntakeError> {
        let (total, digest) = journal.fill(|write| Ok((fact(write, Fact::Total)?, text(write, "jobs")?)))?;
        match digest {
            None => {
                let digest = self.fill(journal, policies)?;
                journal.fill(|write| set_text(write, "jobs", &digest))?;
            }
            Some(digest) if digest == self.digest()? => tracing::debug!(total, "the jobs are known"),
            Some(_) => return Err(IntakeError::Changed(self.path.clone())),
        }
        left(journal).map_err(Into::into)
    }

    /// Reads one line again.
    pub(crate) fn read(
        &self,
        number: u64,
        place: Place,
    ) -> Result<(BodyDigest, Result<Job, ErrorReport>), IntakeError> {
        if place.length > LONGEST_LINE {
            return Ok((BodyDigest::of(&[]), Err(self.too_long(number, place.length))));
        }
        let mut line = vec![0; place.length as usize];
        self.file.read_exact_at(&mut line, place.offset).map_err(|error| self.unreadable(error))?;
        Ok((BodyDigest::of(&line), self.decode(number, &line)))
    }

    /// What is to be said of a line that repeats the id of the line `first`.
    pub(crate) fn twin(&self, number: u64, first: u64) -> ErrorReport {
        ErrorReport::new(
            format!("line {number} of {} is not run", self.path.display()),
            format!("line {first} has the same id and tenant"),
            "give each job an id of its own, or none",
        )
    }

    fn too_long(&self, number: u64, length: u64) -> ErrorReport {
        ErrorReport::new(
            format!("line {number} of {} is not read", self.path.display()),
            format!("it has {length} bytes, above {LONGEST_LINE}"),
            "bring large files in with the image",
        )
    }

    fn decode(&self, number: u64, line: &[u8]) -> Result<Job, ErrorReport> {
        let read = serde_json::from_slice::<Job>(line).or_else(|error| match &self.defaults.image {
            // Only a job without an image gets here with a chance.
            Some(image) => with_image(line, image).ok_or(error),
            None => Err(error),
        });
        match read {
            Ok(mut job) => {
                if job.tier.is_none() && job.trust.is_none() {
                    job.tier = self.defaults.tier;
                }
                Ok(job)
            }
            Err(error) => Err(ErrorReport::new(
                format!("line {number} of {} is no job", self.path.display()),
                // The line that serde counts is always the first.
                error.to_string().replace(" at line 1 column ", " at column "),
                "`mayfly schema job` shows what a job looks like; each line is one",
            )),
        }
    }

    fn digest(&self) -> Result<String, IntakeError> {
        let mut digest = Sha256::new();
        let (mut offset, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            let read = self.file.read_at(&mut buffer, offset).map_err(|error| self.unreadable(error))?;
            if read == 0 {
                return Ok(hex(digest));
            }
            digest.update(&buffer[..read]);
            offset += read as u64;
        }
    }

    fn unreadable(&self, error: io::Error) -> IntakeError {
        IntakeError::Read { path: self.path.clone(), error }
    }

    /// Notes every line. Interrupted, it starts again from the first.
    fn fill(&self, journal: &Journal, policies: &Policies) -> Result<String, IntakeError> {
        journal.fill(|write| {
            // What an interrupted attempt left.
            write.open_table(LINES)?.retain(|_, _| false)?;
            write.open_table(IDS)?.retain(|_, _| false)?;
            write.open_table(KINDS)?.retain(|_, _| false)?;
            Ok(())
        })?;
        let mut reader = Lines {
            reader: BufReader::with_capacity(
                1 << 16,
                File::open(&self.path).map_err(|error| self.unreadable(error))?,
            ),
            digest: Sha256::new(),
            offset: 0,
            number: 0,
        };
        let (mut kinds, mut total) = (Kinds::default(), 0);
        loop {
            let mut group = Vec::with_capacity(GROUP);
            while group.len() < GROUP {
                let Some((number, place, text)) = reader.next().map_err(|error| self.unreadable(error))?
                else {
                    break;
                };
                if !text.iter().all(u8::is_ascii_whitespace) || place.length > LONGEST_LINE {
                    group.push((number, place, self.survey(number, place, &text, policies, &mut kinds)));
                }
            }
            if group.is_empty() {
                break;
            }
            total += group.len() as u64;
            journal.fill(|write| {
                let mut lines = write.open_table(LINES)?;
                let mut ids = write.open_table(IDS)?;
                for (number, place, (key, kind)) in &group {
                    let (key, twin) = name(&mut ids, *number, key)?;
                    lines.insert(number, Line { place: *place, kind: *kind, twin, key }.to_row())?;
                }
                let mut table = write.open_table(KINDS)?;
                for (text, number) in &kinds.0 {
                    table.insert(number, text.as_str())?;
                }
                Ok(())
            })?;
            failpoint::pass("intake");
        }
        journal.fill(|write| set_fact(write, Fact::Total, total))?;
        Ok(hex(reader.digest))
    }

    /// What a line is called and which sandbox it needs.
    fn survey(
        &self,
        number: u64,
        place: Place,
        text: &[u8],
        policies: &Policies,
        kinds: &mut Kinds,
    ) -> (JobKey, Option<u32>) {
        let made_up = || format!("{}line-{number}", self.prefix);
        let whose = self.defaults.tenant.as_deref().unwrap_or(TENANT);
        let job = if place.length > LONGEST_LINE { None } else { self.decode(number, text).ok() };
        let Some(job) = job else { return (JobKey::new(whose, made_up()), None) };
        // A name that is no name is refused later, under one that is.
        let tenant = job.tenant.clone().filter(|tenant| is_name(tenant)).unwrap_or_else(|| whose.to_owned());
        let id = job.id.clone().filter(|id| is_name(id)).unwrap_or_else(made_up);
        let origin =
            Origin { id: id.clone(), tenant: tenant.clone(), attempt: 1, queued: std::time::Duration::ZERO };
        let policy = policies.of(&tenant);
        let kind = admit(job, origin, policy).ok().and_then(|assignment| kinds.number(&assignment.want));
        (JobKey::new(tenant, id), kind)
    }
}

/// Kinds, numbered in the order in which they appear.
#[derive(Debug, Default)]
struct Kinds(HashMap<String, u32>);

impl Kinds {
    fn number(&mut self, want: &Want) -> Option<u32> {
        let (image, owner) = (want.image.to_string(), want.owner.clone());
        let kind = Kind { tier: want.tier, image, limits: want.limits, owner };
        let text = serde_json::to_string(&kind).ok()?;
        let next = self.0.len();
        if next >= KINDS_MOST {
            return self.0.get(&text).copied();
        }
        Some(*self.0.entry(text).or_insert(next as u32))
    }
}

/// The lines of the file, without their ends.
struct Lines {
    reader: BufReader<File>,
    digest: Sha256,
    offset: u64,
    number: u64,
}

impl Lines {
    /// The next line; of one that is too long, only its length.
    fn next(&mut self) -> io::Result<Option<(u64, Place, Vec<u8>)>> {
        let (mut text, mut length, mut ended) = (Vec::new(), 0_u64, false);
        while !ended {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            ended = end.is_some();
            let line = &chunk[..end.unwrap_or(chunk.len())];
            length += line.len() as u64;
            if length <= LONGEST_LINE {
                text.extend_from_slice(line);
            }
            let used = line.len() + usize::from(ended);
            self.digest.update(&chunk[..used]);
            self.reader.consume(used);
        }
        if length == 0 && !ended {
            return Ok(None);
        }
        self.number += 1;
        let place = Place { offset: self.offset, length };
        self.offset += length + u64::from(ended);
        Ok(Some((self.number, place, text)))
    }
}

/// Finds a name that no line before has. One that repeats another's gets a name of its own, and its twin is told.
fn name(
    ids: &mut Table<'_, &str, u64>,
    number: u64,
    key: &JobKey,
) -> Result<(String, Option<u64>), redb::Error> {
    let wanted = key.to_string();
    let first = ids.get(wanted.as_str())?.map(|line| line.value());
    let Some(first) = first else {
        ids.insert(wanted.as_str(), number)?;
        return Ok((wanted, None));
    };
    let mut tries = (0..).map(|n| match n {
        0 => format!("{}/line-{number}", key.tenant),
        n => format!("{}/line-{number}.{n}", key.tenant),
    });
    loop {
        let Some(name) = tries.next() else { continue };
        let taken = ids.get(name.as_str())?.is_some();
        if !taken {
            ids.insert(name.as_str(), number)?;
            return Ok((name, Some(first)));
        }
    }
}

fn left(journal: &Journal) -> Result<Left, JournalError> {
    // A crash may have come between a job's result and the end of its line.
    let total = journal.fill(|write| {
        let jobs = write.open_table(JOBS)?;
        let mut trouble = None;
        write.open_table(LINES)?.retain(|_, row| match jobs.get(Line::from_row(row).key.as_str()) {
            Ok(known) => !matches!(known.map(|row| Record::from_row(row.value())), Some(Record::Over { .. })),
            Err(error) => {
                trouble = Some(error);
                true
            }
        })?;
        trouble.map_or_else(|| fact(write, Fact::Total), |error| Err(error.into()))
    })?;
    journal.read(|read| {
        let mut left = Left { total, ..Left::default() };
        for row in read.open_table(KINDS)?.iter()? {
            let (number, text) = row?;
            let Ok(Kind { tier, image, limits, owner }) = serde_json::from_str(text.value()) else {
                continue;
            };
            if let Ok(image) = image.parse() {
                left.kinds.insert(number.value(), Want { tier, image, limits, owner });
            }
        }
        for row in read.open_table(LINES)?.iter()? {
            let (_, row) = row?;
            *left.waiting.entry(Line::from_row(row.value()).kind).or_default() += 1;
        }
        Ok(left)
    })
}

/// A job that lacks nothing but an image.
fn with_image(line: &[u8], image: &str) -> Option<Job> {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).ok()?;
    if fields.contains_key("image") {
        return None;
    }
    fields.insert("image".to_owned(), image.into());
    serde_json::from_value(fields.into()).ok()
}

fn hex(digest: Sha256) -> String {
    use std::fmt::Write;
    digest.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

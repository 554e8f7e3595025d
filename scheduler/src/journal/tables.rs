//! The tables of a batch's database, and what their rows mean.

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use worker::Outcome;

use crate::{outcomes, results::Place};

/// The format of the whole folder.
pub(super) const VERSION: u64 = 1;

type LineRow<'a> = (u64, u64, u32, u64, &'a str);
type JobRow = (u8, u32, u8, u64, u64);

/// Lines of the jobs file that are left: number → where it lies, its kind, its twin, its job.
pub(crate) const LINES: TableDefinition<'_, u64, LineRow<'_>> = TableDefinition::new("lines");
/// Jobs that are not merely waiting.
pub(crate) const JOBS: TableDefinition<'_, &str, JobRow> = TableDefinition::new("jobs");
/// Which line each job is on.
pub(crate) const IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("ids");
/// Kinds of sandboxes, as JSON.
pub(crate) const KINDS: TableDefinition<'_, u32, &str> = TableDefinition::new("kinds");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");

/// A number that is known of the batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fact {
    /// The format.
    Version,
    /// How often it was opened.
    Openings,
    /// How much of the results file is known to be durable.
    Durable,
    /// No line after this one has been given to anybody.
    Horizon,
    /// Lines that were taken in; 0 until all were.
    Total,
}

impl Fact {
    fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Openings => "openings",
            Self::Durable => "durable",
            Self::Horizon => "horizon",
            Self::Total => "total",
        }
    }
}

/// Makes the tables, so that a reader never misses one.
pub(super) fn make(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(LINES)?;
    write.open_table(JOBS)?;
    write.open_table(IDS)?;
    write.open_table(KINDS)?;
    write.open_table(FACTS)?;
    write.open_table(TEXTS)?;
    Ok(())
}

pub(crate) fn fact(write: &WriteTransaction, fact: Fact) -> Result<u64, redb::Error> {
    let facts = write.open_table(FACTS)?;
    Ok(facts.get(fact.name())?.map_or(0, |value| value.value()))
}

pub(crate) fn set_fact(write: &WriteTransaction, fact: Fact, value: u64) -> Result<(), redb::Error> {
    write.open_table(FACTS)?.insert(fact.name(), value)?;
    Ok(())
}

pub(crate) fn text(write: &WriteTransaction, name: &str) -> Result<Option<String>, redb::Error> {
    let texts = write.open_table(TEXTS)?;
    Ok(texts.get(name)?.map(|value| value.value().to_owned()))
}

pub(crate) fn set_text(write: &WriteTransaction, name: &str, value: &str) -> Result<(), redb::Error> {
    write.open_table(TEXTS)?.insert(name, value)?;
    Ok(())
}

/// A line of the jobs file that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) place: Place,
    /// Its row in [`KINDS`]; `None` if it is no job.
    pub(crate) kind: Option<u32>,
    /// The earlier line with the same id.
    pub(crate) twin: Option<u64>,
    pub(crate) key: String,
}

impl Line {
    pub(crate) fn from_row((offset, length, kind, twin, key): LineRow<'_>) -> Self {
        Self {
            place: Place { offset, length },
            kind: (kind != u32::MAX).then_some(kind),
            twin: (twin != 0).then_some(twin),
            key: key.to_owned(),
        }
    }

    pub(crate) fn to_row(&self) -> LineRow<'_> {
        let Place { offset, length } = self.place;
        (offset, length, self.kind.unwrap_or(u32::MAX), self.twin.unwrap_or(0), &self.key)
    }
}

/// What is known of a job that is not merely waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// It was started `number` times that count (0: never), and has no result.
    Begun { number: u32, cancelled: bool },
    /// It has its result.
    Over { number: u32, outcome: Outcome, place: Place },
}

impl Record {
    pub(crate) fn from_row((state, number, outcome, offset, length): JobRow) -> Self {
        match state {
            0 => Self::Begun { number, cancelled: outcome != 0 },
            _ => Self::Over { number, outcome: outcomes::at(outcome), place: Place { offset, length } },
        }
    }

    pub(crate) fn to_row(self) -> JobRow {
        match self {
            Self::Begun { number, cancelled } => (0, number, u8::from(cancelled), 0, 0),
            Self::Over { number, outcome, place } => {
                (1, number, outcomes::index(outcome) as u8, place.offset, place.length)
            }
        }
    }

    /// Sets the attempt that a job has reached, unless it is over.
    pub(crate) fn begin(
        jobs: &mut Table<'_, &str, JobRow>,
        key: &str,
        number: u32,
    ) -> Result<(), redb::Error> {
        let known = jobs.get(key)?.map(|row| Self::from_row(row.value()));
        let cancelled = match known {
            Some(Self::Over { .. }) => return Ok(()),
            Some(Self::Begun { cancelled, .. }) => cancelled,
            None => false,
        };
        jobs.insert(key, Self::Begun { number, cancelled }.to_row())?;
        Ok(())
    }
}

//! Brings a batch's state up to date with what the process before left: results, starts, and after another boot what
//! may have been started.

use std::collections::HashMap;

use redb::{Database, ReadableTable};

use super::tables::{self, Fact, JOBS, LINES, Line, Record, fact, set_fact, set_text, text};
use crate::{
    key::JobKey,
    results::{ResultsError, ResultsFile, Seen},
};

/// Why the state cannot be brought up to date.
pub(super) enum Recovery {
    Database(redb::Error),
    Results(ResultsError),
    Version(u64),
}

impl<E: Into<redb::Error>> From<E> for Recovery {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

/// What is found out while opening.
pub(super) struct Facts {
    pub(super) openings: u64,
}

/// Marks what the results file has, what the starts tell, and after another boot what may have started.
pub(super) fn recover(
    db: &Database,
    results: &mut ResultsFile,
    started: &HashMap<JobKey, u32>,
    boot: &str,
    each: &mut impl FnMut(&Seen<'_>),
) -> Result<Facts, Recovery> {
    let write = db.begin_write()?;
    tables::make(&write)?;
    let version = fact(&write, Fact::Version)?;
    if !matches!(version, 0 | tables::VERSION) {
        return Err(Recovery::Version(version));
    }
    set_fact(&write, Fact::Version, tables::VERSION)?;
    let openings = fact(&write, Fact::Openings)? + 1;
    set_fact(&write, Fact::Openings, openings)?;
    {
        let mut jobs = write.open_table(JOBS)?;
        for (job, number) in started {
            Record::begin(&mut jobs, &job.to_string(), *number)?;
        }
    }
    if text(&write, "boot")?.is_some_and(|last| last != boot) {
        presume_started(&write)?;
    }
    set_text(&write, "boot", boot)?;

    let durable = fact(&write, Fact::Durable)?;
    let mut trouble = None;
    let recovered = {
        let mut jobs = write.open_table(JOBS)?;
        // A state that is new knows of no crash: the file is of a batch that was over.
        results.recover(durable, openings == 1, |place, seen| {
            each(seen);
            if place.offset >= durable && trouble.is_none() {
                let key = JobKey::new(&*seen.tenant, &*seen.id).to_string();
                let over = Record::Over { number: seen.attempt, outcome: seen.outcome, place };
                trouble = jobs.insert(key.as_str(), over.to_row()).err();
            }
            Ok(())
        })
    };
    if let Some(error) = trouble {
        return Err(error.into());
    }
    let cut = recovered.map_err(Recovery::Results)?;
    if cut > 0 {
        tracing::info!(cut, "cut what a crash had torn off the results file");
    }
    results.sync().map_err(Recovery::Results)?;
    set_fact(&write, Fact::Durable, results.length())?;
    write.commit()?;
    Ok(Facts { openings })
}

/// After another boot nobody knows how far the last one came: up to the horizon everything counts as started.
fn presume_started(write: &redb::WriteTransaction) -> Result<(), redb::Error> {
    let horizon = fact(write, Fact::Horizon)?;
    let lines = write.open_table(LINES)?;
    let mut jobs = write.open_table(JOBS)?;
    for row in lines.range(..=horizon)? {
        let (_, row) = row?;
        let line = Line::from_row(row.value());
        let known = jobs.get(line.key.as_str())?.map(|row| Record::from_row(row.value()));
        if matches!(known, None | Some(Record::Begun { number: 0, .. })) {
            Record::begin(&mut jobs, &line.key, 1)?;
        }
    }
    Ok(())
}

//! Reads the whole ledger of a node and says whether every generation was used at most once, and ended.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    LedgerError, directory,
    record::{Ended, Entry, Event, JobRef},
    recover::open_generations,
    segment::{Rest, Segment, segments},
};
use crate::id::{GenerationId, InstanceId};

/// What the ledger proves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Segments read.
    pub segments: usize,
    /// Generations that began.
    pub generations: usize,
    /// Those that served a job.
    pub consumed: usize,
    /// Those that ended.
    pub ended: usize,
    /// Those that live in a process that lives.
    pub alive: usize,
    /// What is wrong. Empty: each generation was consumed at most once, and each has ended or lives.
    pub findings: Vec<Finding>,
    /// What is not proved: records that a crash tore off. Not wrong, as no sandbox outlives a boot unproved.
    pub unproved: Vec<Unproved>,
}

/// A window of time of which the ledger says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unproved {
    /// The process that died.
    pub instance: InstanceId,
    /// Bytes that were cut.
    pub cut: u64,
    /// The time of its last whole record, in milliseconds since 1970.
    pub since: u64,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// One generation served two jobs.
    UsedTwice {
        /// Which.
        generation: GenerationId,
        /// The jobs, in the order of the record.
        jobs: Vec<JobRef>,
    },
    /// A generation was used, or ended, that never was clean.
    NeverClean {
        /// Which.
        generation: GenerationId,
    },
    /// A generation was used after its end.
    UsedAfterEnd {
        /// Which.
        generation: GenerationId,
    },
    /// A generation has no end, and its process is dead.
    NoEnd {
        /// Which.
        generation: GenerationId,
        /// Whose it was.
        instance: InstanceId,
    },
    /// A segment is damaged.
    Damaged {
        /// Which.
        path: PathBuf,
        /// Its first bad line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A segment is not what it was when it was recovered.
    Changed {
        /// Which.
        path: PathBuf,
    },
}

/// What happened with one job's sandboxes: entries of the ledger as they were written.
pub type Story = Vec<(u64, Event)>;

#[derive(Debug, Default)]
struct Life {
    clean: bool,
    jobs: Vec<JobRef>,
    ended: bool,
    used_after_end: bool,
}

/// Checks the whole ledger. `lives` tells whether a process still runs.
pub fn audit(data_dir: &Path, lives: impl Fn(InstanceId) -> bool) -> Result<Audit, LedgerError> {
    let segments = read_all(data_dir)?;
    let mut audit = Audit { segments: segments.len(), ..Audit::default() };
    let mut all: BTreeMap<GenerationId, Life> = BTreeMap::new();
    for entry in segments.iter().flat_map(|segment| &segment.entries) {
        note(&mut all, &entry.event);
    }
    let recoveries = recoveries(&segments);
    for segment in &segments {
        audit.check_segment(segment, &recoveries, lives(segment.instance), &all);
    }
    for (generation, life) in &all {
        audit.check_life(*generation, life);
    }
    Ok(audit)
}

fn note(all: &mut BTreeMap<GenerationId, Life>, event: &Event) {
    match event {
        Event::Clean { generation, .. } => all.entry(*generation).or_default().clean = true,
        Event::Consumed { generation, job } => {
            let life = all.entry(*generation).or_default();
            life.used_after_end |= life.ended;
            life.jobs.push(job.clone());
        }
        Event::Ended { generation, .. } => all.entry(*generation).or_default().ended = true,
        Event::Recovered { generations, .. } => {
            for generation in generations {
                all.entry(*generation).or_default().ended = true;
            }
        }
        Event::Opened { .. } | Event::Closed => {}
    }
}

/// The last recovery of each dead process: length, hash, cut.
fn recoveries(segments: &[Segment]) -> HashMap<InstanceId, (u64, &str, u64)> {
    let mut found = HashMap::new();
    for entry in segments.iter().flat_map(|segment| &segment.entries) {
        if let Event::Recovered { instance, length, cut, hash, .. } = &entry.event {
            // A second recovery of one segment finds nothing to cut: what the first one cut stays said.
            let before = found.get(instance).map_or(0, |(_, _, cut)| *cut);
            found.insert(*instance, (*length, hash.as_str(), before + cut));
        }
    }
    found
}

impl Audit {
    fn check_segment(
        &mut self,
        segment: &Segment,
        recoveries: &HashMap<InstanceId, (u64, &str, u64)>,
        lives: bool,
        all: &BTreeMap<GenerationId, Life>,
    ) {
        let path = segment.path.clone();
        let recovery = recoveries.get(&segment.instance);
        match (&segment.rest, recovery) {
            (Rest::Damage { line, what }, _) => {
                self.findings.push(Finding::Damaged { path, line: *line, what: what.clone() });
            }
            (_, Some((length, hash, _))) if *length != segment.length || *hash != segment.chain.as_str() => {
                self.findings.push(Finding::Changed { path });
            }
            _ => {}
        }
        if let Some((_, _, cut)) = recovery.filter(|(_, _, cut)| *cut > 0) {
            let since = segment.entries.last().map_or(0, |entry| entry.at);
            self.unproved.push(Unproved { instance: segment.instance, cut: *cut, since });
        }
        for generation in open_generations(segment) {
            if all.get(&generation).is_some_and(|life| life.ended) {
                continue;
            }
            if lives {
                self.alive += 1;
            } else {
                self.findings.push(Finding::NoEnd { generation, instance: segment.instance });
            }
        }
    }

    fn check_life(&mut self, generation: GenerationId, life: &Life) {
        self.generations += usize::from(life.clean);
        self.consumed += usize::from(!life.jobs.is_empty());
        self.ended += usize::from(life.ended);
        if !life.clean {
            self.findings.push(Finding::NeverClean { generation });
        }
        if life.used_after_end {
            self.findings.push(Finding::UsedAfterEnd { generation });
        }
        if life.jobs.len() > 1 {
            self.findings.push(Finding::UsedTwice { generation, jobs: life.jobs.clone() });
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }
}

/// All that the ledger says of one job: its generations from clean to end, in the order of time.
pub fn story(data_dir: &Path, job: &str) -> Result<Story, LedgerError> {
    let segments = read_all(data_dir)?;
    let entries = || segments.iter().flat_map(|segment| &segment.entries);
    let generations: Vec<GenerationId> = entries()
        .filter_map(|entry| match &entry.event {
            Event::Consumed { generation, job: consumer } if consumer.id == job => Some(*generation),
            _ => None,
        })
        .collect();
    let mut story: Story = entries()
        .filter(|Entry { event, .. }| match event {
            Event::Clean { generation, .. } | Event::Consumed { generation, .. } | Event::Ended { generation, .. } => {
                generations.contains(generation)
            }
            Event::Recovered { generations: ended, .. } => ended.iter().any(|one| generations.contains(one)),
            Event::Opened { .. } | Event::Closed => false,
        })
        .map(|entry| (entry.at, entry.event.clone()))
        .collect();
    story.sort_by_key(|(at, _)| *at);
    Ok(story)
}

fn read_all(data_dir: &Path) -> Result<Vec<Segment>, LedgerError> {
    let directory = directory(data_dir);
    let unreadable = |path: &Path, error: io::Error| LedgerError::Read { path: path.to_owned(), error };
    segments(&directory)
        .map_err(|error| unreadable(&directory, error))?
        .into_iter()
        .map(|(instance, path)| Segment::read(&path, instance).map_err(|error| unreadable(&path, error)))
        .collect()
}

impl Ended {
    /// The word in the ledger.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Destroyed => "destroyed",
            Self::Reverted => "reverted",
            Self::Quarantined => "quarantined",
        }
    }
}

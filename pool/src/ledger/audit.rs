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
use crate::{
    id::{GenerationId, InstanceId},
    reaper,
};

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
    /// The end of a dead process's segment is torn or changed, and nobody has recovered it.
    Torn {
        /// Which.
        path: PathBuf,
        /// Bytes behind its last whole record.
        bytes: u64,
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

/// Checks the whole ledger of a node whose live processes are marked in `run_dir`.
pub fn audit(data_dir: &Path, run_dir: &Path) -> Result<Audit, LedgerError> {
    check(data_dir, |instance| reaper::lives(run_dir, instance))
}

fn check(data_dir: &Path, lives: impl Fn(InstanceId) -> bool) -> Result<Audit, LedgerError> {
    let segments = read_all(data_dir)?;
    let mut audit = Audit { segments: segments.len(), ..Audit::default() };
    let mut all: BTreeMap<GenerationId, Life> = BTreeMap::new();
    let events = || segments.iter().flat_map(|segment| &segment.entries).map(|entry| &entry.event);
    // A recovery stands in another segment than what it recovers, and comes after all of it.
    let recovers = |event: &&Event| matches!(event, Event::Recovered { .. });
    events().filter(|event| !recovers(event)).for_each(|event| note(&mut all, event));
    events().filter(recovers).for_each(|event| note(&mut all, event));
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
            // Only the last segment of a dead process was recovered; those before it were closed.
            (_, Some((length, hash, _)))
                if !segment.closed() && (*length != segment.length || *hash != segment.chain.as_str()) =>
            {
                self.findings.push(Finding::Changed { path });
            }
            (Rest::Torn(bytes), None) if !lives => self.findings.push(Finding::Torn { path, bytes: *bytes }),
            _ => {}
        }
        if let Some((_, _, cut)) = recovery.filter(|(_, _, cut)| *cut > 0) {
            let since = segment.entries.last().map_or(0, |entry| entry.at);
            self.unproved.push(Unproved { instance: segment.instance, cut: *cut, since });
        }
        for generation in open_generations(std::slice::from_ref(segment)) {
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
            Event::Clean { generation, .. }
            | Event::Consumed { generation, .. }
            | Event::Ended { generation, .. } => generations.contains(generation),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        id::Id,
        ledger::record::{Chain, Entry},
        tier::Tier,
    };

    /// A ledger of one segment with these events.
    struct Planted {
        dir: tempfile::TempDir,
        instance: InstanceId,
        lines: Vec<String>,
    }

    impl Planted {
        fn new(events: Vec<Event>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let instance = Id::random();
            let mut chain = Chain::default();
            let mut lines = Vec::new();
            let opened = Event::Opened { instance, boot: "b".to_owned() };
            for event in std::iter::once(opened).chain(events) {
                let (line, next) = chain.line(&Entry { at: 1, event });
                lines.push(line);
                chain = next;
            }
            let planted = Self { dir, instance, lines };
            planted.write(&planted.lines.concat());
            planted
        }

        fn path(&self) -> PathBuf {
            directory(self.dir.path()).join(format!("{}-000000.log", self.instance))
        }

        fn write(&self, text: &str) {
            fs::create_dir_all(directory(self.dir.path())).unwrap();
            fs::write(self.path(), text).unwrap();
        }

        fn findings(&self, lives: bool) -> Vec<Finding> {
            check(self.dir.path(), |_| lives).unwrap().findings
        }
    }

    fn clean(generation: Id) -> Event {
        Event::Clean { generation, tier: Tier::Chroot, image: "minimal@sha256:0".to_owned() }
    }

    fn consumed(generation: Id, job: &str) -> Event {
        Event::Consumed { generation, job: JobRef { id: job.to_owned(), tenant: "t".to_owned(), attempt: 1 } }
    }

    fn ended(generation: Id) -> Event {
        Event::Ended { generation, how: Ended::Destroyed }
    }

    fn whole_life(generation: Id, job: &str) -> Vec<Event> {
        vec![clean(generation), consumed(generation, job), ended(generation)]
    }

    #[test]
    fn whole_lives_pass_and_are_counted() {
        let mut events = whole_life(Id::random(), "a");
        events.extend(whole_life(Id::random(), "b"));
        events.extend([clean(Id::random())].into_iter().flat_map(|event| {
            let Event::Clean { generation, .. } = event else { unreachable!() };
            vec![event, ended(generation)]
        }));
        events.push(Event::Closed);
        let planted = Planted::new(events);
        let audit = check(planted.dir.path(), |_| false).unwrap();
        assert!(audit.passed(), "{audit:?}");
        assert_eq!((audit.generations, audit.consumed, audit.ended), (3, 2, 3));
    }

    #[test]
    fn a_generation_that_is_used_twice_is_found() {
        let generation = Id::random();
        let planted = Planted::new(vec![
            clean(generation),
            consumed(generation, "a"),
            consumed(generation, "b"),
            ended(generation),
        ]);
        assert!(matches!(&planted.findings(false)[..], [Finding::UsedTwice { jobs, .. }] if jobs.len() == 2));
    }

    #[test]
    fn a_generation_that_is_used_after_its_end_is_found() {
        let generation = Id::random();
        let planted = Planted::new(vec![clean(generation), ended(generation), consumed(generation, "a")]);
        assert!(planted.findings(true).contains(&Finding::UsedAfterEnd { generation }));
    }

    #[test]
    fn a_missing_end_is_found_unless_its_process_lives() {
        let generation = Id::random();
        let planted = Planted::new(vec![clean(generation), consumed(generation, "a")]);
        assert_eq!(planted.findings(true), []);
        assert_eq!(planted.findings(false), [Finding::NoEnd { generation, instance: planted.instance }]);
    }

    #[test]
    fn a_flipped_byte_is_found_wherever_it_is_in_a_closed_segment() {
        let mut events = whole_life(Id::random(), "a");
        events.push(Event::Closed);
        let planted = Planted::new(events);
        let whole = planted.lines.concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 0x01;
            fs::write(planted.path(), &bytes).unwrap();
            assert!(!planted.findings(false).is_empty(), "byte {at} of {}", whole.len());
        }
    }

    #[test]
    fn a_crash_that_is_read_after_its_recovery_is_no_second_use() {
        // Segments are read in the order of their random names: both orders must come out the same.
        for _ in 0..16 {
            let generation = Id::random();
            let crashed = Planted::new(vec![clean(generation), consumed(generation, "a")]);
            let (length, chain) =
                crashed.lines.iter().fold((0, Chain::default()), |(length, chain), line| {
                    (length + line.len() as u64, chain.read(line.trim_end()).unwrap().1)
                });
            let recovered = Planted::new(vec![
                Event::Recovered {
                    instance: crashed.instance,
                    generations: vec![generation],
                    length,
                    cut: 0,
                    hash: chain.as_str().to_owned(),
                },
                Event::Closed,
            ]);
            let beside = directory(crashed.dir.path()).join(recovered.path().file_name().unwrap());
            fs::copy(recovered.path(), beside).unwrap();
            assert_eq!(crashed.findings(false), []);
        }
    }

    #[test]
    fn a_removed_line_is_found() {
        let planted = Planted::new(whole_life(Id::random(), "a"));
        let mut lines = planted.lines.clone();
        lines.remove(1);
        planted.write(&lines.concat());
        assert!(matches!(planted.findings(false)[..], [Finding::Damaged { line: 2, .. }, ..]));
    }

    #[test]
    fn the_story_of_a_job_is_its_generations_from_clean_to_end() {
        let mut events = whole_life(Id::random(), "a");
        events.extend(whole_life(Id::random(), "b"));
        let planted = Planted::new(events);
        let story = story(planted.dir.path(), "b").unwrap();
        assert!(matches!(
            story.iter().map(|(_, event)| event).collect::<Vec<_>>()[..],
            [Event::Clean { .. }, Event::Consumed { .. }, Event::Ended { .. }]
        ));
    }
}

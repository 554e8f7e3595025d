//! What is going on right now, for whoever asks: counts, and the jobs that run. Its size depends on how many jobs
//! run at once and on nothing else.

mod recent;

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use pool::Tier;
use serde::{Deserialize, Serialize};
use worker::{Canceller, JobResult, Phase, Progress};

pub(crate) use self::recent::Recent;
pub use self::recent::{EndedJob, PhaseNow};
use crate::{key::JobKey, tally::Tally};

/// The live state of a dispatcher.
#[derive(Debug, Default)]
pub struct Board {
    running: Mutex<HashMap<JobKey, Entry>>,
    tally: Mutex<Tally>,
    recent: Mutex<Recent>,
    retries: AtomicU64,
    stale: AtomicU64,
}

/// What the board holds of a job that runs.
#[derive(Debug)]
pub(crate) struct Entry {
    tier: Tier,
    image: String,
    attempt: u32,
    since: Instant,
    progress: Progress,
    canceller: Canceller,
    /// Whether somebody asked for just this job to end.
    cancelled: bool,
}

impl Entry {
    pub(crate) fn new(
        (tier, image): (Tier, String),
        attempt: u32,
        progress: Progress,
        canceller: Canceller,
    ) -> Self {
        Self { tier, image, attempt, since: Instant::now(), progress, canceller, cancelled: false }
    }
}

/// A job that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningJob {
    /// Which.
    pub job: JobKey,
    /// How its sandbox is isolated.
    pub tier: Tier,
    /// Which part of its story it is in.
    pub phase: Phase,
    /// Which start of it, from 1.
    pub attempt: u32,
    /// How long it has had its slot.
    pub elapsed_us: u64,
    /// What it runs in, as it asked for it: `name`, or `name@sha256:…`.
    #[serde(default)]
    pub image: String,
    /// How long each phase took that it has reached; the last one goes on.
    #[serde(default)]
    pub times_us: Vec<(Phase, u64)>,
    /// What it waits for, though it has its slot.
    #[serde(default)]
    pub waits_for: Option<String>,
}

/// A job is on the board until this is dropped.
#[derive(Debug)]
pub(crate) struct Posted<'a> {
    board: &'a Board,
    job: &'a JobKey,
}

impl Board {
    pub(crate) fn post<'a>(&'a self, job: &'a JobKey, entry: Entry) -> Posted<'a> {
        self.running().insert(job.clone(), entry);
        Posted { board: self, job }
    }

    /// The jobs that run, longest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<RunningJob> {
        let mut jobs: Vec<RunningJob> = self
            .running()
            .iter()
            .map(|(job, entry)| RunningJob {
                job: job.clone(),
                tier: entry.tier,
                phase: entry.progress.phase(),
                attempt: entry.attempt,
                elapsed_us: entry.since.elapsed().as_micros() as u64,
                image: entry.image.clone(),
                times_us: entry.progress.times(),
                waits_for: None,
            })
            .collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.elapsed_us));
        jobs
    }

    /// Asks one running job to end. Whether it runs.
    pub(crate) fn cancel(&self, job: &JobKey) -> bool {
        let mut running = self.running();
        let Some(entry) = running.get_mut(job) else { return false };
        entry.cancelled = true;
        entry.canceller.politely();
        true
    }

    /// Asks every running job to end.
    pub(crate) fn cancel_all(&self, at_once: bool) {
        for entry in self.running().values() {
            if at_once { entry.canceller.at_once() } else { entry.canceller.politely() }
        }
    }

    pub(crate) fn is_cancelled(&self, job: &JobKey) -> bool {
        self.running().get(job).is_some_and(|entry| entry.cancelled)
    }

    pub(crate) fn count(&self, result: &JobResult) {
        self.tally_mut().count(result);
        self.recent().note(result);
    }

    /// What became of the latest jobs.
    pub(crate) fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn preset(&self, tally: Tally) {
        *self.tally_mut() = tally;
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused_late(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }

    /// Results so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally_mut().clone()
    }

    /// How many results there are so far.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.tally_mut().total()
    }

    /// How often a job was given another sandbox after a failure of ours.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Results that came too late to count.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<JobKey, Entry>> {
        // Nothing panics between two halves of a change.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally_mut(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        self.board.running().remove(self.job);
    }
}

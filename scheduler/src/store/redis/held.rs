//! What this process holds, in its own memory: the truth about itself, against which Redis' account is checked.
//!
//! Attempts that are under way, questions that may have begun one, claims; and for a short while how attempts ended,
//! because a Redis that was not told to write each answer to disk forgets its last second when it crashes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use worker::Outcome;

use crate::key::{BodyDigest, JobKey};

/// How long after its end an attempt is remembered, counted while Redis answers. Redis writes to disk each second,
/// unless told otherwise, and a slow disk may take two.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Bytes of results that are remembered at most.
const REMEMBERED_BYTES: usize = 64 * 1024 * 1024;

/// An attempt that is under way here.
#[derive(Debug, Clone)]
pub(super) struct Underway {
    pub(super) token: String,
    pub(super) digest: BodyDigest,
    pub(super) number: u32,
}

/// An attempt that has ended here.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) job: JobKey,
    pub(super) epoch: u64,
    pub(super) number: u32,
    pub(super) digest: Option<BodyDigest>,
    pub(super) end: End,
    at: Instant,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// With the job's result.
    Result { outcome: Outcome, json: Arc<[u8]> },
    /// As if it had never been.
    Released,
}

impl Ended {
    pub(super) fn now(job: JobKey, epoch: u64, number: u32, digest: Option<BodyDigest>, end: End) -> Self {
        Self { job, epoch, number, digest, end, at: Instant::now() }
    }

    fn bytes(&self) -> usize {
        match &self.end {
            End::Result { json, .. } => json.len(),
            End::Released => 0,
        }
    }
}

/// What this process holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    underway: HashMap<(JobKey, u64), Underway>,
    ended: VecDeque<Ended>,
    ended_bytes: usize,
    claims: HashMap<JobKey, u64>,
    /// Tokens of questions whose answer has not come yet.
    asking: HashSet<String>,
}

/// A question that is being asked. Until this is dropped, what it may have brought about counts as held.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    held: &'a Held,
    pub(super) token: String,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.held.lock().asking.remove(&self.token);
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics between two halves of a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a question before it is sent.
    pub(super) fn asking(&self) -> Asking<'_> {
        let token = pool::Id::random().to_string();
        self.lock().asking.insert(token.clone());
        Asking { held: self, token }
    }

    pub(super) fn begun(&self, job: JobKey, epoch: u64, underway: Underway) {
        self.lock().underway.insert((job, epoch), underway);
    }

    pub(super) fn underway(&self, job: &JobKey, epoch: u64) -> Option<Underway> {
        self.lock().underway.get(&(job.clone(), epoch)).cloned()
    }

    pub(super) fn all_underway(&self) -> Vec<((JobKey, u64), Underway)> {
        self.lock().underway.iter().map(|(which, underway)| (which.clone(), underway.clone())).collect()
    }

    pub(super) fn jobs(&self) -> usize {
        self.lock().underway.len()
    }

    /// The attempt is over, and Redis knows how it ended.
    pub(super) fn ended(&self, ended: Ended) {
        let mut inner = self.lock();
        inner.underway.remove(&(ended.job.clone(), ended.epoch));
        inner.ended_bytes += ended.bytes();
        inner.ended.push_back(ended);
        while inner.ended_bytes > REMEMBERED_BYTES
            && let Some(oldest) = inner.ended.pop_front()
        {
            inner.ended_bytes -= oldest.bytes();
        }
    }

    /// The attempt is over, and its end changed nothing.
    pub(super) fn dropped(&self, job: &JobKey, epoch: u64) {
        self.lock().underway.remove(&(job.clone(), epoch));
    }

    pub(super) fn lately_ended(&self) -> Vec<Ended> {
        self.lock().ended.iter().cloned().collect()
    }

    /// Redis answers: what it has known for long enough it will not forget.
    pub(super) fn forget_ended(&self) {
        let mut inner = self.lock();
        while inner.ended.front().is_some_and(|ended| ended.at.elapsed() > REMEMBERED)
            && let Some(oldest) = inner.ended.pop_front()
        {
            inner.ended_bytes -= oldest.bytes();
        }
    }

    pub(super) fn claimed(&self, job: JobKey, epoch: u64) {
        self.lock().claims.insert(job, epoch);
    }

    pub(super) fn unclaimed(&self, job: &JobKey, epoch: u64) {
        let mut inner = self.lock();
        if inner.claims.get(job) == Some(&epoch) {
            inner.claims.remove(job);
        }
    }

    /// Whether Redis' account of an attempt is known here.
    pub(super) fn knows_attempt(&self, job: &JobKey, epoch: u64, token: &str) -> bool {
        let inner = self.lock();
        inner.asking.contains(token) || inner.underway.contains_key(&(job.clone(), epoch))
    }

    /// Whether Redis' account of a claim is known here.
    pub(super) fn knows_claim(&self, job: &JobKey, epoch: u64, token: &str) -> bool {
        let inner = self.lock();
        inner.asking.contains(token) || inner.claims.get(job) == Some(&epoch)
    }
}

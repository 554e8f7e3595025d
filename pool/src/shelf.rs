//! The clean sandboxes of one kind that wait, and the jobs that wait for one.
//!
//! Bookkeeping only: no clock of its own, no input or output. It is generic over the sandbox and over who
//! waits, so that a model can drive it.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::sizing::Demand;

/// The first pause after a failed making, doubled for each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One kind of sandbox: same tier, same image, same limits.
#[derive(Debug)]
pub(crate) struct Shelf<S, W> {
    ready: VecDeque<(S, Instant)>,
    waiting: VecDeque<W>,
    pub(crate) demand: Demand,
    ahead: Ahead,
    counts: Counts,
    failures: u32,
    pause_until: Option<Instant>,
}

/// Whether sandboxes of a kind are made before a job asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// As many as the demand says, and never fewer than this.
    AtLeast(usize),
    /// None: each is made for one job.
    Never,
}

/// How many sandboxes of a kind are in which state, those that wait apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) making: usize,
    pub(crate) leased: usize,
    /// Given up before any job saw them, and not gone yet.
    pub(crate) ending: usize,
    /// Could not be destroyed. They hold their place: capacity shrinks rather than lies.
    pub(crate) quarantined: usize,
}

/// What a sandbox that is not on the shelf any more is counted as, until it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Leased,
    Ending,
}

/// What to do with a sandbox that has just been made.
#[derive(Debug)]
pub(crate) enum Made<S, W> {
    /// Give it to the job that waits longest.
    Give(W, S),
    /// It waits.
    Shelved,
}

impl<S, W> Shelf<S, W> {
    pub(crate) fn new(ahead: Ahead) -> Self {
        Self {
            ahead,
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            demand: Demand::new(),
            counts: Counts::default(),
            failures: 0,
            pause_until: None,
        }
    }

    /// Takes the sandbox that has waited longest and passes `fit`; gives the unfit ones back to be destroyed.
    pub(crate) fn take(&mut self, fit: impl Fn(&mut S) -> bool) -> (Option<S>, Vec<S>) {
        let mut unfit = Vec::new();
        while let Some((mut sandbox, _)) = self.ready.pop_front() {
            if fit(&mut sandbox) {
                self.counts.leased += 1;
                return (Some(sandbox), unfit);
            }
            self.counts.ending += 1;
            unfit.push(sandbox);
        }
        (None, unfit)
    }

    /// A job waits, behind all that wait already.
    pub(crate) fn wait(&mut self, waiter: W) {
        self.waiting.push_back(waiter);
    }

    /// A sandbox is being made.
    pub(crate) fn making(&mut self) {
        self.counts.making += 1;
    }

    /// A making succeeded.
    pub(crate) fn made(&mut self, sandbox: S, now: Instant, took: Duration) -> Made<S, W> {
        self.counts.making -= 1;
        self.failures = 0;
        self.pause_until = None;
        self.demand.refilled(took);
        self.shelve(sandbox, now)
    }

    /// Gives a clean sandbox to who waits longest, or lets it wait. Also for one whose job went away before it
    /// was told: no job has seen it.
    pub(crate) fn shelve(&mut self, sandbox: S, now: Instant) -> Made<S, W> {
        let Some(waiter) = self.waiting.pop_front() else {
            self.ready.push_back((sandbox, now));
            return Made::Shelved;
        };
        self.counts.leased += 1;
        Made::Give(waiter, sandbox)
    }

    /// Whether the last making failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// A making failed: making pauses, longer each time, and who waits longest is told.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<W> {
        self.counts.making -= 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.pause_until = Some(now + pause);
        self.waiting.pop_front()
    }

    /// One that was held is gone, or could not be destroyed.
    pub(crate) fn ended(&mut self, held: Held, quarantined: bool) {
        match held {
            Held::Leased => self.counts.leased -= 1,
            Held::Ending => self.counts.ending -= 1,
        }
        self.counts.quarantined += usize::from(quarantined);
    }

    /// From now on this many wait even when no job comes.
    pub(crate) fn keep(&mut self, idle_count: usize) {
        self.ahead = Ahead::AtLeast(idle_count);
    }

    /// How many should wait at `now`.
    pub(crate) fn target(&self, now: Instant, idle_time: Duration) -> usize {
        match self.ahead {
            Ahead::AtLeast(idle_count) => self.demand.target(now, idle_count, idle_time),
            Ahead::Never => 0,
        }
    }

    /// How many may wait at `now`. A little above the target may stay: making and ending in turns helps nobody.
    pub(crate) fn ceiling(&self, now: Instant, idle_time: Duration) -> usize {
        let target = self.target(now, idle_time);
        match self.ahead {
            Ahead::AtLeast(idle_count) if target > idle_count => 2 * target,
            _ => target,
        }
    }

    /// How many more should be made now to reach `target` and serve who waits.
    pub(crate) fn wanted(&self, target: usize, now: Instant) -> usize {
        if self.pause_until.is_some_and(|until| now < until) {
            return 0;
        }
        (target + self.waiting.len()).saturating_sub(self.ready.len() + self.counts.making)
    }

    /// Takes out those that have waited for longer than `ttl`, that do not pass `fit`, or that are more than
    /// `keep`: they are to be ended.
    pub(crate) fn surplus(
        &mut self,
        now: Instant,
        ttl: Duration,
        keep: usize,
        fit: impl Fn(&mut S) -> bool,
    ) -> Vec<S> {
        let mut out = Vec::new();
        let mut stay = VecDeque::with_capacity(self.ready.len());
        let mut excess = self.ready.len().saturating_sub(keep);
        for (mut sandbox, since) in self.ready.drain(..) {
            if excess > 0 || now.duration_since(since) >= ttl || !fit(&mut sandbox) {
                excess = excess.saturating_sub(1);
                out.push(sandbox);
            } else {
                stay.push_back((sandbox, since));
            }
        }
        self.ready = stay;
        self.counts.ending += out.len();
        out
    }

    /// Every sandbox that waits, to be ended with the pool.
    pub(crate) fn clear(&mut self) -> (Vec<S>, Vec<W>) {
        self.counts.ending += self.ready.len();
        (self.ready.drain(..).map(|(sandbox, _)| sandbox).collect(), self.waiting.drain(..).collect())
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn horizon(&self) -> Duration {
        self.demand.horizon()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Everything of this kind that exists or is about to.
    pub(crate) fn total(&self) -> usize {
        let Counts { making, leased, ending, quarantined } = self.counts;
        self.ready.len() + making + leased + ending + quarantined
    }

    /// Whether the kind can be forgotten.
    pub(crate) fn is_idle(&self) -> bool {
        self.total() == 0 && self.waiting.is_empty()
    }
}

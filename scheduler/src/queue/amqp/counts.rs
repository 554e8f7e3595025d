//! What a queue has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers since the queue began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Jobs that were pulled.
    pub pulled: u64,
    /// Pulls that found nothing: another host was faster.
    pub pulled_nothing: u64,
    /// How often the bell woke this host.
    pub rings: u64,
    /// Results that the broker took.
    pub results: u64,
    /// Of them, results that nobody is bound to.
    pub results_unrouted: u64,
    /// Results that went without their output, as it was too large.
    pub results_cut: u64,
    /// Replies that went to whoever waits for them.
    pub replies: u64,
    /// Replies that were asked for at a place that is not the tenant's.
    pub replies_refused: u64,
    /// Replies for which nobody waited any more.
    pub replies_lost: u64,
    /// Jobs that were copied to the dead letters.
    pub dead: u64,
    /// Jobs for which there was no room among them.
    pub dead_refused: u64,
    /// Jobs that were somebody else's when they ended here.
    pub stale: u64,
    /// Jobs that were sent on to a stronger tier.
    pub moved: u64,
    /// Jobs that were put back.
    pub requeued: u64,
}

/// The same, while they move.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) pulled: AtomicU64,
    pub(super) pulled_nothing: AtomicU64,
    pub(super) rings: AtomicU64,
    pub(super) results: AtomicU64,
    pub(super) results_unrouted: AtomicU64,
    pub(super) results_cut: AtomicU64,
    pub(super) replies: AtomicU64,
    pub(super) replies_refused: AtomicU64,
    pub(super) replies_lost: AtomicU64,
    pub(super) dead: AtomicU64,
    pub(super) dead_refused: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) moved: AtomicU64,
    pub(super) requeued: AtomicU64,
}

impl Tally {
    pub(super) fn counts(&self) -> Counts {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Counts {
            pulled: read(&self.pulled),
            pulled_nothing: read(&self.pulled_nothing),
            rings: read(&self.rings),
            results: read(&self.results),
            results_unrouted: read(&self.results_unrouted),
            results_cut: read(&self.results_cut),
            replies: read(&self.replies),
            replies_refused: read(&self.replies_refused),
            replies_lost: read(&self.replies_lost),
            dead: read(&self.dead),
            dead_refused: read(&self.dead_refused),
            stale: read(&self.stale),
            moved: read(&self.moved),
            requeued: read(&self.requeued),
        }
    }

    pub(super) fn acked(&self, in_time: bool) {
        if !in_time {
            one(&self.stale);
        }
    }
}

pub(super) fn one(number: &AtomicU64) {
    number.fetch_add(1, Ordering::Relaxed);
}

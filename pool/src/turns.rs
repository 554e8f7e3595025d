//! Whose turn it is on the CPUs: jobs that begin come before sandboxes that end.
//!
//! Tearing down is work for the kernel, and in a burst it would take the CPUs from jobs that have not begun. So an end
//! waits while more jobs are young than the CPUs can serve, and never for longer than a job is young. It cannot starve:
//! a job whose sandbox waits for its end is not young any more.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// How long after its checkout a job counts as beginning.
const YOUTH: Duration = Duration::from_millis(50);

/// Gives turns to ends.
#[derive(Debug)]
pub(crate) struct Turns {
    endings: Arc<Semaphore>,
    /// Jobs that begin, the oldest first, told apart by a number.
    young: Mutex<(BTreeSet<(Instant, u64)>, u64)>,
    fewer: Notify,
    most: usize,
}

/// One job that begins. Dropped when its sandbox is given back.
#[derive(Debug)]
pub(crate) struct Youth {
    turns: Arc<Turns>,
    entry: (Instant, u64),
}

impl Turns {
    /// Twice as many end at once as there are CPUs, for an end is half waiting; so is a job.
    pub(crate) fn new(cpus: usize) -> Arc<Self> {
        let most = 2 * cpus;
        Arc::new(Self {
            endings: Arc::new(Semaphore::new(most)),
            young: Mutex::default(),
            fewer: Notify::new(),
            most,
        })
    }

    /// A job has got its sandbox.
    pub(crate) fn begin(self: &Arc<Self>) -> Youth {
        let mut young = self.young();
        young.1 += 1;
        let entry = (Instant::now(), young.1);
        young.0.insert(entry);
        Youth { turns: Arc::clone(self), entry }
    }

    /// The turn to end a sandbox, for as long as it is held.
    pub(crate) async fn end(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed; without a turn the end would only come sooner.
        let turn = Arc::clone(&self.endings).acquire_owned().await.ok();
        loop {
            let fewer = self.fewer.notified();
            let Some(until) = self.crowded_until() else { return turn };
            tokio::select! {
                () = fewer => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// When the oldest young job is young no more, if there are too many of them.
    fn crowded_until(&self) -> Option<Instant> {
        let mut young = self.young();
        let now = Instant::now();
        while let Some(&(since, _)) = young.0.first() {
            if young.0.len() <= self.most {
                return None;
            }
            if since + YOUTH > now {
                return Some(since + YOUTH);
            }
            young.0.pop_first();
        }
        None
    }

    fn young(&self) -> MutexGuard<'_, (BTreeSet<(Instant, u64)>, u64)> {
        // Nothing panics between two halves of a change.
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Youth {
    fn drop(&mut self) {
        self.turns.young().0.remove(&self.entry);
        self.turns.fewer.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn an_end_waits_for_jobs_that_begin_until_few_are_left() {
        let turns = Turns::new(1);
        let mut young: Vec<_> = (0..3).map(|_| turns.begin()).collect();
        assert!(timeout(SOON, turns.end()).await.is_err());
        young.pop();
        assert!(timeout(SOON, turns.end()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_waits_is_woken_when_a_job_is_over() {
        let turns = Turns::new(1);
        let mut young: Vec<_> = (0..3).map(|_| turns.begin()).collect();
        let waits = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.end().await.is_some() }
        });
        tokio::task::yield_now().await;
        let before = Instant::now();
        young.pop();
        assert!(waits.await.unwrap());
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn no_end_waits_for_jobs_that_have_long_begun() {
        let turns = Turns::new(1);
        let _young: Vec<_> = (0..9).map(|_| turns.begin()).collect();
        advance(YOUTH).await;
        assert!(timeout(SOON, turns.end()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_end_at_once_as_there_are_turns() {
        let turns = Turns::new(1);
        let _held = (turns.end().await, turns.end().await);
        assert!(timeout(SOON, turns.end()).await.is_err());
    }
}

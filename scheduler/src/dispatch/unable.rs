//! What a dispatcher does when no sandbox can be made: ends, or, where others can run the jobs, lets the tier rest.

use std::sync::{Arc, atomic::Ordering};

use pool::{Limits, Tier, Want};
use tokio::time::sleep_until;
use worker::{JobResult, Outcome};

use super::{DispatchError, Dispatcher};
use crate::{queue::Queue, runner::Runner, stop::Stopper, store::Store, ward::Tested};

impl<Q: Queue, S: Store, R: Runner> Dispatcher<Q, S, R> {
    /// Whether it is this host, and not the job, that no sandbox could be made. Then its tier rests.
    pub(super) async fn is_unable(&self, want: &Want) -> bool {
        if !self.rests {
            return false;
        }
        let _one = self.ward.looking.lock().await;
        if self.ward.rests(want.tier) {
            return true;
        }
        // What a job asks for beside its tier and image must not make a host look unable.
        let want = Want { limits: Limits::default(), ..want.clone() };
        let Err(report) = self.runner.try_one(&want).await else { return false };
        tracing::debug!(tier = %want.tier, why = report.why, "no sandbox can be made; the tier rests");
        self.ward.failed(&want, &report);
        self.queue.rest(want.tier, true);
        true
    }

    /// Takes no job of a tier any more, whatever sandboxes can be made; `None`: takes them again.
    pub fn refuse(&self, tier: Tier, why: Option<String>) {
        self.ward.refuse(tier, why);
        self.queue.rest(tier, self.ward.rests(tier));
    }

    /// A selftest said this of a tier.
    pub fn tested(&self, what: Tested) {
        self.ward.tested(what);
    }

    /// What the last one said of each tier.
    #[must_use]
    pub fn tests(&self) -> Vec<Tested> {
        self.ward.tests()
    }

    /// Tries tiers that rest, until they do not have to any more.
    pub(super) async fn nurse(self: Arc<Self>) {
        let mut changes = self.ward.changes();
        loop {
            let Some((again, want)) = self.ward.next() else {
                // The sender is our own.
                let _ = changes.changed().await;
                continue;
            };
            tokio::select! {
                () = sleep_until(again) => {}
                // Another tier may be due earlier.
                _ = changes.changed() => continue,
            }
            match self.runner.try_one(&want).await {
                Ok(()) => {
                    tracing::info!(tier = %want.tier, "a sandbox could be made; the tier is offered again");
                    self.ward.recovered(want.tier);
                    self.queue.rest(want.tier, self.ward.is_refused(want.tier));
                }
                Err(report) => {
                    tracing::debug!(tier = %want.tier, why = report.why, "still no sandbox can be made");
                    self.ward.failed(&want, &report);
                }
            }
        }
    }

    /// Stops before every job is spent on a host that can make no sandbox.
    pub(super) fn watch_infrastructure(&self, result: JobResult, stopper: &Stopper) {
        if self.rests {
            return;
        }
        if result.outcome != Outcome::InfraError {
            self.in_vain.store(0, Ordering::Relaxed);
            return;
        }
        let jobs = self.in_vain.fetch_add(1, Ordering::Relaxed) + 1;
        if jobs as usize >= self.slots.max(3)
            && let Some(last) = result.error
        {
            self.halt(DispatchError::Infrastructure { jobs, last }, stopper);
        }
    }
}

//! The tiers on which this host can make no sandbox for now: who found it out, when it is tried again, and why.
//!
//! One job that gets no sandbox proves nothing: it may be the job. So a sandbox of the same tier and image with the usual
//! limits is tried; only if that fails too does the tier *rest*: no job of it is pulled, those that were are another
//! host's, and a sandbox is tried again after a pause that grows. A tier that a selftest found exposed is *refused*: it rests
//! until a selftest finds that it holds, whether or not sandboxes can be made.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pool::{Tier, Want};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use worker::ErrorReport;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A tier that rests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resting {
    /// Which.
    pub tier: Tier,
    /// Why its last sandbox could not be made.
    pub why: String,
    /// For how long it has rested.
    pub rests_us: u64,
    /// How often a sandbox was tried since.
    pub tries: u32,
    /// When one is tried again.
    pub again_us: u64,
}

impl Resting {
    /// Whether a selftest keeps it from its jobs, and not that no sandbox can be made.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.tries == 0
    }

    /// What is the matter with it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.is_refused() { "is refused" } else { "rests" }
    }
}

/// What the last selftest said of a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// Which.
    pub tier: Tier,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// In a line.
    pub said: String,
    /// Whether nothing was found open, and the whole was seen.
    pub holds: bool,
}

/// The tiers that rest.
#[derive(Debug, Default)]
pub(crate) struct Ward {
    beds: Mutex<Vec<Bed>>,
    refused: Mutex<Vec<Refused>>,
    tested: Mutex<Vec<Tested>>,
    /// One look at a tier at a time.
    pub(crate) looking: tokio::sync::Mutex<()>,
    /// Changes with each tier that rests or does not any more.
    changed: watch::Sender<Vec<Tier>>,
}

/// A tier that is not used whatever it can make.
#[derive(Debug, Clone)]
struct Refused {
    tier: Tier,
    why: String,
    since: Instant,
}

#[derive(Debug, Clone)]
struct Bed {
    want: Want,
    why: String,
    since: Instant,
    tries: u32,
    pause: Duration,
    again: Instant,
}

impl Ward {
    fn beds(&self) -> MutexGuard<'_, Vec<Bed>> {
        // Nothing panics between two halves of a change.
        self.beds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, Vec<Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rests(&self, tier: Tier) -> bool {
        self.is_refused(tier) || self.beds().iter().any(|bed| bed.want.tier == tier)
    }

    pub(crate) fn is_refused(&self, tier: Tier) -> bool {
        self.refusals().iter().any(|refused| refused.tier == tier)
    }

    /// The tier is not to be used; `None`: it may be again.
    pub(crate) fn refuse(&self, tier: Tier, why: Option<String>) {
        let beds = self.beds();
        self.refusals().retain(|refused| refused.tier != tier);
        if let Some(why) = why {
            self.refusals().push(Refused { tier, why, since: Instant::now() });
        }
        self.tell(&beds);
    }

    /// What a selftest said of a tier.
    pub(crate) fn tested(&self, what: Tested) {
        let mut all = self.tested.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|earlier| earlier.tier != what.tier);
        all.push(what);
    }

    /// What the last one said of each.
    pub(crate) fn tests(&self) -> Vec<Tested> {
        self.tested.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tiers that rest, now and after each change.
    pub(crate) fn changes(&self) -> watch::Receiver<Vec<Tier>> {
        self.changed.subscribe()
    }

    pub(crate) fn all(&self) -> Vec<Resting> {
        let now = Instant::now();
        let resting = |bed: &Bed| Resting {
            tier: bed.want.tier,
            why: bed.why.clone(),
            rests_us: (now - bed.since).as_micros() as u64,
            tries: bed.tries,
            again_us: bed.again.saturating_duration_since(now).as_micros() as u64,
        };
        let refused = |refused: &Refused| Resting {
            tier: refused.tier,
            why: refused.why.clone(),
            rests_us: (now - refused.since).as_micros() as u64,
            tries: 0,
            again_us: 0,
        };
        let mut all: Vec<_> = self.refusals().iter().map(refused).collect();
        let beds = self.beds();
        all.extend(beds.iter().filter(|bed| !self.is_refused(bed.want.tier)).map(resting));
        all
    }

    /// The sandbox could not be made. Its tier rests, or goes on to.
    pub(crate) fn failed(&self, want: &Want, report: &ErrorReport) {
        let now = Instant::now();
        let why = format!("{}: {}", report.what, report.why);
        let mut beds = self.beds();
        if let Some(bed) = beds.iter_mut().find(|bed| bed.want.tier == want.tier) {
            bed.tries += 1;
            bed.pause = (bed.pause * 2).min(LONGEST_PAUSE);
            (bed.again, bed.why) = (now + bed.pause, why);
            return;
        }
        let again = now + FIRST_PAUSE;
        beds.push(Bed { want: want.clone(), why, since: now, tries: 1, pause: FIRST_PAUSE, again });
        self.tell(&beds);
    }

    /// A sandbox could be made.
    pub(crate) fn recovered(&self, tier: Tier) {
        let mut beds = self.beds();
        beds.retain(|bed| bed.want.tier != tier);
        self.tell(&beds);
    }

    fn tell(&self, beds: &[Bed]) {
        let mut tiers: Vec<_> = beds.iter().map(|bed| bed.want.tier).collect();
        tiers.extend(self.refusals().iter().map(|refused| refused.tier));
        tiers.dedup();
        self.changed.send_replace(tiers);
    }

    /// What is to be tried next, and when.
    pub(crate) fn next(&self) -> Option<(Instant, Want)> {
        let beds = self.beds();
        beds.iter().min_by_key(|bed| bed.again).map(|bed| (bed.again, bed.want.clone()))
    }
}

#[cfg(test)]
mod tests {
    use pool::Limits;

    use super::*;

    fn want(tier: Tier) -> Want {
        Want { tier, image: "minimal".parse().unwrap(), limits: Limits::default(), owner: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tier_that_fails_again_is_left_alone_for_longer_up_to_a_bound() {
        let ward = Ward::default();
        let report = ErrorReport::new("no sandbox", "no disk", "");
        let mut pauses = Vec::new();
        for _ in 0..9 {
            ward.failed(&want(Tier::Docker), &report);
            pauses.push((ward.next().unwrap().0 - Instant::now()).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!((ward.all()[0].tries, ward.all()[0].why.as_str()), (9, "no sandbox: no disk"));
        ward.recovered(Tier::Docker);
        assert!(!ward.rests(Tier::Docker) && ward.next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tier_that_is_refused_rests_until_it_is_allowed_whatever_it_can_make() {
        let ward = Ward::default();
        ward.refuse(Tier::Docker, Some("F01 is exposed".to_owned()));
        ward.recovered(Tier::Docker);
        assert!(ward.rests(Tier::Docker) && !ward.rests(Tier::Chroot));
        assert_eq!(ward.all()[0].why, "F01 is exposed");
        assert_eq!((ward.all()[0].is_refused(), ward.all()[0].state()), (true, "is refused"));
        assert!(ward.next().is_none(), "no sandbox is tried for it");
        assert_eq!(*ward.changes().borrow(), [Tier::Docker]);
        ward.refuse(Tier::Docker, None);
        assert!(!ward.rests(Tier::Docker) && ward.changes().borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn each_tier_rests_by_itself_and_every_change_is_told_once() {
        let ward = Ward::default();
        let report = ErrorReport::new("", "", "");
        let mut changes = ward.changes();
        ward.failed(&want(Tier::Docker), &report);
        ward.failed(&want(Tier::Vm), &report);
        assert_eq!(*changes.borrow_and_update(), [Tier::Docker, Tier::Vm]);
        ward.failed(&want(Tier::Vm), &report);
        assert!(!changes.has_changed().unwrap(), "that it rests is known");
        assert!(!ward.rests(Tier::Chroot));
        ward.recovered(Tier::Docker);
        assert_eq!(*changes.borrow_and_update(), [Tier::Vm]);
    }
}

//! Where a job's story is, for whoever looks on from outside.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// A part of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for a clean sandbox.
    Checkout,
    /// Files are put in.
    Stage,
    /// The command runs.
    Run,
    /// Artifacts are got out.
    Collect,
    /// The sandbox is ended.
    Clean,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Self; 5] = [Self::Checkout, Self::Stage, Self::Run, Self::Collect, Self::Clean];

    /// The phase's name in results and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkout => "checkout",
            Self::Stage => "stage",
            Self::Run => "run",
            Self::Collect => "collect",
            Self::Clean => "clean",
        }
    }
}

/// Follows one job.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Story>);

#[derive(Debug)]
struct Story {
    phase: AtomicU8,
    since: Instant,
    /// When each phase was entered last, in microseconds since `since`, plus one; 0: never.
    entered: [AtomicU64; Phase::ALL.len()],
}

impl Default for Progress {
    fn default() -> Self {
        let entered = [const { AtomicU64::new(0) }; Phase::ALL.len()];
        Self(Arc::new(Story { phase: AtomicU8::new(0), since: Instant::now(), entered }))
    }
}

impl Progress {
    /// The phase that the job is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.0.phase.load(Ordering::Relaxed)).min(Phase::ALL.len() - 1)]
    }

    /// How many microseconds each phase took that was reached, in their order; the last one is still going on. On its
    /// second sandbox a job begins anew.
    #[must_use]
    pub fn times(&self) -> Vec<(Phase, u64)> {
        let reached = &Phase::ALL[..=self.phase() as usize];
        let entered =
            reached.iter().map(|phase| (*phase, self.0.entered[*phase as usize].load(Ordering::Relaxed)));
        let entered: Vec<_> = entered.filter(|(_, at)| *at > 0).collect();
        let ends = entered.iter().skip(1).map(|(_, at)| *at).chain([self.now()]);
        entered.iter().zip(ends).map(|((phase, at), end)| (*phase, end.saturating_sub(*at))).collect()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        // Reached before it is the phase: whoever asks in between sees one that has just begun.
        self.0.entered[phase as usize].store(self.now(), Ordering::Relaxed);
        for later in &self.0.entered[phase as usize + 1..] {
            later.store(0, Ordering::Relaxed);
        }
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.since.elapsed().as_micros() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_seen_as_itself() {
        let progress = Progress::default();
        assert_eq!(progress.phase(), Phase::Checkout);
        for phase in Phase::ALL {
            progress.enter(phase);
            assert_eq!(progress.phase(), phase);
        }
    }

    #[test]
    fn phases_that_were_reached_have_their_times_and_a_second_sandbox_begins_anew() {
        let progress = Progress::default();
        assert_eq!(progress.times(), []);
        for phase in [Phase::Checkout, Phase::Run] {
            progress.enter(phase);
        }
        let names = |progress: &Progress| progress.times().into_iter().map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(names(&progress), [Phase::Checkout, Phase::Run], "nothing was put in");
        progress.enter(Phase::Checkout);
        assert_eq!(names(&progress), [Phase::Checkout]);
        progress.enter(Phase::Stage);
        assert_eq!(names(&progress), [Phase::Checkout, Phase::Stage]);
    }
}

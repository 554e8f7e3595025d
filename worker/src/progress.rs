//! Where a job's story is, for whoever looks on from outside.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
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
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU8>);

impl Progress {
    /// The phase that the job is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.0.load(Ordering::Relaxed)).min(Phase::ALL.len() - 1)]
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
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
}

//! What became of many jobs, in constant room: counts of outcomes and histograms of phases.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use pool::Source;
use serde::Serialize;
use worker::{JobResult, Outcome, Phases};

use crate::outcomes;

/// The longest phase that is told apart from longer ones: a day, in microseconds.
const LONGEST: u64 = 24 * 60 * 60 * 1_000_000;
/// Digits of a time that are right.
const DIGITS: u8 = 2;

/// A phase's name and where its time is.
type PhaseOf = (&'static str, fn(&Phases) -> u64);

/// The phases of a job, in their order.
const PHASES: [PhaseOf; 5] = [
    ("checkout", |phases| phases.checkout_us),
    ("stage", |phases| phases.stage_us),
    ("run", |phases| phases.run_us),
    ("collect", |phases| phases.collect_us),
    ("clean", |phases| phases.clean_us),
];

/// Counts results. Its size does not depend on how many there were.
#[derive(Clone)]
pub struct Tally {
    outcomes: [u64; outcomes::ALL.len()],
    warm: u64,
    cold: u64,
    phases: Vec<Histogram<u64>>,
}

/// How long one phase took in all jobs that reached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PhaseTimes {
    /// Which.
    pub phase: &'static str,
    /// How many jobs reached it.
    pub jobs: u64,
    /// Half of them took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
}

impl Default for Tally {
    fn default() -> Self {
        let histogram =
            || Histogram::new_with_max(LONGEST, DIGITS).expect("the bounds are constants that are valid");
        Self {
            outcomes: [0; outcomes::ALL.len()],
            warm: 0,
            cold: 0,
            phases: PHASES.iter().map(|_| histogram()).collect(),
        }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("outcomes", &self.outcomes).finish_non_exhaustive()
    }
}

impl Tally {
    /// Counts a result.
    pub fn count(&mut self, result: &JobResult) {
        self.add(result.outcome, &result.phases, result.source);
    }

    pub(crate) fn add(&mut self, outcome: Outcome, phases: &Phases, source: Option<Source>) {
        self.outcomes[outcomes::index(outcome)] += 1;
        match source {
            Some(Source::Warm) => self.warm += 1,
            Some(Source::Cold) => self.cold += 1,
            None => {}
        }
        for ((phase, time), histogram) in PHASES.iter().zip(&mut self.phases) {
            let time = time(phases);
            // A job without files has nothing to put in: its stage says nothing of others.
            let least = if *phase == "stage" { 10 } else { 1 };
            if time >= least {
                histogram.saturating_record(time);
            }
        }
    }

    /// Results so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// How many ended how. Only what has happened.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        outcomes::ALL.into_iter().zip(self.outcomes).filter(|(_, count)| *count > 0)
    }

    /// The share of jobs for which a sandbox waited; `None` if no job had any sandbox.
    #[must_use]
    pub fn warm_share(&self) -> Option<f64> {
        let all = self.warm + self.cold;
        (all > 0).then(|| self.warm as f64 / all as f64)
    }

    /// How long each phase took that any job reached.
    pub fn phases(&self) -> impl Iterator<Item = PhaseTimes> + '_ {
        PHASES.iter().zip(&self.phases).filter(|(_, histogram)| !histogram.is_empty()).map(
            |((phase, _), histogram)| PhaseTimes {
                phase,
                jobs: histogram.len(),
                p50_us: histogram.value_at_quantile(0.5),
                p99_us: histogram.value_at_quantile(0.99),
            },
        )
    }
}

/// A time of a table that people read.
#[must_use]
pub fn shown(us: u64) -> String {
    let time = Duration::from_micros(us);
    match us {
        0..10_000_000 => format!("{:.2} ms", time.as_secs_f64() * 1000.0),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_counted() {
        let mut tally = Tally::default();
        for us in 1..=1000 {
            let phases = Phases { run_us: us * 100, ..Phases::default() };
            tally.add(
                Outcome::Succeeded,
                &phases,
                Some(if us % 4 == 0 { Source::Cold } else { Source::Warm }),
            );
        }
        let phases: Vec<_> = tally.phases().collect();
        assert_eq!(phases.len(), 1, "phases that no job reached are left out");
        assert!(phases[0].p50_us.abs_diff(50_000) < 1000, "{phases:?}");
        assert!(phases[0].p99_us.abs_diff(99_000) < 1500, "{phases:?}");
        assert_eq!(tally.outcomes().collect::<Vec<_>>(), [(Outcome::Succeeded, 1000)]);
        assert_eq!(tally.warm_share(), Some(0.75));
    }
}

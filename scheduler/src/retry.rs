//! Whether a job runs again after what has just happened to it. Pure.
//!
//! A failure of ours (no sandbox, a lost sandbox) is never the job's: it is repeated on another sandbox, within a
//! bound of its own. A job that may have started runs again only if it says that this does no harm.

use std::time::Duration;

use worker::{ErrorReport, JobResult, Outcome};

/// How often a failure of ours is repeated for one start of a job.
pub const INFRASTRUCTURE_TRIES: u32 = 3;
/// How often a job is started that does not say.
pub const MAX_ATTEMPTS: u32 = 3;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What follows the end of one try.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The result stands.
    Keep,
    /// Once more, after a pause.
    Again(Duration),
}

/// What follows `result`, the outcome of the `tried`-th try (from 1).
pub(crate) fn next(result: &JobResult, idempotent: bool, tried: u32) -> Next {
    let ours = matches!(result.outcome, Outcome::InfraError | Outcome::SandboxLost);
    if !ours || tried >= INFRASTRUCTURE_TRIES || (may_have_started(result) && !idempotent) {
        return Next::Keep;
    }
    Next::Again(FIRST_PAUSE.saturating_mul(4_u32.saturating_pow(tried - 1)).min(LONGEST_PAUSE))
}

/// Whether the command may have run: its phase was reached.
fn may_have_started(result: &JobResult) -> bool {
    result.phases.run_us > 0
}

/// What becomes of a job that is begun for the `number`-th time, of which an earlier start may have run and was never
/// heard of again; `None`: it runs.
pub(crate) fn interrupted(number: u32, idempotent: bool, max_attempts: u32) -> Option<ErrorReport> {
    let what = "the job was interrupted with the mayfly that ran it";
    if !idempotent {
        let why = "it may have started, and does not say that running it again does no harm";
        return Some(ErrorReport::new(
            what,
            why,
            "look for what it did; set idempotent: true if it may run again",
        ));
    }
    if number > max_attempts {
        let why = format!("that has happened {} times, and max_attempts is {max_attempts}", number - 1);
        return Some(ErrorReport::new(what, why, "see what stops mayfly or this host; the job may do it"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(outcome: Outcome, started: bool) -> JobResult {
        let mut result = JobResult::never_started("job", "local", outcome, ErrorReport::new("", "", ""));
        result.phases.run_us = u64::from(started);
        result
    }

    #[test]
    fn only_failures_of_ours_are_repeated_and_only_within_their_bound() {
        for outcome in crate::outcomes::ALL {
            for (started, idempotent, tried) in
                [(false, false, 1), (true, true, 2), (true, false, 1), (false, true, 3), (true, true, 3)]
            {
                let ours = matches!(outcome, Outcome::InfraError | Outcome::SandboxLost);
                let again = ours && tried < 3 && (idempotent || !started);
                let next = next(&result(outcome, started), idempotent, tried);
                assert_eq!(
                    matches!(next, Next::Again(_)),
                    again,
                    "{outcome:?} {started} {idempotent} {tried}"
                );
            }
        }
    }

    #[test]
    fn each_pause_is_longer_than_the_one_before() {
        let pause = |tried| match next(&result(Outcome::InfraError, false), false, tried) {
            Next::Again(pause) => pause,
            Next::Keep => panic!("not repeated"),
        };
        assert!(pause(2) > pause(1));
    }

    #[test]
    fn an_interrupted_job_runs_again_only_if_that_does_no_harm_and_not_for_ever() {
        assert!(interrupted(2, false, 3).is_some());
        assert!(interrupted(2, true, 3).is_none());
        assert!(interrupted(3, true, 3).is_none());
        assert!(interrupted(4, true, 3).unwrap().why.contains("3 times"));
    }
}

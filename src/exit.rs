//! What mayfly's exit code says. The habit is that of docker and timeout.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 to 255 | the job's own exit code, passed through |
//! | 124 | the job was ended at its timeout |
//! | 125 | mayfly failed: bad usage, a refused job, no sandbox, a lost sandbox, a `--get` that gave nothing |
//! | 126 | the command is there and cannot be executed |
//! | 127 | there is no such command |
//! | 128 + n | the job was ended by signal n |
//! | 129, 130, 143 | mayfly was interrupted by SIGHUP, SIGINT (Ctrl-C), SIGTERM and ended the job |
//! | 137 | the job was killed: for memory, at its output limit, or by SIGKILL |
//! | 141 | whoever read the job's output went away, and mayfly ended the job |
//!
//! A job may use these codes itself; `--json` and `--summary` tell the outcome without doubt.

use worker::{JobResult, Outcome};

/// The job was ended at its timeout.
pub(crate) const TIMED_OUT: u8 = 124;
/// Mayfly itself failed.
pub(crate) const MAYFLY: u8 = 125;
/// Ended by SIGKILL.
pub(crate) const KILLED: u8 = 137;
/// What Ctrl-C sends.
const SIGINT: u8 = 2;
/// Ended by SIGPIPE.
pub(crate) const READER_GONE: u8 = 141;

/// The code for a job that was run. `interrupted_by`: the first signal that mayfly got.
pub(crate) fn code(result: &JobResult, interrupted_by: Option<u8>) -> u8 {
    match result.outcome {
        Outcome::Succeeded | Outcome::Failed => match (result.exit_code, result.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => by_signal(signal),
            (None, None) => MAYFLY,
        },
        Outcome::TimedOut => TIMED_OUT,
        Outcome::OutOfMemory | Outcome::OutputLimit => KILLED,
        Outcome::Cancelled => by_signal(interrupted_by.unwrap_or(SIGINT)),
        Outcome::SandboxLost | Outcome::InfraError | Outcome::Rejected => MAYFLY,
    }
}

fn by_signal(signal: u8) -> u8 {
    128 | signal
}

#[cfg(test)]
mod tests {
    use worker::ErrorReport;

    use super::*;

    fn ended(outcome: Outcome, exit_code: Option<u8>, signal: Option<u8>) -> JobResult {
        let error = ErrorReport::new("", "", "");
        JobResult { exit_code, signal, ..JobResult::never_started("id", "tenant", outcome, error) }
    }

    #[test]
    fn the_codes_are_those_of_the_table() {
        use Outcome::{
            Cancelled, Failed, InfraError, OutOfMemory, OutputLimit, Rejected, SandboxLost, Succeeded,
            TimedOut,
        };
        let table = [
            ((Succeeded, Some(0), None, None), 0),
            ((Failed, Some(3), None, None), 3),
            ((Failed, Some(126), None, None), 126),
            ((Failed, Some(127), None, None), 127),
            ((Failed, None, Some(15), None), 143),
            ((Failed, None, Some(9), None), KILLED),
            ((TimedOut, Some(0), None, None), TIMED_OUT),
            ((OutOfMemory, None, Some(9), None), KILLED),
            ((OutputLimit, Some(0), None, None), KILLED),
            ((Cancelled, None, Some(15), Some(2)), 130),
            ((Cancelled, Some(0), None, Some(15)), 143),
            ((SandboxLost, Some(0), None, None), MAYFLY),
            ((InfraError, None, None, None), MAYFLY),
            ((Rejected, None, None, None), MAYFLY),
            // A signal that came when the job had ended already changes nothing.
            ((Failed, Some(3), None, Some(2)), 3),
        ];
        for ((outcome, exit_code, signal, interrupted), expected) in table {
            let result = ended(outcome, exit_code, signal);
            assert_eq!(code(&result, interrupted), expected, "{outcome:?} {exit_code:?} {signal:?}");
        }
    }
}

//! What the end of a command means. Pure: the same facts always give the same verdict.
//!
//! The host's own observations come first, so that no word of a sandbox can turn a timeout, an output limit, a
//! cancellation or an out-of-memory kill into something else.

use agent::message::{Ending, Exit, Memory, NotStarted};
use bytesize::ByteSize;
use pool::{Limits, Usage};

use crate::{
    result::{ErrorReport, ObservedBy, Outcome},
    run::Stop,
    traffic::{Lost, printable},
};

/// Everything that a verdict rests on.
pub(crate) struct Facts<'a> {
    pub(crate) command: &'a [String],
    pub(crate) limits: &'a Limits,
    pub(crate) timeout: std::time::Duration,
    pub(crate) output_limit: u64,
    pub(crate) stop: Option<Stop>,
    pub(crate) exit: Option<&'a Exit>,
    pub(crate) lost: Option<&'a Lost>,
    pub(crate) usage: &'a Usage,
    /// What a machine's own kernel counted, where the host cannot look.
    pub(crate) memory: Option<&'a Memory>,
}

/// How the job ended, on whose word, and what is to be said about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    pub(crate) observed_by: ObservedBy,
    pub(crate) exit_code: Option<u8>,
    pub(crate) signal: Option<u8>,
    pub(crate) error: Option<ErrorReport>,
}

impl Facts<'_> {
    pub(crate) fn verdict(&self) -> Verdict {
        let (outcome, observed_by, error) = self.outcome();
        let (exit_code, signal) = match self.exit.map(|exit| exit.ending) {
            Some(Ending::Code(code)) => (Some(code), None),
            Some(Ending::Signal(signal)) => (None, Some(signal)),
            Some(Ending::NotStarted { why: NotStarted::NotFound, .. }) => (Some(127), None),
            Some(Ending::NotStarted { .. }) => (Some(126), None),
            None => (None, None),
        };
        Verdict { outcome, observed_by, exit_code, signal, error }
    }

    fn outcome(&self) -> (Outcome, ObservedBy, Option<ErrorReport>) {
        let host = |outcome, error| (outcome, ObservedBy::Host, Some(error));
        let guest = |outcome, error| (outcome, ObservedBy::Guest, error);
        match self.stop {
            Some(Stop::TimedOut) => return host(Outcome::TimedOut, self.timed_out()),
            Some(Stop::OutputLimit) => return host(Outcome::OutputLimit, self.output_limit()),
            Some(Stop::Cancelled) => return host(Outcome::Cancelled, cancelled()),
            None => {}
        }
        let ending = self.exit.map(|exit| exit.ending);
        // A command that outlived the kill of a child and ends well has succeeded. A sandbox that was lost after
        // such a kill is charged to the job, or memory bombs would be repeated on one sandbox after the other.
        if self.usage.oom_kills > 0 && ending != Some(Ending::Code(0)) {
            return host(Outcome::OutOfMemory, self.out_of_memory(self.usage.oom_kills));
        }
        // The guest's word, and marked so: it is charged to the job and never tried again, so that a lie gains nothing.
        let guests_kills = self.memory.map_or(0, |memory| memory.oom_kills);
        if guests_kills > 0 && self.lost.is_none() && ending != Some(Ending::Code(0)) {
            return guest(Outcome::OutOfMemory, Some(self.out_of_memory(guests_kills)));
        }
        match (self.lost, ending) {
            (Some(lost), _) => host(Outcome::SandboxLost, sandbox_lost(lost)),
            (None, Some(Ending::Code(0))) => guest(Outcome::Succeeded, None),
            (None, Some(Ending::Code(_) | Ending::Signal(_))) => guest(Outcome::Failed, None),
            (None, Some(Ending::NotStarted { why, errno })) => {
                guest(Outcome::Failed, Some(self.not_started(why, errno)))
            }
            (None, None) => host(Outcome::SandboxLost, sandbox_lost(&Lost::Breach("the command has no end"))),
        }
    }

    fn timed_out(&self) -> ErrorReport {
        ErrorReport::new(
            "the job was ended at its timeout",
            format!("it still ran after {:?}", self.timeout),
            "give it more time (timeout, or --timeout), or find out what it waits for",
        )
    }

    fn output_limit(&self) -> ErrorReport {
        ErrorReport::new(
            "the job was killed at its output limit",
            format!("it wrote more than {} to stdout and stderr", ByteSize(self.output_limit)),
            "write less or to a file kept as an artifact, or raise the limit (limits.output, or --output)",
        )
    }

    fn out_of_memory(&self, kills: u64) -> ErrorReport {
        ErrorReport::new(
            "the job was killed for memory",
            format!(
                "it reached its limit of {}, files in the sandbox included; the kernel killed {} of its processes",
                ByteSize(self.limits.memory),
                kills
            ),
            "raise the limit (limits.memory, or --memory), or let it hold less",
        )
    }

    fn not_started(&self, why: NotStarted, errno: i32) -> ErrorReport {
        let program = printable(self.command.first().map_or(&[], |program| program.as_bytes()));
        let os = || std::io::Error::from_raw_os_error(errno);
        let (why, hint) = match why {
            NotStarted::NotFound => (
                "there is no such program in the image".to_owned(),
                "check the spelling and the image; programs without a slash are looked up in PATH",
            ),
            NotStarted::NotExecutable => (
                format!("the file cannot be executed ({})", os()),
                "make it executable, or name its interpreter first",
            ),
            NotStarted::Workdir => (
                format!("its working directory cannot be entered ({})", os()),
                "name a directory that the image has, or put a file there",
            ),
            NotStarted::TooLong => (
                "arguments and environment are too long together".to_owned(),
                "pass long input as a file or through stdin",
            ),
            NotStarted::Rlimit => {
                (format!("a resource limit was refused ({})", os()), "ask for other limits")
            }
            NotStarted::Other => (os().to_string(), "see whether the limits leave it room to start"),
        };
        ErrorReport::new(format!("cannot start {program}"), why, hint)
    }
}

/// The report on a job that somebody cancelled.
pub(crate) fn cancelled() -> ErrorReport {
    ErrorReport::new(
        "the job was cancelled",
        "somebody asked for it while it ran",
        "submit it again if it is still wanted",
    )
}

/// The report on a sandbox that broke.
pub(crate) fn sandbox_lost(lost: &Lost) -> ErrorReport {
    ErrorReport::new(
        "the sandbox was lost",
        lost.to_string(),
        "run the job again: this is not its failure; `mayfly doctor` says what is wrong with the host",
    )
}

#[cfg(test)]
mod tests {
    use pool::ChannelError;

    use super::*;

    fn outcome(
        stop: Option<Stop>,
        ending: Option<Ending>,
        lost: bool,
        oom_kills: u64,
    ) -> (Outcome, ObservedBy) {
        let exit = ending.map(|ending| Exit {
            ending,
            user_us: 0,
            system_us: 0,
            max_rss_kib: 0,
            stragglers: 0,
            memory: None,
        });
        let lost = lost.then_some(Lost::Channel(ChannelError::Closed));
        let facts = Facts {
            command: &["tool".to_owned()],
            limits: &Limits::default(),
            timeout: std::time::Duration::from_secs(1),
            output_limit: 1,
            stop,
            exit: exit.as_ref(),
            lost: lost.as_ref(),
            usage: &Usage { oom_kills, ..Usage::default() },
            memory: None,
        };
        let verdict = facts.verdict();
        assert_eq!(
            verdict.error.is_none(),
            matches!(verdict.outcome, Outcome::Succeeded | Outcome::Failed),
            "an ending that is not the command's own must be explained"
        );
        (verdict.outcome, verdict.observed_by)
    }

    #[test]
    fn what_the_host_saw_outweighs_what_the_sandbox_says() {
        use ObservedBy::{Guest, Host};
        use Outcome::{Cancelled, Failed, OutOfMemory, OutputLimit, SandboxLost, Succeeded, TimedOut};
        let (ok, bad, killed) = (Some(Ending::Code(0)), Some(Ending::Code(3)), Some(Ending::Signal(9)));
        let table = [
            // stop, the agent's word, sandbox lost, oom kills → outcome
            ((None, ok, false, 0), (Succeeded, Guest)),
            ((None, bad, false, 0), (Failed, Guest)),
            ((None, killed, false, 0), (Failed, Guest)),
            ((Some(Stop::TimedOut), ok, false, 0), (TimedOut, Host)),
            ((Some(Stop::TimedOut), killed, false, 2), (TimedOut, Host)),
            ((Some(Stop::TimedOut), None, true, 0), (TimedOut, Host)),
            ((Some(Stop::OutputLimit), ok, false, 0), (OutputLimit, Host)),
            ((Some(Stop::Cancelled), ok, false, 0), (Cancelled, Host)),
            ((None, killed, false, 1), (OutOfMemory, Host)),
            ((None, bad, false, 1), (OutOfMemory, Host)),
            ((None, None, true, 1), (OutOfMemory, Host)),
            // A child was killed for memory, and the command coped with it.
            ((None, ok, false, 1), (Succeeded, Guest)),
            ((None, ok, true, 0), (SandboxLost, Host)),
            ((None, None, true, 0), (SandboxLost, Host)),
        ];
        for ((stop, ending, lost, oom), expected) in table {
            assert_eq!(outcome(stop, ending, lost, oom), expected, "{stop:?} {ending:?} {lost} {oom}");
        }
    }

    #[test]
    fn a_command_that_is_not_there_gives_127_and_one_that_cannot_run_126() {
        for (why, code) in
            [(NotStarted::NotFound, 127), (NotStarted::NotExecutable, 126), (NotStarted::Workdir, 126)]
        {
            let exit = Exit {
                ending: Ending::NotStarted { why, errno: 2 },
                user_us: 0,
                system_us: 0,
                max_rss_kib: 0,
                stragglers: 0,
                memory: None,
            };
            let facts = Facts {
                command: &["to\x1bol".to_owned()],
                limits: &Limits::default(),
                timeout: std::time::Duration::from_secs(1),
                output_limit: 1,
                stop: None,
                exit: Some(&exit),
                lost: None,
                usage: &Usage::default(),
                memory: None,
            };
            let verdict = facts.verdict();
            assert_eq!((verdict.outcome, verdict.exit_code), (Outcome::Failed, Some(code)));
            assert_eq!(verdict.error.unwrap().what, "cannot start to\\x1bol");
        }
    }

    #[test]
    fn what_a_machines_own_kernel_counted_is_the_guests_word() {
        let memory = Memory { oom_kills: 1, peak: 0 };
        let verdict = |ending, lost: Option<&Lost>| {
            let exit = Exit { ending, user_us: 0, system_us: 0, max_rss_kib: 0, stragglers: 0, memory: None };
            let facts = Facts {
                command: &["tool".to_owned()],
                limits: &Limits::default(),
                timeout: std::time::Duration::from_secs(1),
                output_limit: 1,
                stop: None,
                exit: Some(&exit),
                lost,
                usage: &Usage::default(),
                memory: Some(&memory),
            };
            let verdict = facts.verdict();
            (verdict.outcome, verdict.observed_by)
        };
        assert_eq!(verdict(Ending::Signal(9), None), (Outcome::OutOfMemory, ObservedBy::Guest));
        assert_eq!(verdict(Ending::Code(0), None), (Outcome::Succeeded, ObservedBy::Guest));
        let lost = Lost::Channel(ChannelError::Closed);
        assert_eq!(verdict(Ending::Signal(9), Some(&lost)), (Outcome::SandboxLost, ObservedBy::Host));
    }
}

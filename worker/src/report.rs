//! Writes a job's result while its story goes on.

use egress::Egress;
use images::StoreError;
use pool::{CheckoutError, Lease, Usage};

use crate::{
    assignment::Assignment,
    collect::Collected,
    result::{ErrorReport, JobResult, Outcome, Phases, UsageReport, causes},
    run::{Ended, Stop},
    stage::{StageError, hint},
    verdict::{Facts, cancelled, sandbox_lost},
};

/// A result that is being written.
pub(crate) struct Report<'a> {
    job: &'a Assignment,
    result: JobResult,
}

impl<'a> Report<'a> {
    /// Begins with the outcome that is true as long as nothing is known.
    pub(crate) fn new(job: &'a Assignment) -> Self {
        let mut result = JobResult::without_sandbox(&job.id, &job.tenant, job.attempt, Outcome::InfraError);
        result.phases.queued_us = job.queued.as_micros() as u64;
        Self { job, result }
    }

    pub(crate) fn phases(&mut self) -> &mut Phases {
        &mut self.result.phases
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.result.notes.push(note.into());
    }

    pub(crate) fn done(self) -> JobResult {
        self.result
    }

    /// Somebody cancelled the job before its command started.
    pub(crate) fn cancelled(&mut self) {
        self.conclude(Outcome::Cancelled, cancelled());
    }

    /// The pool gave no sandbox.
    pub(crate) fn no_sandbox(&mut self, error: &CheckoutError) {
        let why = causes(error);
        let image = &self.job.want.image;
        let (outcome, report) = match error {
            CheckoutError::Image(error) => {
                let outcome = match error {
                    StoreError::NotFound { .. } | StoreError::Ambiguous { .. } => Outcome::Rejected,
                    // A store that is damaged or cannot be read is the host's trouble.
                    _ => Outcome::InfraError,
                };
                (outcome, ErrorReport::new(format!("cannot use image {image}"), why, store_hint(error)))
            }
            CheckoutError::Limits(_) => {
                let hint = "ask for limits that can hold together";
                (Outcome::Rejected, ErrorReport::new("no sandbox can have these limits", why, hint))
            }
            CheckoutError::TierMissing(tier) => {
                let hint = "`mayfly doctor` says which tiers this host offers and what the others need";
                (Outcome::Rejected, ErrorReport::new(format!("no sandbox of tier {tier}"), why, hint))
            }
            CheckoutError::Make { .. }
            | CheckoutError::Narrow { .. }
            | CheckoutError::Ledger(_)
            | CheckoutError::Closing => {
                let hint = "`mayfly doctor` says what is wrong with this host; the job is not at fault";
                (Outcome::InfraError, ErrorReport::new("no sandbox could be made", why, hint))
            }
        };
        self.conclude(outcome, report);
    }

    /// The sandbox that the job got.
    pub(crate) fn sandbox(&mut self, lease: &Lease) {
        let image = lease.image();
        self.result.tier = Some(lease.tier());
        self.result.image = Some(format!("{}@{}", image.name, image.digest));
        self.result.generation = Some(lease.generation().to_string());
        self.result.notes.extend(lease.caveat().map(ToOwned::to_owned));
        self.result.source = Some(lease.source());
        self.result.cold_reason = lease.cold_reason();
        self.result.accel = lease.accelerator().map(|accelerator| accelerator.to_string());
    }

    /// A file could not be put in.
    pub(crate) fn not_staged(&mut self, error: &StageError) {
        match error {
            StageError::Refused { path, error: refusal } => {
                let what = format!("cannot put {path} into the sandbox");
                let why = crate::stage::explain(*refusal);
                self.conclude(Outcome::Rejected, ErrorReport::new(what, why, hint(*refusal)));
            }
            StageError::Unreadable { path, error } => {
                let what = format!("cannot read what is to become {path}");
                let report = ErrorReport::new(what, error.to_string(), "make the local file readable");
                self.conclude(Outcome::Rejected, report);
            }
            StageError::NoDoor(error) => {
                let hint = "see that what `from` of the secret says in mayfly.toml holds on this host";
                let report = ErrorReport::new("the job's secrets cannot be had", error.to_string(), hint);
                self.conclude(Outcome::InfraError, report);
            }
            StageError::Lost(lost) => self.conclude(Outcome::SandboxLost, sandbox_lost(lost)),
        }
    }

    /// What the command was to read cannot be opened.
    pub(crate) fn no_stdin(&mut self, error: &std::io::Error) {
        let report = ErrorReport::new("cannot open the job's stdin", error.to_string(), "make it readable");
        self.conclude(Outcome::Rejected, report);
    }

    /// The command has ended, or its sandbox has.
    ///
    /// `blind`: the host cannot look into the sandbox, so the guest's word is taken for what nothing else can tell.
    pub(crate) fn ended(&mut self, ended: Ended, usage: &Usage, blind: bool) {
        let memory = ended.exit.as_ref().and_then(|exit| exit.memory).filter(|_| blind);
        let facts = Facts {
            command: &self.job.command,
            limits: &self.job.want.limits,
            timeout: self.job.timeout,
            output_limit: self.job.output_limit,
            stop: ended.stop,
            exit: ended.exit.as_ref(),
            lost: ended.lost.as_ref(),
            usage,
            memory: memory.as_ref(),
        };
        let verdict = facts.verdict();
        let result = &mut self.result;
        result.outcome = verdict.outcome;
        result.observed_by = verdict.observed_by;
        result.exit_code = verdict.exit_code;
        result.signal = verdict.signal;
        result.error = verdict.error;
        let guest = ended.exit.as_ref();
        result.usage = Some(UsageReport {
            cpu_us: usage.cpu.as_micros() as u64,
            peak_memory_bytes: memory.map_or(usage.peak_memory, |memory| memory.peak),
            oom_kills: usage.oom_kills.saturating_add(memory.map_or(0, |memory| memory.oom_kills)),
            user_us: guest.map_or(0, |exit| exit.user_us),
            system_us: guest.map_or(0, |exit| exit.system_us),
            max_rss_bytes: guest.map_or(0, |exit| exit.max_rss_kib.saturating_mul(1024)),
            stragglers: guest.map_or(0, |exit| exit.stragglers),
        });
        if let (Some(lost), Some(Stop::TimedOut | Stop::OutputLimit)) = (&ended.lost, ended.stop) {
            result.notes.push(format!("the sandbox was lost as well: {lost}"));
        }
        result.stdout = ended.stdout.into_text();
        result.stderr = ended.stderr.into_text();
    }

    /// What the job reached, and what it was refused.
    pub(crate) fn egress(&mut self, egress: Egress) {
        self.result.egress = Some(egress);
    }

    /// What came out of the sandbox.
    pub(crate) fn collected(&mut self, collected: Collected) {
        self.result.artifacts = collected.artifacts;
        self.result.skipped = collected.skipped;
        if collected.unlisted > 0 {
            self.note(format!("{} more were skipped and are not listed", collected.unlisted));
        }
        if let Some(why) = collected.cut_short {
            self.note(format!("collecting artifacts was cut short: {why}"));
        }
    }

    fn conclude(&mut self, outcome: Outcome, error: ErrorReport) {
        self.result.outcome = outcome;
        self.result.error = Some(error);
    }
}

fn store_hint(error: &StoreError) -> String {
    error.hint().unwrap_or_else(|| "`mayfly image ls` shows the images that are there".to_owned())
}

//! The story of one job: checkout → stage → run → collect → give back.
//!
//! Each step is bounded by itself, and what came before a step that fails is kept. A failure of ours is never
//! told as the job's. One call is one attempt on one sandbox: whoever retries calls again.

use std::{fmt, time::Duration};

use images::ImageConfig;
use pool::{Dirty, GenerationId, Pool};
use tokio::time::{Instant, timeout};

use crate::{
    assignment::{Assignment, Reader},
    cancel::{Cancelled, Urgency},
    collect::{ArtifactSink, Caps, collect},
    output::{Live, Output},
    progress::{Phase, Progress},
    report::Report,
    result::JobResult,
    run::{Orders, run},
    sandbox::{Sandbox, wait_until_alone},
    stage::prepare,
    traffic::Lost,
};

/// How long a sandbox may take to end.
const GIVE_BACK: Duration = Duration::from_secs(30);

/// Carries out jobs in sandboxes of one pool.
#[derive(Debug)]
pub struct Worker {
    pool: Pool,
    settings: Settings,
}

/// What holds for all jobs of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bytes of each output stream that a result shows.
    pub shown_output: usize,
    /// What is collected at most.
    pub caps: Caps,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shown_output: 1024 * 1024, caps: Caps::default() }
    }
}

/// Who talks with a job while it runs. Whoever is missing costs nothing.
#[derive(Default)]
pub struct Company {
    /// Writes to the job's stdin, instead of what the assignment says.
    pub stdin: Option<Reader>,
    /// Reads its stdout.
    pub stdout: Option<Live>,
    /// Reads its stderr.
    pub stderr: Option<Live>,
    /// Hears which phase it is in.
    pub progress: Progress,
}

impl fmt::Debug for Company {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Company")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("progress", &self.progress)
            .finish()
    }
}

impl Worker {
    /// A worker that takes its sandboxes from `pool`.
    #[must_use]
    pub fn new(pool: Pool, settings: Settings) -> Self {
        Self { pool, settings }
    }

    /// Carries out one job, once, in a sandbox of its own, and ends that.
    pub async fn work(
        &self,
        job: &Assignment,
        company: Company,
        artifacts: &mut impl ArtifactSink,
        cancelled: Cancelled,
    ) -> JobResult {
        self.run(job, company, artifacts, cancelled).await.clean().await
    }

    /// The same up to the job's end. Its sandbox is still to be ended.
    pub async fn run(
        &self,
        job: &Assignment,
        company: Company,
        artifacts: &mut impl ArtifactSink,
        mut cancelled: Cancelled,
    ) -> Ended {
        let mut report = Report::new(job);
        let progress = company.progress.clone();

        progress.enter(Phase::Checkout);
        let clock = Instant::now();
        let checkout = tokio::select! {
            biased;
            _ = cancelled.beyond(Urgency::None) => {
                report.cancelled();
                return Ended::without_sandbox(report.done());
            }
            checkout = self.pool.checkout(&job.want, job.reference()) => checkout,
        };
        report.phases().checkout_us = micros(clock);
        let mut lease = match checkout {
            Ok(lease) => lease,
            Err(error) => {
                report.no_sandbox(&error);
                return Ended::without_sandbox(report.done());
            }
        };
        report.sandbox(&lease);
        let generation = lease.generation();

        let config = lease.image().config.clone();
        let story = Story { job, config: &config, settings: &self.settings };
        story.tell(&mut lease, company, artifacts, cancelled, &mut report).await;

        Ended {
            result: report.done(),
            remains: Some(Remains { dirty: lease.into_dirty(), generation, progress }),
        }
    }

    /// Where the sandboxes come from.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Gives the pool back once no more jobs come.
    #[must_use]
    pub fn into_pool(self) -> Pool {
        self.pool
    }
}

/// What happens while the job has its sandbox.
pub(crate) struct Story<'a> {
    pub(crate) job: &'a Assignment,
    pub(crate) config: &'a ImageConfig,
    pub(crate) settings: &'a Settings,
}

impl Story<'_> {
    /// Stage, run, collect.
    pub(crate) async fn tell(
        &self,
        sandbox: &mut impl Sandbox,
        company: Company,
        artifacts: &mut impl ArtifactSink,
        mut cancelled: Cancelled,
        report: &mut Report<'_>,
    ) {
        company.progress.enter(Phase::Stage);
        let clock = Instant::now();
        let staged = tokio::select! {
            biased;
            _ = cancelled.beyond(Urgency::None) => return report.cancelled(),
            staged = prepare(sandbox.channel(), self.job) => staged,
        };
        report.phases().stage_us = micros(clock);
        let door = match staged {
            Ok(door) => door,
            Err(error) => return report.not_staged(&error),
        };
        let stdin = match (company.stdin, &self.job.stdin) {
            (None, Some(content)) => match content.open().await {
                Ok(reader) => Some(reader),
                Err(error) => return report.no_stdin(&error),
            },
            (live, _) => live,
        };

        company.progress.enter(Phase::Run);
        let clock = Instant::now();
        let orders = Orders::new(self.job, self.config, stdin.is_some(), door.as_ref());
        let outputs =
            [company.stdout, company.stderr].map(|live| Output::new(self.settings.shown_output, live));
        let mut ended =
            run(sandbox.channel(), orders, stdin, outputs, door.as_ref(), cancelled.clone()).await;
        if ended.is_unanswered() && sandbox.is_halted() {
            ended.lose(Lost::Halted);
        }
        if ended.may_be_asked() {
            ended.lost = wait_until_alone(sandbox).await.err();
        }
        let may_be_asked = ended.may_be_asked();
        report.phases().run_us = micros(clock);
        report.ended(ended, &sandbox.usage(), sandbox.survivors().is_none());
        if let Some(door) = door {
            report.egress(door.close().await);
        }

        if self.job.artifacts.is_empty() {
            return;
        }
        if !may_be_asked {
            return report.note("artifacts could not be collected: the sandbox was not to be asked any more");
        }
        company.progress.enter(Phase::Collect);
        let clock = Instant::now();
        let caps = self.settings.caps;
        let collected = collect(sandbox.channel(), &self.job.artifacts, caps, artifacts, cancelled).await;
        report.phases().collect_us = micros(clock);
        report.collected(collected);
    }
}

/// A job that is over. Dropped, its sandbox is ended all the same, and nobody hears how that went.
#[must_use = "its sandbox is still to be ended"]
#[derive(Debug)]
pub struct Ended {
    result: JobResult,
    remains: Option<Remains>,
}

/// A sandbox that is still to be ended.
#[must_use = "dropping it ends the sandbox without waiting for that"]
#[derive(Debug)]
pub struct Remains {
    dirty: Dirty,
    generation: GenerationId,
    progress: Progress,
}

impl Ended {
    /// A job that had no sandbox, or has none any more.
    pub fn without_sandbox(result: JobResult) -> Self {
        Self { result, remains: None }
    }

    /// How the job ended.
    #[must_use]
    pub fn result(&self) -> &JobResult {
        &self.result
    }

    /// The same, to be added to.
    pub fn result_mut(&mut self) -> &mut JobResult {
        &mut self.result
    }

    /// The result, which does not say how the sandbox ends; and the sandbox.
    #[must_use]
    pub fn apart(self) -> (JobResult, Option<Remains>) {
        (self.result, self.remains)
    }

    /// Ends the sandbox, and says in the result how that went. The job's outcome stays what it is.
    pub async fn clean(self) -> JobResult {
        let Self { mut result, remains } = self;
        if let Some(remains) = remains {
            let clock = Instant::now();
            let trouble = remains.clean().await.err();
            result.phases.clean_us = micros(clock);
            result.notes.extend(trouble.map(|trouble| format!("the sandbox could not be ended: {trouble}")));
        }
        result
    }
}

impl Remains {
    /// Ends the sandbox, or says why it is not gone. The log has it then.
    pub async fn clean(self) -> Result<(), String> {
        let Self { dirty, generation, progress } = self;
        progress.enter(Phase::Clean);
        let trouble = match timeout(GIVE_BACK, dirty.destroy()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was not gone after {GIVE_BACK:?}"),
        };
        tracing::error!(%generation, %trouble, "a sandbox could not be ended");
        Err(trouble)
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

#[cfg(test)]
mod tests;

//! The probes as jobs: admitted, staged, run and given back like anybody's.

use std::{future::Future, sync::Arc, time::Duration};

use egress::Plan;
use images::ImageRef;
use pool::{Id, Tier};
use scheduler::{Origin, Policy, admit};
use tokio::io::{AsyncBufReadExt, BufReader, duplex};
use worker::{
    ArtifactSink, Assignment, Company, Content, Discard, Job, JobLimits, JobResult, Outcome, Size,
    StagedFile, Worker, cancellation, printable,
};

use crate::{
    catalogue::{Probe, Way},
    ground::{BURN_MILLIS, Clues, OUTPUT, PROBER},
    looks::{Look, Looks},
    verdict::Seen,
};

/// Longer than all probes of a job take on the slowest tier.
pub(crate) const LONG: Duration = Duration::from_secs(180);
/// The deadline of a job that does not heed it.
const DEADLINE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_millis(300);
/// A quota is given out in periods, so a short life may get somewhat more.
const BURST: f64 = 1.35;
/// What a host may take besides until nothing of such a job is left.
const SLACK: Duration = Duration::from_secs(15);

/// Sandboxes of one tier.
#[derive(Debug, Clone)]
pub(crate) struct Inside<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) tier: Tier,
    pub(crate) image: &'a ImageRef,
    pub(crate) clues: &'a Clues,
    /// The way out that each of its jobs has.
    pub(crate) egress: Option<Arc<Plan>>,
}

impl Inside<'_> {
    /// Asks the probes, each in its way.
    pub(crate) async fn ask(&self, probes: &[&'static Probe]) -> Looks {
        let by = |way: Way| -> Vec<&'static str> {
            probes.iter().filter(|probe| probe.way == way).map(|probe| probe.id).collect()
        };
        let mut looks = Looks::default();
        for way in
            [Way::Look, Way::Use, Way::Memory, Way::Cpu, Way::Beside, Way::After, Way::Flood, Way::Deadline]
        {
            let ids = by(way);
            if ids.is_empty() {
                continue;
            }
            let seen = match way {
                Way::Beside => Box::pin(self.beside(&ids)).await,
                Way::After => self.after(&ids).await,
                Way::Cpu => self.burn().await.map(|look| one("R07", look)),
                Way::Flood => self.flood().await.map(|look| one("R08", look)),
                Way::Deadline => self.deadline().await.map(|look| one("R09", look)),
                _ => self.look(&ids).await,
            };
            match seen {
                Ok(seen) => looks.extend(seen),
                Err(why) => ids.iter().for_each(|id| looks.add(id, Look::unknown(why.clone()))),
            }
        }
        looks
    }

    /// A job that looks.
    async fn look(&self, ids: &[&str]) -> Result<Looks, String> {
        let job = self.job(ids.iter().map(ToString::to_string), LONG)?;
        let result = self.work(&job, Company::default()).await;
        if self.egress.is_some() && result.egress.is_none() {
            return Err(format!("it had no way out: {}", told(&result)));
        }
        let mut looks = Looks::parse(&result.stdout.text);
        for id in ids {
            if looks.of(id).is_none() {
                looks.add(id, unseen(id, &result));
            }
        }
        Ok(looks)
    }

    /// A job leaves marks and stays; another looks for them.
    async fn beside(&self, ids: &[&str]) -> Result<Looks, String> {
        let neighbour = self.job(["role=leave".to_owned()], LONG)?;
        let (looks, _) = Box::pin(self.with_neighbour(&neighbour, "left", self.look(ids))).await?;
        looks
    }

    /// Does something while a job waits that has said a word, and gives the notes of its result besides.
    pub(crate) async fn with_neighbour<T>(
        &self,
        job: &Assignment,
        word: &str,
        act: impl Future<Output = T>,
    ) -> Result<(T, Vec<String>), String> {
        let (stdin, our_stdin) = duplex(64);
        let (stdout, our_stdout) = duplex(4096);
        let company =
            Company { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), ..Company::default() };
        let acting = async {
            let mut line = String::new();
            let read = BufReader::new(our_stdout).read_line(&mut line).await;
            let acted = if read.is_ok() && line.trim() == word { Some(act.await) } else { None };
            // It ends with its standard input.
            drop(our_stdin);
            acted
        };
        let (result, acted) = tokio::join!(self.work(job, company), acting);
        let acted = acted.ok_or_else(|| format!("the neighbour did not start: {}", told(&result)))?;
        Ok((acted, result.notes))
    }

    /// A job leaves marks and is over; the next one looks for them.
    async fn after(&self, ids: &[&str]) -> Result<Looks, String> {
        let job = self.job(["role=leave".to_owned(), "keep=1".to_owned()], LONG)?;
        let result = self.work(&job, Company::default()).await;
        if result.outcome != Outcome::Succeeded {
            return Err(format!("the job before did not leave its marks: {}", told(&result)));
        }
        self.look(ids).await
    }

    /// A job burns what it gets. The host counts: a machine's own clocks do not see that it stood still.
    async fn burn(&self) -> Result<Look, String> {
        let mut job = self.job(["R07".to_owned()], LONG)?;
        job.want.limits.cpu_millis = BURN_MILLIS;
        let result = self.work(&job, Company::default()).await;
        let said = Looks::parse(&result.stdout.text).of("R07").cloned();
        let (Some(said), Some(usage)) = (said, &result.usage) else { return Err(told(&result)) };
        let phases = &result.phases;
        let lived = phases.checkout_us + phases.stage_us + phases.run_us;
        let got = usage.cpu_us as f64 / lived as f64;
        let allowed = f64::from(BURN_MILLIS) / 1000.0;
        let seen = format!("{got:.2} CPUs by the host's count, where {allowed:.2} are allowed");
        Ok(match said.seen {
            Seen::Unknown => said,
            _ => Look::told(got <= allowed * BURST, seen),
        })
    }

    /// A job writes more than it may. The host counts.
    async fn flood(&self) -> Result<Look, String> {
        let mut job = self.job(["role=flood".to_owned(), format!("bytes={}", OUTPUT * 4)], LONG)?;
        job.output_limit = OUTPUT;
        let result = self.work(&job, Company::default()).await;
        Ok(match result.outcome {
            Outcome::OutputLimit => Look::held(format!("ended after {} KiB of output", OUTPUT / 1024)),
            Outcome::Succeeded => Look::open(format!("{} bytes came out", result.stdout.bytes)),
            _ => Look::unknown(told(&result)),
        })
    }

    /// A job does not end, and has relatives. The host's clock counts until all of it is gone.
    async fn deadline(&self) -> Result<Look, String> {
        let mut job = self.job(["role=stay".to_owned()], DEADLINE)?;
        job.grace = GRACE;
        let result = self.work(&job, Company::default()).await;
        let took = Duration::from_micros(result.phases.run_us + result.phases.clean_us);
        let trouble = result.notes.iter().find(|note| note.contains("could not be ended"));
        let gone = took < DEADLINE + GRACE + SLACK && trouble.is_none();
        Ok(match result.outcome {
            Outcome::TimedOut => {
                let late = took.saturating_sub(DEADLINE).as_millis();
                let seen = format!("all of it was gone {late} ms after its deadline");
                Look::told(gone, trouble.cloned().unwrap_or(seen))
            }
            Outcome::Succeeded | Outcome::Failed => {
                Look::unknown(format!("it did not stay: {}", told(&result)))
            }
            _ => Look::unknown(told(&result)),
        })
    }

    /// A job of the prober.
    pub(crate) fn job(
        &self,
        words: impl IntoIterator<Item = String>,
        timeout: Duration,
    ) -> Result<Assignment, String> {
        let limits = self.clues.limits;
        let job = Job {
            schema_version: 1,
            tier: Some(self.tier),
            image: self.image.to_string(),
            command: [PROBER.to_owned()].into_iter().chain(self.clues.args()).chain(words).collect(),
            timeout: Some(timeout),
            limits: JobLimits {
                cpus: Some(f64::from(limits.cpu_millis) / 1000.0),
                memory: Some(Size::from(limits.memory)),
                pids: Some(limits.pids),
                disk: Some(Size::from(limits.disk)),
                output: None,
            },
            ..Job::default()
        };
        let origin = Origin {
            id: format!("selftest-{}", Id::random().short()),
            tenant: "selftest".to_owned(),
            attempt: 1,
            queued: Duration::ZERO,
        };
        let mut job = admit(job, origin, &Policy::default()).map_err(|refusal| refusal.to_string())?;
        // A job cannot ask for these, an operator's class can.
        job.want.limits.inodes = limits.inodes;
        job.egress.clone_from(&self.egress);
        job.files.push(StagedFile {
            path: PROBER.to_owned(),
            mode: 0o755,
            content: Content::Bytes(images::PROBER.to_vec()),
        });
        Ok(job)
    }

    pub(crate) async fn work(&self, job: &Assignment, company: Company) -> JobResult {
        self.work_into(job, company, &mut Discard).await
    }

    pub(crate) async fn work_into(
        &self,
        job: &Assignment,
        company: Company,
        sink: &mut impl ArtifactSink,
    ) -> JobResult {
        // Whoever could cancel it lives until it is over.
        let (_canceller, cancelled) = cancellation();
        self.worker.work(job, company, sink, cancelled).await
    }
}

fn one(id: &str, look: Look) -> Looks {
    let mut looks = Looks::default();
    looks.add(id, look);
    looks
}

/// A probe that said nothing, because its job was over before.
fn unseen(id: &str, result: &JobResult) -> Look {
    match result.outcome {
        // Where the kernel ends all of a sandbox at once, the prober goes, too, and the host has seen it.
        Outcome::OutOfMemory if id == "R02" => Look::held("the host saw all of it end, out of memory"),
        _ => Look::unknown(told(result)),
    }
}

/// How a job ended, in words.
pub(crate) fn told(result: &JobResult) -> String {
    let outcome = result.outcome.name();
    if let Some(error) = &result.error {
        return format!("its job ended as {outcome}: {}: {}", error.what, error.why);
    }
    let said = printable(result.stderr.text.trim().as_bytes());
    let said: String = said.chars().take(200).collect();
    let colon = if said.is_empty() { "" } else { ": " };
    format!("its job ended as {outcome}{colon}{said}")
}

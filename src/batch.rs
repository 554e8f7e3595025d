//! `mayfly batch`: a file of jobs, run to its end on this machine, with no server.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | every line of the jobs file has its result, whatever the outcomes are |
//! | 125 | mayfly failed: bad usage, no sandboxes, a disk that takes no results; what to do is said |
//! | 129, 130, 143 | mayfly was interrupted by SIGHUP, SIGINT (Ctrl-C), SIGTERM; `--resume` goes on |

mod progress;
mod remote;
mod report;

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use clap::Args;
use pool::{Pool, PoolConfig, Tier};
use scheduler::{
    Batch, BatchError, Defaults, JournalError, Plan, Running, Stage, Stop, Stopper,
    control::{self, Identity},
    live::Sight,
    stop,
    web::Web,
};
use tokio::runtime::Builder;
use worker::{ErrorReport, Settings, Worker, causes};

use crate::{
    complaint::{complain, remark},
    exit,
    node::{self, Places},
    shown,
    streams::Signals,
};

/// Run a file of jobs, each in a sandbox of its own, and write a file of results.
///
/// One job a line (`mayfly schema job`), one result a line (`mayfly schema result`), in the order in which jobs end. A
/// line that is no job gets a result that says so. Killed, the batch goes on with --resume and runs what has no
/// result; a job that may have started is run again only if it says "idempotent": true.
///
/// Ctrl-C once: no new jobs, those that run go on to their end. Twice: those are ended too.
///
/// Ends with 0 once every line has its result, whatever the outcomes; with 125 if mayfly failed; with 130 after
/// Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// The jobs, one a line.
    jobs: PathBuf,
    /// Where the results go [default: JOBS with .results.jsonl at its end].
    #[arg(short = 'o', long = "output", value_name = "RESULTS")]
    results: Option<PathBuf>,
    /// Jobs that run at once [default: twice the number of CPUs]; with --remote, that are with the broker at once [default: 256].
    #[arg(long = "jobs", value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    slots: Option<u16>,
    /// Go on with a batch that was interrupted; begin it if it was not begun.
    #[arg(long)]
    resume: bool,
    /// The image of jobs that name none.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The tier of jobs that give neither a tier nor a trust: chroot, nspawn, docker or vm [default: chroot; with --remote,
    /// what the service gives them].
    #[arg(long, value_name = "TIER")]
    tier: Option<Tier>,
    /// Send the jobs to the broker, for the hosts of the service to run. A job that was sent before is not run again
    /// but its result is fetched: one with the same id and content, or without an id on the same line of the same file.
    #[arg(long)]
    remote: bool,
    /// With --remote: whose jobs they are. The one tenant of the configuration, if there is only one.
    #[arg(long, requires = "remote")]
    tenant: Option<String>,
    /// Show metrics and health at this address of this host while the batch runs, such as 127.0.0.1:9477.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "remote")]
    metrics: Option<SocketAddr>,
    /// Print what became of the jobs as JSON on stdout.
    #[arg(long)]
    json: bool,
}

/// Runs the batch and says how it went.
pub(crate) fn run(args: BatchArgs, places: &Places) -> ExitCode {
    let (json, shown_at) = (args.json, args.metrics);
    let (plan, service) = match args.into_plan(places) {
        Ok(planned) => planned,
        Err(error) => {
            complain(&error);
            return exit::MAYFLY.into();
        }
    };
    let results = plan.results.clone();
    let started = Builder::new_multi_thread().enable_all().build();
    let ran = match started {
        Ok(runtime) => runtime.block_on(attend(plan, service, shown_at, places)),
        Err(error) => Err(no_start(&error)),
    };
    match ran {
        Ok(ran) => {
            let shown = report::show(&ran, &results, json);
            ran.trouble.iter().for_each(complain);
            match (shown, ran.interrupted_by) {
                (Err(error), _) => {
                    let hint = "the results are in their file all the same";
                    complain(&ErrorReport::new("cannot write to standard output", error.to_string(), hint));
                    exit::MAYFLY.into()
                }
                _ if !ran.trouble.is_empty() => exit::MAYFLY.into(),
                (_, Some(signal)) if ran.left > 0 => (128 | signal).into(),
                _ if ran.left > 0 => exit::MAYFLY.into(),
                _ => ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            complain(&error);
            exit::MAYFLY.into()
        }
    }
}

/// What is known at the end of it.
pub(crate) struct Ran {
    pub(crate) total: u64,
    /// Jobs that have no result yet.
    pub(crate) left: u64,
    pub(crate) tally: scheduler::Tally,
    pub(crate) retries: u64,
    pub(crate) took: std::time::Duration,
    /// Jobs that this process ended.
    pub(crate) ended: u64,
    interrupted_by: Option<u8>,
    trouble: Vec<ErrorReport>,
}

impl BatchArgs {
    fn into_plan(self, places: &Places) -> Result<(Plan, Option<remote::Service>), ErrorReport> {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        let service = if self.remote { Some(remote::Service::of(self.tenant, places)?) } else { None };
        let at_once = if self.remote { remote::AT_ONCE } else { 2 * cpus };
        let tier = self.tier.or((!self.remote).then_some(Tier::Chroot));
        let tenant = service.as_ref().map(|service| service.tenant.clone());
        let plan = Plan {
            results: self.results.unwrap_or_else(|| self.jobs.with_extension("results.jsonl")),
            jobs: self.jobs,
            resume: self.resume,
            defaults: Defaults { tier, image: self.image, tenant },
            policies: places.config()?.own_policies().map_err(|error| node::bad_config(&error))?,
            slots: self.slots.map_or(at_once, usize::from),
        };
        Ok((plan, service))
    }
}

async fn attend(
    plan: Plan,
    service: Option<remote::Service>,
    shown_at: Option<SocketAddr>,
    places: &Places,
) -> Result<Ran, ErrorReport> {
    let (stopper, stop) = stop();
    let interrupted_by = Arc::new(OnceLock::new());
    let signals = Signals::catch().map_err(|error| no_start(&error))?;
    let place = match shown_at {
        Some(address) => Some(shown::place_of_batch(address).await?),
        None => None,
    };
    let (jobs, results, slots) = (plan.jobs.clone(), plan.results.clone(), plan.slots);
    let batch = Batch::open(plan).map_err(|error| refused(&error, places))?;
    if batch.left() == 0 {
        let total = batch.total();
        let tally = batch.close().await.map_err(|error| refused(&error, places))?;
        return Ok(Ran {
            total,
            left: 0,
            tally,
            retries: 0,
            took: std::time::Duration::ZERO,
            ended: 0,
            interrupted_by: None,
            trouble: Vec::new(),
        });
    }
    if let Some(service) = service {
        let running = service.take(batch).await?;
        tokio::spawn(heed(signals, stopper.clone(), interrupted_by.clone(), remote::ENDED));
        return Ok(remote::work(running, &stopper, &stop, interrupted_by.as_ref()).await);
    }
    let mut settings = pool_settings(places, slots)?;
    let metrics = place.as_ref().map(|_| shown::of_batch(settings.settings.max_instances));
    if let Some(metrics) = &metrics {
        settings.witness = metrics.clone();
    }
    let pool = open_pool(&settings)?;
    let running = batch.with_metrics(Worker::new(pool, Settings::default()), metrics.clone());
    let who = Identity {
        jobs: absolute(jobs).display().to_string(),
        results: absolute(results).display().to_string(),
        total: Some(running.total()),
        ..node::identity("batch")
    };
    let sight = Sight { who, tiers: Tier::ALL.to_vec(), data_dir: places.data_dir.clone() };
    let web = place.zip(metrics).map(|(place, metrics)| {
        remark(&format!("its page, metrics and health are at http://{}", place.address()));
        running.expose(place, metrics, &sight, &stop)
    });
    let control = running.listen(&places.run_dir, &sight, &stop);
    if let Err(error) = &control {
        remark(&format!("`mayfly status` and `mayfly cancel` cannot reach this batch: {error}"));
    }
    tokio::spawn(heed(signals, stopper.clone(), interrupted_by.clone(), "the jobs that run are ended"));
    Ok(work(running, web, &stopper, &stop, interrupted_by.as_ref()).await)
}

/// Runs the jobs, shows how it goes, and cleans up.
async fn work(
    running: Running,
    web: Option<Web>,
    stopper: &Stopper,
    stop: &Stop,
    interrupted_by: &OnceLock<u8>,
) -> Ran {
    let clock = std::time::Instant::now();
    let (total, left_before) = (running.total(), running.left());
    let before = running.board().ended();
    let run = {
        let progress = progress::show(running.board(), total, left_before, stop.clone());
        tokio::pin!(progress);
        let run = running.run(stopper, stop);
        tokio::pin!(run);
        tokio::select! {
            run = &mut run => run,
            never = &mut progress => match never {},
        }
    };
    let took = clock.elapsed();
    let mut trouble: Vec<_> = run.err().into_iter().map(|error| report::of(&error)).collect();
    let retries = running.board().retries();
    let ended = running.board().ended() - before;
    let tally = running.board().tally();
    if let Some(web) = web {
        web.close().await;
    }
    let worker = match running.close().await {
        Ok((worker, _)) => worker,
        Err((worker, error)) => {
            trouble.push(report::of(&error));
            worker
        }
    };
    worker.into_pool().close().await;
    let interrupted_by = interrupted_by.get().copied();
    Ran {
        total,
        left: left_before - ended.min(left_before),
        tally,
        retries,
        took,
        ended,
        interrupted_by,
        trouble,
    }
}

/// Each signal goes one stage further: no new jobs, then none at all.
async fn heed(mut signals: Signals, stopper: Stopper, first: Arc<OnceLock<u8>>, twice: &'static str) {
    loop {
        let signal = signals.next().await;
        let _ = first.set(signal);
        match stopper.more() {
            Stage::Draining => {
                remark("no more jobs are started; those that run go on to their end (once more: end them)");
            }
            _ => remark(twice),
        }
    }
}

fn pool_settings(places: &Places, slots: usize) -> Result<PoolConfig, ErrorReport> {
    let mut config = places.pool(&places.config()?);
    // Each slot has one in use, one on its way out and one waiting.
    config.settings.max_instances = config.settings.max_instances.max(3 * slots);
    Ok(config)
}

fn open_pool(config: &PoolConfig) -> Result<Pool, ErrorReport> {
    Pool::open(config).map_err(|error| {
        let hint = "`mayfly doctor` says what this host needs";
        ErrorReport::new("no sandbox can be made here", causes(&error), hint)
    })
}

fn no_start(error: &io::Error) -> ErrorReport {
    ErrorReport::new(
        "cannot start",
        error.to_string(),
        "see whether this process may have more files and threads",
    )
}

/// Why there is no batch; where another process has it, which.
fn refused(error: &BatchError, places: &Places) -> ErrorReport {
    let mut report = report::of(error);
    if let BatchError::Journal(JournalError::InUse(results)) = error
        && let Some(pid) = runner_of(results, &places.run_dir)
    {
        report.why = format!("{} (pid {pid})", report.why);
    }
    report
}

/// The process that runs the batch with these results.
fn runner_of(results: &Path, run_dir: &Path) -> Option<u32> {
    let wanted = results.canonicalize().ok()?;
    control::client::live(run_dir).ok()?.iter().find_map(|socket| {
        match control::client::ask(socket, &control::Ask::Status) {
            Ok(control::Answer::Status(status)) if status.who.results == wanted => Some(status.who.pid),
            _ => None,
        }
    })
}

/// A path that means the same to whoever asks from another directory.
fn absolute(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap_or(path)
}

/// Whether there is somebody to draw for.
pub(crate) fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

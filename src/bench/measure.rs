//! Measures mayfly itself, through the path that every job takes.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use images::{ImageRef, Store, StoreError};
use pool::{Pool, PoolConfig, Settings};
use scheduler::{Origin, Policy, admit};
use tokio::{io::AsyncWrite, task::JoinSet, time::sleep};
use worker::{Assignment, Company, Discard, Job, JobLimits, JobResult, Outcome, Worker, causes};

use super::{
    BenchArgs,
    report::{Figure, Row},
};

/// How long the pool may take to be full before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is measured, and how often.
pub(super) struct Bench {
    config: PoolConfig,
    job: Assignment,
    times: usize,
    gap: Duration,
}

impl Bench {
    pub(super) fn new(config: PoolConfig, args: &BenchArgs) -> Result<Self, String> {
        let job = Job {
            schema_version: 1,
            tier: Some(args.tier),
            image: args.image.clone(),
            limits: JobLimits { memory: args.memory.map(Into::into), ..JobLimits::default() },
            command: vec!["/bin/echo".to_owned(), "hello".to_owned()],
            env: BTreeMap::new(),
            ..Job::default()
        };
        let origin =
            Origin { id: "bench".to_owned(), tenant: "local".to_owned(), attempt: 1, queued: Duration::ZERO };
        let job = admit(job, origin, &Policy::default()).map_err(|refusal| refusal.report().why)?;
        Ok(Self { config, job, times: args.times, gap: args.gap })
    }

    /// The image's files: where the floor takes its program from.
    pub(super) fn rootfs(&self) -> Result<PathBuf, StoreError> {
        let reference: &ImageRef = &self.job.want.image;
        Ok(Store::open(&self.config.data_dir.join("images"))?.resolve(reference)?.rootfs.clone())
    }

    /// The docker daemon, and what it calls the image once the tier has handed it over.
    pub(super) fn container(&self) -> Result<(String, String), StoreError> {
        let image = Store::open(&self.config.data_dir.join("images"))?.resolve(&self.job.want.image)?;
        Ok((self.config.docker.host.clone(), pool::docker_image(&image)))
    }

    fn worker(&self, settings: Settings) -> Result<Worker, String> {
        let pool =
            Pool::open(&PoolConfig { settings, ..self.config.clone() }).map_err(|error| causes(&error))?;
        Ok(Worker::new(pool, worker::Settings::default()))
    }

    /// Warm, cold and clean, one job at a time.
    pub(super) async fn latencies(&self) -> Result<Vec<Row>, String> {
        // One place: what is given back must be gone and made anew before the next can be ready.
        let worker = self.worker(Settings { idle_count: 1, max_instances: 1, ..Settings::default() })?;
        self.prime(&worker, 1)?;
        let (mut warm, mut clean) = (Vec::new(), Vec::new());
        wait_for_ready(worker.pool(), 1).await?;
        for _ in 0..self.times {
            sleep(self.gap).await;
            let asked = Instant::now();
            let (result, first) = work(&worker, &self.job).await?;
            let ended = asked.elapsed().saturating_sub(Duration::from_micros(result.phases.clean_us));
            wait_for_ready(worker.pool(), 1).await?;
            clean.push(asked.elapsed().saturating_sub(ended));
            warm.push(first.duration_since(asked));
        }
        worker.into_pool().close().await;

        let worker = self.worker(Settings::default())?;
        let mut cold = Vec::new();
        // No job is to come, as far as the pool knows: nothing is made ahead.
        worker.pool().expect(&self.job.want, 0).map_err(|error| causes(&error))?;
        for _ in 0..self.times {
            sleep(self.gap).await;
            let (result, _) = work(&worker, &self.job).await?;
            cold.push(Duration::from_micros(result.phases.checkout_us));
        }
        worker.into_pool().close().await;
        Ok(vec![
            Row::latency(
                "warm",
                "request to the first byte of the job's stdout, a clean sandbox waiting",
                warm,
            ),
            Row::latency("making", "an empty pool's checkout: from nothing to a clean sandbox", cold),
            Row::latency("clean", "end of the job to the next clean sandbox in the same place", clean),
        ])
    }

    /// As many jobs at once as sandboxes wait.
    pub(super) async fn burst(&self, size: usize) -> Result<Row, String> {
        let worker =
            self.worker(Settings { idle_count: size, max_instances: 2 * size, ..Settings::default() })?;
        self.prime(&worker, size)?;
        wait_for_ready(worker.pool(), size).await?;
        worker.pool().expect(&self.job.want, size).map_err(|error| causes(&error))?;
        let worker = Arc::new(worker);
        let mut jobs = JoinSet::new();
        let asked = Instant::now();
        for _ in 0..size {
            let (worker, job) = (Arc::clone(&worker), self.job.clone());
            jobs.spawn(async move { work(&worker, &job).await });
        }
        let mut firsts = Vec::new();
        while let Some(done) = jobs.join_next().await {
            let (_, first) = done.map_err(|error| error.to_string())??;
            firsts.push(first.duration_since(asked));
        }
        close(worker).await;
        Ok(Row::latency(
            format!("burst of {size}"),
            "all at once on as many clean sandboxes: request to first byte, each",
            firsts,
        ))
    }

    /// A tenfold step in arrivals, and how many jobs after one refill horizon found no sandbox waiting.
    pub(super) async fn step(&self) -> Result<Vec<Row>, String> {
        const SLOW: Duration = Duration::from_millis(100);
        const FAST: Duration = Duration::from_millis(10);
        let worker = Arc::new(self.worker(Settings { idle_count: 1, ..Settings::default() })?);
        self.prime(&worker, usize::MAX)?;
        wait_for_ready(worker.pool(), 1).await?;
        let mut jobs = JoinSet::new();
        for (every, count) in [(SLOW, 20), (FAST, 200)] {
            let mut tick = tokio::time::interval(every);
            for position in 0..count {
                tick.tick().await;
                let (worker, job, after_step) =
                    (Arc::clone(&worker), self.job.clone(), (every == FAST).then_some(position));
                jobs.spawn(async move { (after_step, work(&worker, &job).await) });
            }
        }
        // One horizon: the fast average's quarter of a second, in arrivals.
        let horizon = 25;
        let (mut within, mut after) = (0, 0);
        while let Some(done) = jobs.join_next().await {
            let (position, worked) = done.map_err(|error| error.to_string())?;
            let cold = worked?.0.source == Some(pool::Source::Cold);
            match position {
                Some(position) if position < horizon => within += usize::from(cold),
                Some(_) => after += usize::from(cold),
                None => {}
            }
        }
        close(worker).await;
        let count = |name: &str, boundary, count, of| Row {
            name: name.to_owned(),
            boundary,
            figure: Figure::Count { count, of },
        };
        Ok(vec![
            count(
                "step x10, at once",
                "cold checkouts in the first 0.25 s after arrivals went from 10/s to 100/s",
                within,
                horizon,
            ),
            count("step x10, after", "cold checkouts after that", after, 200 - horizon),
        ])
    }

    /// As many jobs as this host can do, each in a sandbox of its own.
    pub(super) async fn sustained(&self, during: Duration) -> Result<Row, String> {
        let worker = Arc::new(self.worker(Settings::default())?);
        self.prime(&worker, usize::MAX)?;
        let mut job = self.job.clone();
        job.command = vec!["/bin/true".to_owned()];
        let done = Arc::new(AtomicUsize::new(0));
        let lanes = 2 * std::thread::available_parallelism().map_or(2, usize::from);
        let until = Instant::now() + during;
        let mut running = JoinSet::new();
        for _ in 0..lanes {
            let (worker, job, done) = (Arc::clone(&worker), job.clone(), Arc::clone(&done));
            running.spawn(async move {
                while Instant::now() < until {
                    let (_ending, cancelled) = worker::cancellation();
                    let result = worker.work(&job, Company::default(), &mut Discard, cancelled).await;
                    succeeded(&result)?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(())
            });
        }
        let began = Instant::now();
        while let Some(lane) = running.join_next().await {
            lane.map_err(|error| error.to_string())??;
        }
        let (n, took) = (done.load(Ordering::Relaxed), began.elapsed());
        close(worker).await;
        Ok(Row {
            name: "sustained".to_owned(),
            boundary: "jobs of /bin/true: checkout, run, result, ledger and teardown of each",
            figure: Figure::Rate { per_second: n as f64 / took.as_secs_f64(), n },
        })
    }

    /// What one waiting sandbox holds: agent and armed process, or a machine.
    pub(super) async fn idle_memory(&self, count: usize) -> Result<Vec<Row>, String> {
        let worker = self.worker(Settings { idle_count: count, ..Settings::default() })?;
        self.prime(&worker, count)?;
        wait_for_ready(worker.pool(), count).await?;
        let pids = worker.pool().sandbox_pids();
        let row = |name: &str, boundary, fields: &[&str]| {
            let total: u64 = pids.iter().map(|pid| memory(*pid, fields)).sum();
            let figure = Figure::Bytes { bytes: total / count as u64, n: count };
            Row { name: name.to_owned(), boundary, figure }
        };
        let rows = vec![
            row("idle PSS", "of one waiting sandbox, all its processes, shared pages divided", &["Pss:"]),
            row("idle private", "its pages that nobody shares", &["Private_Clean:", "Private_Dirty:"]),
            row("idle RSS", "the same as if nothing were shared", &["Rss:"]),
        ];
        worker.into_pool().close().await;
        Ok(rows)
    }

    /// The pool learns of a kind when somebody asks for it.
    fn prime(&self, worker: &Worker, jobs: usize) -> Result<(), String> {
        worker.pool().expect(&self.job.want, jobs.saturating_add(self.times)).map_err(|error| causes(&error))
    }
}

async fn close(worker: Arc<Worker>) {
    if let Some(worker) = Arc::into_inner(worker) {
        worker.into_pool().close().await;
    }
}

async fn wait_for_ready(pool: &Pool, count: usize) -> Result<(), String> {
    let began = Instant::now();
    while pool.status().iter().map(|kind| kind.ready).sum::<usize>() < count {
        if began.elapsed() > PATIENCE {
            return Err(format!(
                "no {count} sandboxes were clean after {PATIENCE:?}; MAYFLY_LOG=warn says why"
            ));
        }
        sleep(Duration::from_micros(200)).await;
    }
    Ok(())
}

/// One job, and when the first byte of its stdout came.
async fn work(worker: &Worker, job: &Assignment) -> Result<(JobResult, Instant), String> {
    let first = Arc::new(OnceLock::new());
    let company = Company { stdout: Some(Box::new(FirstByte(Arc::clone(&first)))), ..Company::default() };
    let (_ending, cancelled) = worker::cancellation();
    let result = worker.work(job, company, &mut Discard, cancelled).await;
    succeeded(&result)?;
    let first = first.get().copied().ok_or("the job wrote nothing")?;
    Ok((result, first))
}

fn succeeded(result: &JobResult) -> Result<(), String> {
    match (&result.outcome, &result.error) {
        (Outcome::Succeeded, _) => Ok(()),
        (outcome, Some(error)) => Err(format!("a job ended as {outcome:?}: {}: {}", error.what, error.why)),
        (outcome, None) => Err(format!("a job ended as {outcome:?}")),
    }
}

/// Notes when the first byte is written to it.
struct FirstByte(Arc<OnceLock<Instant>>);

impl AsyncWrite for FirstByte {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.get_or_init(Instant::now);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The sum of these fields, in bytes, see proc(5).
fn memory(pid: i32, fields: &[&str]) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let values = rollup.lines().filter_map(|line| fields.iter().find_map(|field| line.strip_prefix(field)));
    let kib: u64 = values.filter_map(|value| value.split_whitespace().next()?.parse::<u64>().ok()).sum();
    kib * 1024
}

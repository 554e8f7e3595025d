//! `mayfly run`: one job, here and now, with its streams and its exit code passed through.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytesize::ByteSize;
use clap::Args;
use pool::{OpenError, Pool, Tier};
use scheduler::{Origin, Policy, admit, config::Config};
use tokio::runtime::{Builder, Runtime};
use worker::{
    Assignment, Company, ErrorReport, Job, JobLimits, JobResult, Outcome, Settings, Worker, causes,
};

use crate::{
    complaint::{complain, remark},
    exit,
    get::{self, Get, LocalFiles},
    node::{self, Places},
    put::{self, Put},
    streams::{Signals, Stdout},
    summary,
};

/// The tenant of whoever calls `mayfly run`.
const TENANT: &str = "local";

/// Run one command in a sandbox of its own, which is thrown away afterwards.
///
/// Its output and its exit code are passed through. 124: timed out; 125: mayfly failed; 126: not executable;
/// 127: not found; 128+n: ended by signal n; 137: out of memory, above its output limit, or killed.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How strongly the sandbox is isolated: chroot, nspawn, docker or vm.
    #[arg(long, default_value = "chroot", value_name = "TIER")]
    tier: Tier,
    /// The image to run in: NAME, or NAME@sha256:DIGEST.
    #[arg(long, default_value = "base")]
    image: String,
    /// How long the command may run.
    #[arg(long, default_value = "10m", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// Time between SIGTERM and SIGKILL, at the timeout or after Ctrl-C.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "TIME")]
    grace: Duration,
    /// Memory of all processes and files, without swap [default: 512MiB].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    memory: Option<u64>,
    /// CPUs, such as 0.5 or 2 [default: 1].
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<f64>,
    /// Processes and threads [default: 128].
    #[arg(long, value_name = "NUMBER")]
    pids: Option<u32>,
    /// Bytes in all files, held in memory [default: half of the memory].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    disk: Option<u64>,
    /// Bytes that may be written to stdout and stderr; the job is killed above it [default: 64MiB].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    output: Option<u64>,
    /// An environment variable. May be repeated.
    #[arg(long, value_parser = variable, value_name = "NAME=VALUE")]
    env: Vec<(String, String)>,
    /// A host that the command may reach, through its proxy: api.example.com (ports 80 and 443), *.example.com:8443,
    /// 192.0.2.7:80. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    allow: Vec<String>,
    /// A tunnel of the configuration that the command may use. May be repeated.
    #[arg(long, value_name = "NAME")]
    tunnel: Vec<String>,
    /// A secret of the configuration (of tenant "local") that the command gets. May be repeated.
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
    /// Where the command starts [default: the image's own].
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Put a file, or all files below a directory, into the sandbox. May be repeated.
    #[arg(long, value_name = "LOCAL:PATH")]
    put: Vec<Put>,
    /// Get a file, a directory or what a glob matches out of the sandbox, whatever the outcome. May be repeated.
    #[arg(long, value_name = "PATH:LOCAL")]
    get: Vec<Get>,
    /// Pass mayfly's stdin on to the command.
    #[arg(long)]
    stdin: bool,
    /// Print the result as JSON (`mayfly schema result`), with the command's output inside.
    #[arg(long)]
    json: bool,
    /// Say at the end, on stderr, what happened, where, and what it cost.
    #[arg(long)]
    summary: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command to its end and says how it ended.
pub(crate) fn run(args: RunArgs, places: &Places) -> ExitCode {
    let (json, wants_summary) = (args.json, args.summary);
    let ran = match prepare(args, places) {
        Ok(prepared) => carry_out(prepared, places),
        Err(refused) => Ran::not_at_all(Outcome::Rejected, refused),
    };
    let shown = if json {
        show_json(&ran.result)
    } else {
        show(&ran);
        Ok(())
    };
    if wants_summary {
        let _ = summary::print(&ran.result, &mut io::stderr().lock());
    }
    match (shown, ran.stdout_trouble) {
        (Err(error), _) | (_, Some(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            exit::READER_GONE.into()
        }
        (Err(error), _) | (_, Some(error)) => {
            let hint = "see that it can be written to, or send it elsewhere";
            complain(&ErrorReport::new("cannot write to standard output", error.to_string(), hint));
            exit::MAYFLY.into()
        }
        (Ok(()), None) => match exit::code(&ran.result, ran.interrupted_by) {
            0 if ran.missing => exit::MAYFLY.into(),
            code => code.into(),
        },
    }
}

/// A job that may be run, and what goes with it on this host.
struct Prepared {
    config: Config,
    job: Assignment,
    artifacts: LocalFiles,
    stdin: bool,
    live: bool,
}

/// What is known when it is over.
struct Ran {
    result: JobResult,
    /// The first signal that asked mayfly to end.
    interrupted_by: Option<u8>,
    stdout_trouble: Option<io::Error>,
    /// Whether a `--get` gave nothing.
    missing: bool,
}

impl Ran {
    fn not_at_all(outcome: Outcome, error: ErrorReport) -> Self {
        let result = JobResult::never_started("run", TENANT, outcome, error);
        Self { result, interrupted_by: None, stdout_trouble: None, missing: false }
    }
}

/// Everything that can be refused before there is a sandbox.
fn prepare(args: RunArgs, places: &Places) -> Result<Prepared, ErrorReport> {
    get::check(&args.get)?;
    let config = places.config()?;
    let policy = Policy { egress: Arc::new(rights(&args, &config)?), ..Policy::default() };
    let files = put::files(&args.put)?;
    let (stdin, live) = (args.stdin, !args.json);
    let gets = args.get.clone();
    let origin = Origin {
        id: format!("run-{}", pool::Id::random().short()),
        tenant: TENANT.to_owned(),
        attempt: 1,
        queued: Duration::ZERO,
    };
    let mut job = admit(args.into_job(), origin, &policy).map_err(|refusal| refusal.report())?;
    job.files.extend(files);
    Ok(Prepared { config, job, artifacts: LocalFiles::new(gets), stdin, live })
}

/// What the command may reach: what whoever calls mayfly says.
fn rights(args: &RunArgs, config: &Config) -> Result<egress::Rights, ErrorReport> {
    let rules = args.allow.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(|error| {
        let error: egress::BadRule = error;
        ErrorReport::new(
            "--allow names no host",
            error.to_string(),
            "name a host, and a port where it is neither 80 nor 443",
        )
    })?;
    config.own_rights(TENANT, rules, &args.tunnel).map_err(|error| node::bad_config(&error))
}

impl RunArgs {
    fn into_job(self) -> Job {
        Job {
            schema_version: 1,
            tier: Some(self.tier),
            image: self.image,
            command: self.command,
            env: self.env.into_iter().collect(),
            allow: self.allow,
            tunnels: self.tunnel,
            secrets: self.secret,
            workdir: self.workdir,
            timeout: Some(self.timeout),
            grace: Some(self.grace),
            limits: JobLimits {
                cpus: self.cpus,
                memory: self.memory.map(Into::into),
                pids: self.pids,
                disk: self.disk.map(Into::into),
                output: self.output.map(Into::into),
            },
            artifacts: self.get.into_iter().map(|get| get.path).collect(),
            ..Job::default()
        }
    }
}

fn carry_out(prepared: Prepared, places: &Places) -> Ran {
    let started = Builder::new_current_thread().enable_all().build();
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(error) => return Ran::not_at_all(Outcome::InfraError, no_start(&error)),
    };
    let ran = runtime.block_on(attend(&runtime, prepared, places));
    // A thread may still wait for the terminal's next line: nobody needs it.
    runtime.shutdown_background();
    ran
}

async fn attend(runtime: &Runtime, prepared: Prepared, places: &Places) -> Ran {
    let Prepared { config, job, mut artifacts, stdin, live } = prepared;
    let (ending, cancelled) = worker::cancellation();
    let interrupted_by = Arc::new(OnceLock::new());
    match Signals::catch() {
        Ok(signals) => drop(runtime.spawn(signals.cancel(ending.clone(), interrupted_by.clone()))),
        Err(error) => return Ran::not_at_all(Outcome::InfraError, no_start(&error)),
    }
    let pool = match Pool::open(&places.pool(&config)) {
        Ok(pool) => pool,
        Err(error) => return Ran::not_at_all(Outcome::InfraError, no_pool(&error)),
    };
    // One job comes and no more, so nothing is made ahead. What is wrong with the job is said at its checkout.
    let _ = pool.expect(&job.want, 1);
    let worker = Worker::new(pool, Settings::default());

    let trouble = Arc::new(OnceLock::new());
    let company = Company {
        stdin: stdin.then(|| Box::new(tokio::io::stdin()) as _),
        stdout: live.then(|| Box::new(Stdout::new(ending.clone(), trouble.clone())) as _),
        stderr: live.then(|| Box::new(tokio::io::stderr()) as _),
        ..Company::default()
    };
    let result = worker.work(&job, company, &mut artifacts, cancelled).await;
    worker.into_pool().close().await;

    let without_any: Vec<_> = artifacts.without_any().map(ToOwned::to_owned).collect();
    for path in &without_any {
        // Where a reason is known, that is said instead.
        if !result.skipped.iter().any(|skipped| skipped.path == *path) {
            remark(&format!("there was nothing to get at {path}"));
        }
    }
    Ran {
        result,
        interrupted_by: interrupted_by.get().copied(),
        stdout_trouble: trouble.get().map(|error| io::Error::from(error.kind())),
        missing: !without_any.is_empty(),
    }
}

fn no_start(error: &io::Error) -> ErrorReport {
    ErrorReport::new(
        "cannot start",
        error.to_string(),
        "see whether this process may have more files and threads",
    )
}

fn no_pool(error: &OpenError) -> ErrorReport {
    let hint = match error {
        OpenError::NotRoot => "run it as root, with sudo for instance",
        _ => "`mayfly doctor` says what this host needs",
    };
    ErrorReport::new("no sandbox can be made here", causes(error), hint)
}

fn show_json(result: &JobResult) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, result)?;
    writeln!(out)?;
    out.flush()
}

/// Says on stderr what the exit code alone does not.
fn show(ran: &Ran) {
    let JobResult { error, skipped, notes, .. } = &ran.result;
    // Whoever ended the job knows that it was ended.
    if ran.stdout_trouble.is_none()
        && !(ran.result.outcome == Outcome::Cancelled && ran.interrupted_by.is_some())
        && let Some(error) = error
    {
        complain(error);
    }
    for skipped in skipped {
        remark(&format!("left out: {}: {}", skipped.path, skipped.reason));
    }
    for note in notes {
        remark(note);
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write something like 30s, 10m or 1h30m"))
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    text.parse().map(|ByteSize(bytes)| bytes).map_err(|_| {
        "that is no size; write something like 256MiB (1024-based), 256MB (1000-based) or a number of bytes".to_owned()
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as LANG=C.UTF-8")?;
    Ok((name.to_owned(), value.to_owned()))
}

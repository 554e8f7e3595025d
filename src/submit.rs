//! `mayfly submit`: sends one job to the broker, and waits for its result if asked to.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use pool::Tier;
use scheduler::{
    JobKey, Store,
    broker::{Producer, ReplyBy, Submission, Submitted, routing_key},
    config::Config,
};
use tokio::time::sleep;
use worker::{ErrorReport, Job, JobResult, causes};

use crate::{
    complaint::remark,
    exit,
    node::{self, Places},
    services::{self, carry_out, no_broker},
};

/// How often the store is asked for a result that has not come.
const LOOK: Duration = Duration::from_secs(5);

/// Send one job to the broker.
///
/// Prints TENANT/ID once the broker has the job on disk. The same job may be sent again without harm: it runs once, and who
/// sends it again hears the first result. With --wait the result is printed as JSON, and the exit code is the job's, as
/// with `mayfly run`; it comes from the broker, or from the store if that way is cut.
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The job, as JSON (`mayfly schema job`); `-` reads it from standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Whose job it is. The one tenant of the configuration, if there is only one.
    #[arg(long)]
    tenant: Option<String>,
    /// Wait for the result and print it.
    #[arg(long)]
    wait: bool,
    /// How long the job may wait before it begins; then it is rejected.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    expires: Option<Duration>,
}

/// Sends, and waits if asked to.
pub(crate) fn run(args: SubmitArgs, places: &Places) -> ExitCode {
    carry_out(attend(args, places))
}

async fn attend(args: SubmitArgs, places: &Places) -> Result<ExitCode, ErrorReport> {
    let config = places.config()?;
    let tenant = tenant(args.tenant, &config)?;
    let body = read(&args.file)?;
    let job = parse(&body)?;
    let tier =
        config.policies().map_err(|error| node::bad_config(&error))?.of(&tenant).tier(job.tier, job.trust);
    let replies = if args.wait { ReplyBy::Direct } else { ReplyBy::Nothing };
    let producer = Producer::connect(&services::broker(&config)?, &tenant, replies)
        .await
        .map_err(|error| no_broker(&error))?;
    let kept = args.wait && will_keep(&config, &tenant, job.id.as_deref()).await;
    let submission =
        Submission { key: routing_key(&job), id: job.id, body, expires: args.expires, traceparent: None };
    let sent = producer.submit(submission).await.map_err(|error| no_broker(&error))?;
    let key = JobKey::new(tenant, sent.id.clone());
    if config.store.is_some() {
        note(&config, &key, tier).await;
    }
    if !args.wait {
        print(&key.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    remark(&format!("sent {key}"));
    told(wait(sent, &key, kept.then_some(&config)).await?)
}

/// Whether the store will have a result of this job, and knows no other of that name.
async fn will_keep(config: &Config, tenant: &str, id: Option<&str>) -> bool {
    // What is called by its body is the same job.
    let Some(id) = id else { return config.store.is_some() };
    match services::answering_store(config).await {
        Ok(store) => matches!(store.state(&JobKey::new(tenant, id)).await, Ok(None)),
        Err(_) => false,
    }
}

/// Waits for the reply, and looks into the store of the configuration: a reply goes by one connection, and with it is lost.
async fn wait(
    sent: Submitted,
    key: &JobKey,
    kept: Option<&Config>,
) -> Result<Result<JobResult, String>, ErrorReport> {
    let found = async {
        match kept {
            Some(config) => look_for(config, key).await,
            None => std::future::pending().await,
        }
    };
    let mut found = std::pin::pin!(found);
    let error = tokio::select! {
        answered = sent.result() => match answered {
            Ok(answered) => return Ok(answered.result),
            Err(error) => error,
        },
        result = &mut found => return Ok(Ok(result)),
    };
    if kept.is_none() {
        let hint = format!("the job is with the broker all the same; ask for it by `mayfly result {key}`");
        return Err(ErrorReport::new("the result did not come", causes(&error), hint));
    }
    remark(&format!("{}: the result is looked for in the store", causes(&error)));
    Ok(Ok(found.await))
}

async fn look_for(config: &Config, key: &JobKey) -> JobResult {
    loop {
        sleep(LOOK).await;
        if let Ok(store) = services::answering_store(config).await
            && let Ok(Some(result)) = store.result(key).await
        {
            return result;
        }
    }
}

/// So that `mayfly status` knows it before any host has pulled it.
async fn note(config: &Config, key: &JobKey, tier: Tier) {
    let noted = async {
        services::answering_store(config)
            .await?
            .submitted(key, Some(tier))
            .await
            .map_err(|error| ErrorReport::new("the store", causes(&error), ""))
    };
    if let Err(error) = noted.await {
        remark(&format!("{key} is sent, but cannot be asked for before it begins: {}", error.why));
    }
}

fn told(result: Result<JobResult, String>) -> Result<ExitCode, ErrorReport> {
    let result = result.map_err(|why| {
        let hint = "ask for it by `mayfly result`; see that both sides have the same version";
        ErrorReport::new("what came is no result", why, hint)
    })?;
    let text = serde_json::to_string_pretty(&result).map_err(|error| {
        ErrorReport::new("the result cannot be shown", error.to_string(), "ask for it by `mayfly result`")
    })?;
    print(&text)?;
    Ok(exit::code(&result, None).into())
}

fn print(text: &str) -> Result<(), ErrorReport> {
    writeln!(io::stdout().lock(), "{text}").map_err(|error| {
        let hint = "the job is with the broker all the same";
        ErrorReport::new("cannot write to standard output", error.to_string(), hint)
    })
}

pub(crate) fn tenant(named: Option<String>, config: &Config) -> Result<String, ErrorReport> {
    let mut known = config.tenants.keys();
    match (named, known.next(), known.next()) {
        (Some(tenant), ..) => Ok(tenant),
        (None, Some(only), None) => Ok(only.clone()),
        (None, ..) => {
            let why = format!("the configuration has {} tenants", config.tenants.len());
            Err(ErrorReport::new("whose job it is, is not said", why, "name the tenant by --tenant"))
        }
    }
}

fn read(file: &std::path::Path) -> Result<Vec<u8>, ErrorReport> {
    let read = if file.as_os_str() == "-" {
        let mut body = Vec::new();
        io::stdin().lock().read_to_end(&mut body).map(|_| body)
    } else {
        fs::read(file)
    };
    read.map_err(|error| {
        let what = format!("cannot read the job from {}", file.display());
        ErrorReport::new(what, error.to_string(), "name a file with one job, or - for standard input")
    })
}

/// What is no job is told here, and not by a host some time later.
fn parse(body: &[u8]) -> Result<Job, ErrorReport> {
    serde_json::from_slice(body).map_err(|error| {
        let hint = "`mayfly schema job` shows what a job looks like";
        ErrorReport::new("this is no job", error.to_string(), hint)
    })
}

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
    JobKey,
    broker::{Answered, Producer, ReplyBy, Submission, routing_key},
    config::Config,
};
use worker::{ErrorReport, Job, JobResult, causes};

use crate::{
    complaint::remark,
    exit,
    node::{self, Places},
    services::{self, carry_out, no_broker},
};

/// Send one job to the broker.
///
/// Prints TENANT/ID once the broker has the job on disk. The same job may be sent again without harm: it runs once, and who
/// sends it again hears the first result. With --wait the result is printed as JSON, and the exit code is the job's, as
/// with `mayfly run`.
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
    let answered = sent.result().await.map_err(|error| {
        let hint = format!("the job is with the broker all the same; ask for it by `mayfly result {key}`");
        ErrorReport::new("the result did not come", causes(&error), hint)
    })?;
    told(answered)
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

fn told(answered: Answered) -> Result<ExitCode, ErrorReport> {
    let result: JobResult = answered.result.map_err(|why| {
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

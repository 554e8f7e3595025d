//! `mayfly cancel`: ends one job of a live mayfly of this host, or keeps it from starting.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use scheduler::{
    Cancelling, JobKey,
    config::Config,
    control::{Answer, Ask, CancelStatus, client::live},
};
use worker::ErrorReport;

use crate::{node::Places, remote, services::carry_out, status::answers};

/// End a job: SIGTERM, its grace, SIGKILL. One that has not begun does not begin.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The job: ID, or TENANT/ID.
    job: String,
}

/// A job of the service, which another host may run.
async fn remote_cancel(config: &Config, job: &JobKey) -> Result<ExitCode, ErrorReport> {
    let (line, code) = match remote::cancel(config, job).await? {
        None => (format!("no job {job} is known"), ExitCode::FAILURE),
        Some(Cancelling::Over) => (format!("{job}: it is over already"), ExitCode::FAILURE),
        Some(Cancelling::Noted) => (format!("{job}: whoever has it has been told"), ExitCode::SUCCESS),
    };
    writeln!(io::stdout().lock(), "{line}").map_err(|error| {
        ErrorReport::new("cannot write to standard output", error.to_string(), "ask again")
    })?;
    Ok(code)
}

/// Asks every live process. Ends with 1 if none knows the job, or if it is over.
pub(crate) fn run(args: &CancelArgs, places: &Places, out: &mut impl Write) -> io::Result<ExitCode> {
    let sockets = live(&places.run_dir)?;
    let question = Ask::Cancel { job: args.job.clone() };
    let job = args.job.escape_default();
    let (mut said, mut cancelled) = (false, false);
    for answer in answers(&sockets, &question) {
        let Answer::Cancel { cancelled: became } = answer else { continue };
        let line = match became {
            CancelStatus::Unknown => continue,
            CancelStatus::Told => "it has been told to end",
            CancelStatus::Noted => "it will not be started",
            CancelStatus::Over => "it is over already",
        };
        said = true;
        cancelled |= became != CancelStatus::Over;
        writeln!(out, "{job}: {line}")?;
    }
    if !said
        && let Ok(key) = args.job.parse()
        && let Ok(config) = places.config()
        && config.store.is_some()
    {
        return Ok(carry_out(remote_cancel(&config, &key)));
    }
    if !said {
        writeln!(out, "no mayfly that runs here knows the job \"{job}\"")?;
    }
    Ok(if cancelled { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

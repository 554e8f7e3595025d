//! `mayfly cancel`: ends one job of a live mayfly of this host, or keeps it from starting.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use scheduler::control::{Answer, Ask, CancelStatus, client::live};

use crate::{node::Places, status::answers};

/// End a job: SIGTERM, its grace, SIGKILL. One that has not begun does not begin.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The job: ID, or TENANT/ID.
    job: String,
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
    if !said {
        writeln!(out, "no mayfly that runs here knows the job \"{job}\"")?;
    }
    Ok(if cancelled { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

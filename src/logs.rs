//! `mayfly logs`: what a job of the service writes, while it runs and from any host.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use scheduler::{
    Store as _,
    redis::{Said, Stream},
};
use worker::{ErrorReport, causes};

use crate::{
    complaint::remark,
    node::Places,
    services::{self, carry_out},
};

/// How long what is there already may take to come.
const BACKLOG: Duration = Duration::from_millis(500);

/// Print what a job of the service has written: its stdout on stdout, its stderr on stderr.
///
/// The bytes are the job's own: on a terminal, control characters other than line ends and tabs are shown and not obeyed.
/// Ends with 1 if the job is not known.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The job: TENANT/ID.
    job: String,
    /// Go on until the job has its result.
    #[arg(short, long)]
    follow: bool,
}

/// Asks the store and prints.
pub(crate) fn run(args: &LogsArgs, places: &Places) -> ExitCode {
    carry_out(attend(args, places))
}

async fn attend(args: &LogsArgs, places: &Places) -> Result<ExitCode, ErrorReport> {
    let job = services::job(&args.job)?;
    let store = services::answering_store(&places.config()?).await?;
    let failed = |error: scheduler::StoreError| {
        ErrorReport::new("the store failed", causes(&error), "see that Redis runs")
    };
    if store.state(&job).await.map_err(failed)?.is_none() {
        remark(&format!("no job {job} is known"));
        return Ok(ExitCode::FAILURE);
    }
    let mut follow = store.follow(&job);
    loop {
        let next = if args.follow {
            follow.next().await.map_err(failed)?
        } else {
            match tokio::time::timeout(BACKLOG, follow.next()).await {
                Ok(next) => next.map_err(failed)?,
                // It still runs, and has written no more so far.
                Err(_) => None,
            }
        };
        let Some(said) = next else { return Ok(ExitCode::SUCCESS) };
        if show(&said).is_err() {
            // Whoever read has gone.
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn show(said: &Said) -> io::Result<()> {
    match said {
        Said::Attempt(1) => {}
        Said::Attempt(number) => remark(&format!("attempt {number}")),
        Said::Missing(stream, bytes) => {
            remark(&format!("{bytes} bytes of {} are not shown", name(*stream)));
        }
        Said::Output(Stream::Stdout, bytes) => write(&mut io::stdout().lock(), bytes)?,
        Said::Output(Stream::Stderr, bytes) => write(&mut io::stderr().lock(), bytes)?,
    }
    Ok(())
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

/// A job must not write to the terminal of who looks at it: titles, colours and worse.
fn write(out: &mut (impl Write + io::IsTerminal), bytes: &[u8]) -> io::Result<()> {
    if out.is_terminal() {
        let text = String::from_utf8_lossy(bytes);
        for letter in text.chars() {
            if letter.is_control() && !matches!(letter, '\n' | '\t') {
                write!(out, "{}", letter.escape_default())?;
            } else {
                write!(out, "{letter}")?;
            }
        }
    } else {
        out.write_all(bytes)?;
    }
    out.flush()
}

//! `mayfly dlq`: jobs that mayfly gave up, kept on the broker with what is known of their end.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use scheduler::broker::{BrokerError, DeadJob, DeadLetters};
use worker::ErrorReport;

use crate::{
    complaint::remark,
    node::Places,
    services::{self, carry_out, no_broker},
};

/// Look at the jobs that mayfly gave up (infrastructure failures beyond their bound, lost sandboxes), and send them again.
///
/// Each of them has its result all the same.
#[derive(Debug, Args)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List them, the oldest first.
    Ls {
        /// No more than this many.
        #[arg(long, default_value_t = 100, value_name = "NUMBER")]
        most: usize,
    },
    /// Print one of them, as it was sent.
    Show {
        /// The job: TENANT/ID.
        job: String,
    },
    /// Send one again. It needs a new id, as the old one has its result.
    Replay {
        /// The job: TENANT/ID.
        job: String,
        /// What it is called from now on.
        #[arg(long = "as", value_name = "ID")]
        as_id: String,
    },
    /// Throw one away, or all.
    Purge {
        /// The job: TENANT/ID.
        #[arg(required_unless_present = "all")]
        job: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "job")]
        all: bool,
    },
}

/// Asks the broker and prints.
pub(crate) fn run(args: DlqArgs, places: &Places) -> ExitCode {
    carry_out(attend(args.verb, places))
}

async fn attend(verb: Verb, places: &Places) -> Result<ExitCode, ErrorReport> {
    let settings = services::broker(&places.config()?)?;
    let dead = DeadLetters::connect(&settings).await.map_err(|error| no_broker(&error))?;
    match verb {
        Verb::Ls { most } => list(&dead, most).await,
        Verb::Show { job } => {
            let dead = asked(dead.show(&services::job(&job)?).await)?;
            printed(|out| {
                out.write_all(&dead.body)?;
                writeln!(out)
            })
        }
        Verb::Replay { job, as_id } => {
            asked(dead.replay(&services::job(&job)?, &as_id).await)?;
            remark(&format!("sent again as {as_id}"));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Purge { job: Some(job), .. } => {
            asked(dead.purge(&services::job(&job)?).await)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Purge { job: None, .. } => {
            let purged = asked(dead.purge_all().await)?;
            remark(&format!("{purged} thrown away"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(dead: &DeadLetters, most: usize) -> Result<ExitCode, ErrorReport> {
    let (all, count) = (asked(dead.list(most).await)?, asked(dead.count().await)?);
    let hidden = count.saturating_sub(all.len() as u64);
    let shown = printed(|out| {
        for DeadJob { key, outcome, attempt, what, why, .. } in &all {
            // What a job's end is said to be may hold the job's own words.
            let [what, why] = [what, why].map(|text| text.escape_debug().to_string());
            writeln!(out, "{key}  {outcome}  attempt {attempt}  {what}: {why}")?;
        }
        Ok(())
    })?;
    if hidden > 0 {
        remark(&format!("and {hidden} more (--most)"));
    }
    Ok(shown)
}

fn asked<T>(answer: Result<T, BrokerError>) -> Result<T, ErrorReport> {
    answer.map_err(|error| no_broker(&error))
}

fn printed(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<ExitCode, ErrorReport> {
    let mut out = io::stdout().lock();
    print(&mut out).and_then(|()| out.flush()).map_err(|error| {
        ErrorReport::new("cannot write to standard output", error.to_string(), "ask again")
    })?;
    Ok(ExitCode::SUCCESS)
}

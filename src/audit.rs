//! `mayfly audit`: what the ledger proves of this node, and one job's story in it.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use pool::{Audit, Event, Finding, LedgerError, Story};

use crate::node::Places;

/// Reads the ledger: which sandbox served which job, and that none served two.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Checks that each generation was used at most once and has ended. Ends with 1 if anything is wrong.
    Verify {
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tells what happened with the sandboxes of one job, from clean to end.
    Show {
        /// The job's id.
        job: String,
        /// Print the records as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Reads the ledger and prints the answer.
pub(crate) fn run(
    args: AuditArgs,
    places: &Places,
    out: &mut impl Write,
) -> Result<io::Result<ExitCode>, LedgerError> {
    Ok(match args.question {
        Question::Verify { json } => verify(&pool::audit(&places.data_dir, &places.run_dir)?, json, out),
        Question::Show { job, json } => show(&job, &pool::story(&places.data_dir, &job)?, json, out),
    })
}

fn verify(audit: &Audit, json: bool, out: &mut impl Write) -> io::Result<ExitCode> {
    if json {
        serde_json::to_writer_pretty(&mut *out, audit)?;
        writeln!(out)?;
    } else {
        let Audit { segments, generations, consumed, ended, alive, findings, unproved } = audit;
        writeln!(
            out,
            "{generations} generations in {segments} segments: {consumed} served a job, {ended} ended, {alive} live"
        )?;
        for window in unproved {
            let (instance, cut) = (window.instance, window.cut);
            writeln!(out, "unproved: a crash tore {cut} bytes off the record of process {instance}")?;
        }
        for finding in findings {
            writeln!(out, "WRONG: {}", sentence(finding))?;
        }
        if findings.is_empty() {
            writeln!(out, "each was used at most once, and each has ended or lives")?;
        }
    }
    Ok(if audit.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn sentence(finding: &Finding) -> String {
    match finding {
        Finding::UsedTwice { generation, jobs } => {
            let jobs: Vec<_> = jobs.iter().map(|job| job.id.as_str()).collect();
            format!("generation {generation} served {} jobs: {}", jobs.len(), jobs.join(", "))
        }
        Finding::NeverClean { generation } => format!("generation {generation} was never found clean"),
        Finding::UsedAfterEnd { generation } => format!("generation {generation} was used after its end"),
        Finding::NoEnd { generation, instance } => {
            format!(
                "generation {generation} has no end, and its process {instance} is dead: run `mayfly reap`"
            )
        }
        Finding::Damaged { path, line, what } => format!("{}, line {line}: {what}", path.display()),
        Finding::Torn { path, bytes } => {
            format!(
                "{} ends with {bytes} bytes that are no record: after a crash run `mayfly reap`",
                path.display()
            )
        }
        Finding::Changed { path } => format!("{} is not what it was when it was recovered", path.display()),
    }
}

fn show(job: &str, story: &Story, json: bool, out: &mut impl Write) -> io::Result<ExitCode> {
    if json {
        let records: Vec<_> =
            story.iter().map(|(at, event)| serde_json::json!({ "at": at, "record": event })).collect();
        serde_json::to_writer_pretty(&mut *out, &records)?;
        writeln!(out)?;
    } else if story.is_empty() {
        writeln!(out, "the ledger of this node knows no job \"{job}\"")?;
    } else {
        for (at, event) in story {
            writeln!(out, "{}  {}", time(*at), line(event))?;
        }
    }
    Ok(if story.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn line(event: &Event) -> String {
    match event {
        Event::Clean { generation, tier, image } => {
            format!("generation {generation} is clean: {tier}, {image}")
        }
        Event::Consumed { generation, job } => {
            format!(
                "generation {generation} serves {}, attempt {}, tenant {}",
                job.id, job.attempt, job.tenant
            )
        }
        Event::Ended { generation, how } => format!("generation {generation} {}", how.word()),
        Event::Recovered { instance, .. } => format!("ended by the crash of process {instance}"),
        Event::Opened { instance, .. } => format!("process {instance} began"),
        Event::Closed => "the process ended".to_owned(),
    }
}

fn time(ms: u64) -> String {
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms)).to_string()
}

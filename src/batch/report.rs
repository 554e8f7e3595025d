//! What became of a batch: a table for people, JSON for programs.

use std::{
    io::{self, Write},
    path::Path,
};

use scheduler::{BatchError, shown};
use worker::{ErrorReport, causes};

use super::Ran;

/// An error of a batch as people get to see it.
pub(super) fn of(error: &BatchError) -> ErrorReport {
    let what = match error {
        BatchError::Dispatch(_) => "the batch stopped",
        _ => "the batch is not run",
    };
    ErrorReport::new(what, causes(error), error.hint())
}

/// Prints the table to stderr, or JSON to stdout.
pub(super) fn show(ran: &Ran, results: &Path, json: bool) -> io::Result<()> {
    if json {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &to_json(ran, results))?;
        return writeln!(out);
    }
    // Whoever closed stderr does not want to see it.
    let _ = table(ran, results, &mut io::stderr().lock());
    Ok(())
}

fn to_json(ran: &Ran, results: &Path) -> serde_json::Value {
    let outcomes: serde_json::Map<_, _> =
        ran.tally.outcomes().map(|(outcome, count)| (outcome.name().to_owned(), count.into())).collect();
    serde_json::json!({
        "jobs": ran.total,
        "left": ran.left,
        "ended_now": ran.ended,
        "took_us": ran.took.as_micros() as u64,
        "jobs_per_second": rate(ran),
        "outcomes": outcomes,
        "phases": ran.tally.phases().collect::<Vec<_>>(),
        "warm_share": ran.tally.warm_share(),
        "retries": ran.retries,
        "results": results,
    })
}

fn table(ran: &Ran, results: &Path, out: &mut impl Write) -> io::Result<()> {
    let Ran { total, left, tally, ended, took, retries, .. } = ran;
    let seconds = took.as_secs_f64();
    writeln!(out, "{} of {total} jobs have their result in {}", total - left, results.display())?;
    if *ended > 0 {
        writeln!(out, "  {ended} ended now, in {seconds:.1} s: {:.0} jobs/s", rate(ran))?;
    }
    for (outcome, count) in tally.outcomes() {
        writeln!(out, "  {:<14} {count:>8}", outcome.name())?;
    }
    let mut phases = tally.phases().peekable();
    if phases.peek().is_some() {
        writeln!(out, "  {:<14} {:>8}  {:>10}  {:>10}", "phase", "jobs", "p50", "p99")?;
    }
    for times in phases {
        let (p50, p99) = (shown(times.p50_us), shown(times.p99_us));
        writeln!(out, "  {:<14} {:>8}  {p50:>10}  {p99:>10}", times.phase, times.jobs)?;
    }
    if let Some(share) = tally.warm_share() {
        writeln!(out, "  {:<14} {:>7.1}%", "warm", share * 100.0)?;
    }
    if *retries > 0 {
        writeln!(out, "  {retries} times a job got another sandbox after a failure that was not its own")?;
    }
    if *left > 0 {
        writeln!(out, "  {left} are left: the same command with --resume runs them")?;
    }
    Ok(())
}

fn rate(ran: &Ran) -> f64 {
    let seconds = ran.took.as_secs_f64();
    if seconds > 0.0 { ran.ended as f64 / seconds } else { 0.0 }
}

//! `mayfly status`: what the live mayflies of this host do, or where one job stands.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use scheduler::{
    JobKey, JobState, Resting,
    control::{
        Answer, Ask, JobStatus, LaneStatus, Status,
        client::{ask, live},
    },
    shown,
};

use crate::{complaint::remark, node::Places, remote, services::carry_out};

/// Show what the mayflies that run now are doing, or where one job stands.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// A job: ID, or TENANT/ID.
    job: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks and prints. Ends with 1 if a job is not known to any live process.
pub(crate) fn run(args: &StatusArgs, places: &Places, out: &mut impl Write) -> io::Result<ExitCode> {
    let sockets = live(&places.run_dir)?;
    match &args.job {
        None => all(&sockets, args.json, out),
        Some(job) => one(&sockets, job, args.json, places, out),
    }
}

fn all(sockets: &[PathBuf], json: bool, out: &mut impl Write) -> io::Result<ExitCode> {
    let statuses: Vec<Status> = answers(sockets, &Ask::Status)
        .filter_map(|answer| if let Answer::Status(status) = answer { Some(status) } else { None })
        .collect();
    if json {
        serde_json::to_writer_pretty(&mut *out, &statuses)?;
        writeln!(out)?;
    } else if statuses.is_empty() {
        writeln!(out, "no mayfly that could be asked runs here")?;
    }
    for status in statuses.iter().filter(|_| !json) {
        print(status, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What each live process answers. One that has just ended does not count.
pub(crate) fn answers<'a>(sockets: &'a [PathBuf], question: &'a Ask) -> impl Iterator<Item = Answer> + 'a {
    sockets.iter().filter_map(move |socket| match ask(socket, question) {
        Ok(answer) => Some(answer),
        Err(error) => {
            remark(&worker::causes(&error));
            None
        }
    })
}

fn print(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let who = &status.who;
    let stopping = if status.stopping { ", stopping" } else { "" };
    writeln!(out, "{} {} (pid {}{stopping})", who.verb, who.jobs, who.pid)?;
    writeln!(out, "  results  {}", who.results)?;
    let outcomes: Vec<_> = status.outcomes.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let of = who.total.map_or(String::new(), |total| format!(" of {total}"));
    writeln!(out, "  ended    {}{of}: {}", status.ended, outcomes.join(", "))?;
    for lane in &status.lanes {
        writeln!(out, "  waiting  {}: {}", lane_text(lane), lane.why)?;
    }
    if status.lanes.is_empty() {
        writeln!(out, "  waiting  0")?;
    }
    for resting in &status.resting {
        writeln!(out, "  {}", resting_text(resting))?;
    }
    for running in &status.running {
        let (job, tier, phase) = (&running.job, running.tier, running.phase.name());
        let elapsed = shown(running.elapsed_us);
        let why = running.waits_for.as_ref().map_or(String::new(), |why| format!(": {why}"));
        writeln!(out, "  running  {job}  {tier}  {phase}  {elapsed}  attempt {}{why}", running.attempt)?;
    }
    Ok(())
}

/// How many wait, and which.
pub(crate) fn lane_text(lane: &LaneStatus) -> String {
    let LaneStatus { tenant, tier, high, jobs, .. } = lane;
    let tenant = tenant.as_ref().map_or(String::new(), |tenant| format!(" of {tenant}"));
    let tier = tier.map_or(String::new(), |tier| format!(" on {tier}"));
    format!("{jobs}{tenant}{tier}{}", if *high { ", high" } else { "" })
}

/// A tier that rests, in a line.
pub(crate) fn resting_text(resting: &Resting) -> String {
    let Resting { tier, why, rests_us, tries, again_us } = resting;
    let seconds = |us: &u64| us.div_ceil(1_000_000);
    if resting.is_refused() {
        return format!(
            "refused  {tier} for {} s, until a selftest finds that it holds: {why}",
            seconds(rests_us)
        );
    }
    format!(
        "resting  {tier} for {} s, after {tries} tries; the next in {} s: {why}",
        seconds(rests_us),
        seconds(again_us)
    )
}

fn has_it(job: &JobStatus) -> bool {
    !matches!(job.state, JobState::Waiting { .. })
}

fn one(
    sockets: &[PathBuf],
    job: &str,
    json: bool,
    places: &Places,
    out: &mut impl Write,
) -> io::Result<ExitCode> {
    let question = Ask::Job { job: job.to_owned() };
    let known: Vec<JobStatus> = answers(sockets, &question)
        .filter_map(|answer| if let Answer::Job { job } = answer { job } else { None })
        .collect();
    // Why a job waits that no process of this host has, the store knows better than they do.
    if let (false, Ok(key)) = (known.iter().any(has_it), job.parse::<JobKey>())
        && let Ok(config) = places.config()
        && config.store.is_some()
        && (known.is_empty() || remote::knows(&config, &key))
    {
        return Ok(carry_out(remote::show(&config, &key, json)));
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &known)?;
        writeln!(out)?;
    } else if known.is_empty() {
        writeln!(out, "no mayfly that runs here knows the job \"{}\"", job.escape_default())?;
    }
    for status in known.iter().filter(|_| !json) {
        let JobStatus { job, state, running, waiting_for } = status;
        let said = match state {
            JobState::Over { outcome } => format!("ended: {}", outcome.name()),
            JobState::Begun { attempt } => match running {
                Some(running) => {
                    let why = running.waits_for.as_ref().map_or(String::new(), |why| format!(": {why}"));
                    let (phase, elapsed) = (running.phase.name(), shown(running.elapsed_us));
                    format!("{phase} for {elapsed} ({}){why}", running.tier)
                }
                None => format!("begun, attempt {attempt}"),
            },
            JobState::Waiting { cancelled: true } => "cancelled before it began".to_owned(),
            JobState::Waiting { .. } => {
                format!("waits: {}", waiting_for.as_deref().unwrap_or("its turn comes"))
            }
        };
        writeln!(out, "{job}  {said}")?;
    }
    Ok(if known.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

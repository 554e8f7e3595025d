//! `mayfly pool status`: how the sandboxes of the live mayflies of this host stand.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use pool::KindStatus;
use scheduler::Resting;
use scheduler::control::{Answer, Ask, client::live};

use crate::{
    node::Places,
    status::{answers, resting_text},
};

/// Look at the pools of clean sandboxes.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Show how many sandboxes of each kind wait, are being made, and are in use.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Asks and prints.
pub(crate) fn run(args: &PoolArgs, places: &Places, out: &mut impl Write) -> io::Result<ExitCode> {
    let Question::Status { json } = args.question;
    let sockets = live(&places.run_dir)?;
    let (mut kinds, mut resting): (Vec<KindStatus>, Vec<Resting>) = Default::default();
    for answer in answers(&sockets, &Ask::Pool) {
        if let Answer::Pool { kinds: more, resting: too } = answer {
            kinds.extend(more);
            resting.extend(too);
        }
    }
    for resting in resting.iter().filter(|_| !json) {
        writeln!(out, "{}", resting_text(resting))?;
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &kinds)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if kinds.is_empty() {
        writeln!(out, "no mayfly that runs here has any sandbox")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<8} {:<28} {:>10} {:>6} {:>6} {:>6} {:>6} {:>7} {:>11}",
        "tier", "image", "memory", "ready", "target", "making", "leased", "waiting", "quarantined"
    )?;
    for kind in &kinds {
        // The name and the first digits of the digest tell builds apart.
        let image: String = kind.image.chars().take(28).collect();
        writeln!(
            out,
            "{:<8} {image:<28} {:>10} {:>6} {:>6} {:>6} {:>6} {:>7} {:>11}",
            kind.tier.to_string(),
            ByteSize(kind.limits.memory).to_string(),
            kind.ready,
            kind.target,
            kind.making,
            kind.leased,
            kind.waiting,
            kind.quarantined
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

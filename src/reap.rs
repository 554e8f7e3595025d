//! `mayfly reap`: ends what dead mayfly processes of this node left, or says what that would be.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use pool::{Leftover, OpenError};

use crate::node::Places;

/// Ends what dead mayfly processes left on this host: processes, cgroups, claims on user ids.
///
/// Live mayflies, and those with another data directory, are never touched. Every mayfly does this by itself
/// at its start and every few seconds.
#[derive(Debug, Args)]
pub(crate) struct ReapArgs {
    /// Only say what is there.
    #[arg(long)]
    dry_run: bool,
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// Reaps and prints what was found.
pub(crate) fn run(
    args: &ReapArgs,
    places: &Places,
    out: &mut impl Write,
) -> Result<io::Result<ExitCode>, OpenError> {
    let leftovers = pool::reap(&places.data_dir, &places.run_dir, args.dry_run)?;
    Ok(print(args, &leftovers, out).map(|()| ExitCode::SUCCESS))
}

fn print(args: &ReapArgs, leftovers: &[Leftover], out: &mut impl Write) -> io::Result<()> {
    if args.json {
        serde_json::to_writer_pretty(&mut *out, leftovers)?;
        return writeln!(out);
    }
    if leftovers.is_empty() {
        return writeln!(out, "no dead mayfly left anything here");
    }
    let verb = if args.dry_run { "would end" } else { "ended" };
    for Leftover { instance, pid, processes, cgroups, containers, domains, uid_ranges } in leftovers {
        writeln!(
            out,
            "{verb} what process {pid} ({instance}) left: {processes} processes, {cgroups} cgroups, {containers} containers, {domains} machines, {uid_ranges} ranges of user ids"
        )?;
    }
    Ok(())
}

//! `mayfly top`: what the live mayflies of this host do, on a terminal, again and again.

mod draw;
mod terminal;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use scheduler::{
    control::{Answer, Ask, client::live},
    live::Snapshot,
};
use tokio::{runtime::Builder, time::timeout};

use self::{draw::Canvas, terminal::Terminal};
use crate::{node::Places, status::answers, streams::Signals};

/// How often it is looked at keys.
const KEYS: Duration = Duration::from_millis(100);
/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);
/// Ctrl-C, as a terminal sends it that leaves its meaning to us.
const CTRL_C: u8 = 3;

/// Watch what the mayflies that run now are doing: sandboxes, jobs that run and wait and why, tenants, failures.
///
/// `q` ends it, Tab goes to the next process. Where standard output is no terminal it is printed once.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Print it once, and end.
    #[arg(long)]
    once: bool,
}

/// Draws until somebody has seen enough.
pub(crate) fn run(args: &TopArgs, places: &Places, out: &mut impl Write) -> io::Result<ExitCode> {
    if args.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return once(places, out);
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    let terminal = Terminal::take(out)?;
    let (mut shown, mut drawn) = (0, None::<Instant>);
    loop {
        let mut due = drawn.is_none_or(|at| at.elapsed() >= EVERY);
        for key in terminal.keys()? {
            match key {
                b'q' | b'Q' | CTRL_C => return Ok(ExitCode::SUCCESS),
                b'\t' => (shown, due) = (shown + 1, true),
                _ => {}
            }
        }
        if due {
            let snapshots = snapshots(places)?;
            let (width, height) = terminal.size();
            let canvas = Canvas { width, height, colours: true };
            let lines = match snapshots.len() {
                0 => vec!["no mayfly that could be asked runs here".to_owned()],
                all => canvas.lines(&snapshots[shown % all], (shown % all + 1, all)),
            };
            terminal.show(out, &lines)?;
            drawn = Some(Instant::now());
        }
        // Whoever ends it otherwise gets his terminal back as well.
        if runtime.block_on(async { timeout(KEYS, signals.next()).await }).is_ok() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn once(places: &Places, out: &mut impl Write) -> io::Result<ExitCode> {
    let snapshots = snapshots(places)?;
    if snapshots.is_empty() {
        writeln!(out, "no mayfly that could be asked runs here")?;
    }
    let canvas = Canvas { width: 120, height: usize::MAX, colours: false };
    for (number, snapshot) in snapshots.iter().enumerate() {
        for line in canvas.lines(snapshot, (number + 1, snapshots.len())) {
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn snapshots(places: &Places) -> io::Result<Vec<Snapshot>> {
    let sockets = live(&places.run_dir)?;
    let all = answers(&sockets, &Ask::Snapshot)
        .filter_map(|answer| if let Answer::Snapshot(snapshot) = answer { Some(*snapshot) } else { None });
    Ok(all.collect())
}

//! How a batch goes on: a bar on a terminal, a line every few seconds otherwise.

use std::{
    convert::Infallible,
    fmt::Write,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use scheduler::{Board, Stage, Stop};
use tokio::time::interval;

use crate::complaint::remark;

/// How often the bar is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a line is written.
const LINE: Duration = Duration::from_secs(5);

/// Shows progress for as long as it is polled.
pub(super) async fn show(board: &Board, total: u64, left: u64, stop: Stop) -> Infallible {
    if super::on_terminal() { bar(board, total, left, &stop).await } else { lines(board, total, left).await }
}

async fn bar(board: &Board, total: u64, left: u64, stop: &Stop) -> Infallible {
    let style = "{bar:30} {pos}/{len}  {rate}  {eta} left  {msg}";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
        let _ = write!(out, "{:.0}/s", state.per_sec());
    });
    let bar = Bar(ProgressBar::new(total).with_style(style));
    let before = board.ended();
    bar.0.set_position(total - left);
    bar.0.reset_eta();
    let mut frames = interval(FRAME);
    loop {
        frames.tick().await;
        bar.0.set_position(total - left + board.ended() - before);
        let stopping = if stop.stage() == Stage::Running { "" } else { "  stopping" };
        bar.0.set_message(format!("{}{stopping}", outcomes(board)));
    }
}

/// Taken off the screen at the end: the summary says more.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn lines(board: &Board, total: u64, left: u64) -> Infallible {
    let (before, clock) = (board.ended(), Instant::now());
    let mut period = interval(LINE);
    period.tick().await;
    loop {
        period.tick().await;
        let ended = board.ended() - before;
        let rate = ended as f64 / clock.elapsed().as_secs_f64();
        let remaining = left.saturating_sub(ended);
        let eta = if ended == 0 {
            "unknown".to_owned()
        } else {
            humantime::format_duration(Duration::from_secs((remaining as f64 / rate).ceil() as u64))
                .to_string()
        };
        let (done, running) = (total - remaining, board.jobs().len());
        remark(&format!(
            "{done} of {total} ended, {rate:.0}/s, {eta} left, {running} running: {}",
            outcomes(board)
        ));
    }
}

fn outcomes(board: &Board) -> String {
    let counts: Vec<_> =
        board.tally().outcomes().map(|(outcome, count)| format!("{} {count}", outcome.name())).collect();
    counts.join(", ")
}

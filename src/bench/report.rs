//! The table and the JSON of a bench.

use std::{
    io::{self, Write},
    time::Duration,
};

use pool::Tier;
use serde::Serialize;

/// One figure.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    /// From where to where it is measured.
    pub(super) boundary: &'static str,
    #[serde(flatten)]
    pub(super) figure: Figure,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Figure {
    Latency { p50_us: u64, p95_us: u64, p99_us: u64, n: usize },
    Rate { per_second: f64, n: usize },
    Bytes { bytes: u64, n: usize },
    Count { count: usize, of: usize },
}

impl Row {
    /// The percentiles of some durations.
    pub(super) fn latency(name: impl Into<String>, boundary: &'static str, mut all: Vec<Duration>) -> Self {
        all.sort();
        let n = all.len();
        let at = |percent: usize| {
            all.get((n * percent / 100).min(n.saturating_sub(1))).map_or(0, |d| d.as_micros() as u64)
        };
        let figure = Figure::Latency { p50_us: at(50), p95_us: at(95), p99_us: at(99), n };
        Self { name: name.into(), boundary, figure }
    }
}

/// All figures of one run, to be compared with each other.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    tier: Tier,
    image: String,
    times: usize,
    gap_ms: u128,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(tier: Tier, image: &str, times: usize, gap: Duration) -> Self {
        Self { tier, image: image.to_owned(), times, gap_ms: gap.as_millis(), rows: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(super) fn print(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return writeln!(out);
        }
        let Self { tier, image, times, gap_ms, rows } = self;
        writeln!(out, "tier {tier}, image {image}, {times} times each, {gap_ms} ms between\n")?;
        let floor = rows.iter().find_map(|row| match (&row.figure, row.name.as_str()) {
            (Figure::Latency { p50_us, .. }, "floor") => Some(*p50_us as f64),
            _ => None,
        });
        writeln!(out, "{:18} {:>10} {:>10} {:>10} {:>8}  measured", "", "p50", "p95", "p99", "x floor")?;
        for Row { name, boundary, figure } in rows {
            match figure {
                Figure::Latency { p50_us, p95_us, p99_us, .. } => {
                    let ratio = floor.map_or(String::new(), |floor| format!("{:.1}", *p50_us as f64 / floor));
                    let [p50, p95, p99] =
                        [p50_us, p95_us, p99_us].map(|us| format!("{:.2} ms", *us as f64 / 1000.0));
                    writeln!(out, "{name:18} {p50:>10} {p95:>10} {p99:>10} {ratio:>8}  {boundary}")?;
                }
                Figure::Rate { per_second, n } => {
                    writeln!(out, "{name:18} {per_second:>8.0}/s {n:>21} {:>8}  {boundary}", "")?;
                }
                Figure::Bytes { bytes, .. } => {
                    let mib = *bytes as f64 / f64::from(1 << 20);
                    writeln!(out, "{name:18} {mib:>6.2} MiB {:>30}  {boundary}", "")?;
                }
                Figure::Count { count, of } => {
                    writeln!(out, "{name:18} {:>10} {:>30}  {boundary}", format!("{count} of {of}"), "")?;
                }
            }
        }
        Ok(())
    }
}

//! `--summary`: what happened, where, and what it cost, in a few lines on stderr.

use std::{
    io::{self, Write},
    time::Duration,
};

use bytesize::ByteSize;
use egress::Egress;
use pool::Source;
use worker::{JobResult, ObservedBy};

/// Artifacts that a summary names.
const LISTED: usize = 10;

/// Prints the summary of `result`.
pub(crate) fn print(result: &JobResult, out: &mut impl Write) -> io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<11} {value}");
    line("outcome", outcome(result))?;
    if let (Some(tier), Some(image)) = (result.tier, &result.image) {
        line("tier", tier.to_string())?;
        line("image", short(image))?;
    }
    if let (Some(generation), Some(source)) = (&result.generation, result.source) {
        let source = match source {
            Source::Warm => "warm: it waited for the job",
            Source::Cold => "cold: made for the job",
        };
        line("sandbox", format!("{} ({source})", &generation[..generation.len().min(8)]))?;
    }
    let phases = &result.phases;
    let times = [
        ("checkout", phases.checkout_us),
        ("stage", phases.stage_us),
        ("run", phases.run_us),
        ("collect", phases.collect_us),
        ("clean", phases.clean_us),
    ];
    let times: Vec<_> = times.iter().map(|(name, us)| format!("{name} {}", millis(*us))).collect();
    line("time", times.join(" · "))?;
    if let Some(usage) = &result.usage {
        line("cpu", millis(usage.cpu_us))?;
        line("memory", format!("{} at most", ByteSize(usage.peak_memory_bytes)))?;
    }
    if let Some(egress) = &result.egress {
        line("network", network(egress))?;
    }
    for artifact in result.artifacts.iter().take(LISTED) {
        let digest = &artifact.sha256[..artifact.sha256.len().min(12)];
        line("artifact", format!("{} ({}, sha256:{digest}…)", artifact.path, ByteSize(artifact.size)))?;
    }
    if let Some(more @ 1..) = result.artifacts.len().checked_sub(LISTED) {
        line("", format!("and {more} more"))?;
    }
    Ok(())
}

fn network(egress: &Egress) -> String {
    let Egress { made, refused, sent, received, .. } = egress;
    let reasons: Vec<_> =
        egress.reasons.iter().map(|(why, times)| format!("{} {times}", why.name())).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let connections = if *made == 1 { "connection" } else { "connections" };
    format!(
        "{made} {connections}, {} out, {} in; {refused} refused{why}",
        ByteSize(*sent),
        ByteSize(*received)
    )
}

fn outcome(result: &JobResult) -> String {
    let seen = match result.observed_by {
        ObservedBy::Host => "seen by the host",
        ObservedBy::Guest => "the sandbox's word",
    };
    let ending = match (result.exit_code, result.signal) {
        (Some(code), _) => format!(", exit code {code}"),
        (None, Some(signal)) => format!(", signal {signal}"),
        (None, None) => String::new(),
    };
    format!("{}{ending} ({seen})", result.outcome.name())
}

/// `name@sha256:` and the first 12 digits.
fn short(image: &str) -> String {
    let end = image.find("sha256:").map_or(image.len(), |start| (start + 19).min(image.len()));
    image[..end].to_owned()
}

fn millis(us: u64) -> String {
    let time = Duration::from_micros(us);
    if time < Duration::from_secs(10) {
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

//! `mayfly bench`: what a sandbox costs on this host, each figure with its boundary.

mod measure;
mod peers;
mod report;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use pool::{PoolConfig, Tier};
use tokio::runtime::Builder;
use worker::{ErrorReport, causes};

use self::{measure::Bench, report::Report};
use crate::{complaint::complain, exit, node::Places, run::size};

/// Measures what a sandbox costs here: floor, warm, cold, clean, sustained, a burst, idle memory.
///
/// Figures of a shared machine are noise by themselves: compare medians of one run with each other.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The tier to measure.
    #[arg(long, default_value = "chroot", value_name = "TIER")]
    tier: Tier,
    /// The image to measure with.
    #[arg(long, default_value = "minimal")]
    image: String,
    /// The limit on a job's memory, by which a machine's size goes [default: 512 MiB].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    memory: Option<u64>,
    /// How often each latency is measured.
    #[arg(long, default_value_t = 200, value_name = "NUMBER")]
    times: usize,
    /// Wait this long before each measurement: an idle kernel answers later than a busy one.
    #[arg(long, default_value = "0ms", value_parser = gap, value_name = "TIME")]
    gap: Duration,
    /// How long the sustained load lasts.
    #[arg(long, default_value = "5s", value_parser = gap, value_name = "TIME")]
    sustained: Duration,
    /// Measure one job at a time only: warm, making and clean.
    #[arg(long)]
    latencies: bool,
    /// Run what people use today beside it, where it is installed.
    #[arg(long)]
    against: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

fn gap(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write something like 100ms or 5s"))
}

/// Measures and prints.
pub(crate) fn run(args: &BenchArgs, places: &Places) -> ExitCode {
    let config = match places.config() {
        Ok(config) => places.pool(&config),
        Err(error) => {
            complain(&error);
            return exit::MAYFLY.into();
        }
    };
    let measured = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(measure_all(args, config)));
    match measured {
        Ok(report) => match report.print(args.json, &mut io::stdout().lock()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(io::stderr(), "mayfly: cannot write to standard output: {error}");
                exit::MAYFLY.into()
            }
        },
        Err(error) => {
            complain(&ErrorReport::new("bench", error, "`mayfly doctor` looks at this host"));
            exit::MAYFLY.into()
        }
    }
}

async fn measure_all(args: &BenchArgs, config: PoolConfig) -> Result<Report, String> {
    let bench = Bench::new(config, args)?;
    let mut report = Report::new(args.tier, &args.image, args.times, args.gap);
    let rootfs = bench.rootfs().map_err(|error| causes(&error))?;
    report.add(peers::floor(&rootfs, args.times, args.gap)?);
    for row in bench.latencies().await? {
        report.add(row);
    }
    if args.latencies {
        return Ok(report);
    }
    // A daemon makes ten containers a second, and a hundred take longer than anybody waits. A machine has memory of its own.
    let (burst, idle) = match args.tier {
        Tier::Chroot | Tier::Nspawn => (100, 20),
        Tier::Docker => (30, 20),
        Tier::Vm => (8, 3),
    };
    report.add(bench.burst(burst).await?);
    if args.tier != Tier::Vm {
        for row in bench.step().await? {
            report.add(row);
        }
    }
    report.add(bench.sustained(args.sustained).await?);
    for row in bench.idle_memory(idle).await? {
        report.add(row);
    }
    if args.against {
        let container = bench.container().map_err(|error| causes(&error))?;
        for row in peers::installed(args.tier, &rootfs, &container, args.times, args.sustained) {
            report.add(row);
        }
    }
    Ok(report)
}

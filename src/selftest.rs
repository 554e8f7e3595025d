//! `mayfly selftest`: attacks the sandboxes of this host from inside and says what held.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | what is to hold holds; what is not verified is said |
//! | 1 | something that is to hold is open, or a control is void |
//! | 125 | mayfly failed: what to do is said |

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use ::selftest::{CANARY, CATALOGUE, Probe, Report, Selftest, Servers};
use clap::Args;
use images::ImageRef;
use pool::{Id, Pool, Tier, host::inspect};
use scheduler::config::Config;
use worker::{ErrorReport, Settings, Worker, causes};

use crate::{
    complaint::{complain, remark},
    exit,
    node::{self, Places},
    services::carry_out,
};

/// Attack the sandboxes of this host from inside, and say what held.
///
/// Asks 80 probes, those about sandboxes as ordinary jobs, each with a control that asks the same without protection. Ends
/// with 0 if all that is to hold holds, with 1 if something is exposed or a control is void.
#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// A tier to ask: chroot, nspawn, docker or vm. May be repeated [default: all that this host can run].
    #[arg(long, value_name = "TIER")]
    tier: Vec<Tier>,
    /// A probe to ask, such as F01. May be repeated [default: all].
    #[arg(long, value_name = "ID", value_parser = probe)]
    probe: Vec<&'static Probe>,
    /// The image to run in: NAME, or NAME@sha256:DIGEST.
    #[arg(long, default_value = "minimal")]
    image: ImageRef,
    /// Print the report as JSON (`mayfly schema selftest`).
    #[arg(long)]
    json: bool,
    /// Write the report as one HTML file, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn probe(id: &str) -> Result<&'static Probe, String> {
    let known = || CATALOGUE.iter().map(|probe| probe.id).collect::<Vec<_>>().join(" ");
    Probe::of(id).ok_or_else(|| format!("there is no such probe; there are {}", known()))
}

/// Asks and prints.
pub(crate) fn run(args: &SelftestArgs, places: &Places) -> ExitCode {
    let Some(token) = std::env::var(CANARY).ok().filter(|token| !token.is_empty()) else {
        return begin_again();
    };
    carry_out(attend(args, places, token))
}

/// Starts this very program once more with a canary in its environment, which is what no sandbox may see.
fn begin_again() -> ExitCode {
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).env(CANARY, Id::random().to_string());
    let error = command.exec();
    complain(&ErrorReport::new("the selftest cannot start", error.to_string(), "see that /proc is mounted"));
    exit::MAYFLY.into()
}

async fn attend(args: &SelftestArgs, places: &Places, token: String) -> Result<ExitCode, ErrorReport> {
    let config = places.config()?;
    let (tiers, left_out) = tiers(args, places, &config)?;
    let pool = Pool::open(&places.pool(&config)).map_err(|error| {
        ErrorReport::new(
            "no sandbox can be made here",
            causes(&error),
            "`mayfly doctor` says what this host needs",
        )
    })?;
    let worker = Worker::new(pool, Settings::default());
    let probes = CATALOGUE
        .iter()
        .filter(|probe| args.probe.is_empty() || args.probe.iter().any(|asked| asked.id == probe.id))
        .collect();
    let selftest = Selftest {
        worker: &worker,
        program: PathBuf::from("/proc/self/exe"),
        data_dir: places.data_dir.clone(),
        run_dir: places.run_dir.clone(),
        image: args.image.clone(),
        tiers,
        probes,
        left_out,
        token,
        servers: Servers { broker: config.broker.is_some(), store: config.store.is_some() },
    };
    let ran = selftest.run(|what| remark(&format!("selftest: {what}"))).await;
    worker.into_pool().close().await;
    let report =
        ran.map_err(|error| ErrorReport::new("the selftest cannot be run", causes(&error), "see --run-dir"))?;
    if let Some(path) = &args.html {
        fs::write(path, ::selftest::render(&report)).map_err(|error| {
            let what = format!("cannot write the report to {}", path.display());
            ErrorReport::new(what, error.to_string(), "name a file in a directory that can be written")
        })?;
    }
    show(args.json, &report).map_err(|error| {
        ErrorReport::new("cannot write to standard output", error.to_string(), "send it elsewhere")
    })?;
    Ok(if report.holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tiers to ask, and those that cannot be.
fn tiers(
    args: &SelftestArgs,
    places: &Places,
    config: &Config,
) -> Result<(Vec<Tier>, BTreeMap<String, String>), ErrorReport> {
    let host = inspect(&node::query(places, config, Ok(vec![])));
    let (mut ready, mut left_out) = (Vec::new(), BTreeMap::new());
    for tier in host.tiers {
        if !args.tier.is_empty() && !args.tier.contains(&tier.tier) {
            continue;
        }
        if tier.ready {
            ready.push(tier.tier);
        } else {
            left_out.insert(tier.tier.name().to_owned(), tier.why_not.join("; "));
        }
    }
    let missing = args.tier.iter().find_map(|tier| left_out.get_key_value(tier.name()));
    match missing {
        Some((tier, why)) => {
            let what = format!("tier {tier} cannot be tested here");
            Err(ErrorReport::new(what, why, "`mayfly doctor` says what mends it"))
        }
        None => Ok((ready, left_out)),
    }
}

fn show(json: bool, report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
        out.flush()
    } else {
        ::selftest::print(report, &mut out)
    }
}

//! `mayfly doctor`: what this host can run, what is missing, and the command that mends it.
//!
//! Prints what [`pool::host`] saw, how the service's store stands where one is configured, and where tunnels lead. It looks at
//! nothing by itself, but for the words of the locale.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use pool::host::{Finding, HostReport, Query, State, TierReport, inspect};
use scheduler::config::{BrokerPart, Config};
use serde::Serialize;
use tokio::runtime::Builder;
use worker::causes;

use crate::services;

/// Says what this host can run, what is missing, and the command that mends it.
///
/// Changes nothing. Ends with 0 if jobs can run here, else with 1.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// The whole report.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    host: HostReport,
    /// What the service form can do here. Empty where none is configured.
    service: Vec<Finding>,
    /// Where tunnels lead, and whether secrets can be had. Empty where there are none.
    network: Vec<Finding>,
}

/// Looks at the host and prints what it saw.
pub(crate) fn run(
    args: &DoctorArgs,
    query: &Query,
    config: &Config,
    out: &mut impl Write,
) -> io::Result<ExitCode> {
    let report = Report { host: inspect(query), service: service(config)?, network: network(config)? };
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        Page { out, marks: Marks::of_locale() }.report(&report)?;
    }
    out.flush()?;
    Ok(if report.host.can_run() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the store stands, and which form long jobs have.
fn service(config: &Config) -> io::Result<Vec<Finding>> {
    if config.store.is_none() {
        return Ok(Vec::new());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let looked = runtime.block_on(async {
        let store =
            services::answering_store(config).await.map_err(|report| (report.why, report.what_to_do))?;
        let durability = store.check_durability().await.map_err(|error| (causes(&error), String::new()))?;
        Ok(durability)
    });
    let finding = |id, title, state, detail, fix: Option<String>| Finding { id, title, state, detail, fix };
    Ok(match looked {
        Ok(durability) => {
            let longest = config.broker.as_ref().map_or_else(Default::default, BrokerPart::longest_held);
            let (claims, said) = services::long_jobs(&durability, longest);
            let state = if claims { State::Ok } else { State::Degraded };
            let fix = "set appendonly yes, appendfsync always and maxmemory-policy noeviction in Redis";
            vec![
                finding("store", "store", State::Ok, "Redis answers".to_owned(), None),
                finding("long_jobs", "long jobs", state, said, (!claims).then(|| fix.to_owned())),
            ]
        }
        Err((why, hint)) => vec![finding("store", "store", State::Missing, why, Some(hint))],
    })
}

/// Where tunnels lead, and whether secrets can be had.
fn network(config: &Config) -> io::Result<Vec<Finding>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let seen = runtime.block_on(config.look_at_network());
    let finding = |(what, found): (String, Result<String, String>)| {
        let (id, title, hint) = if what.starts_with("secret") {
            ("secret", "secret", "see `from` of the secret in mayfly.toml")
        } else {
            ("tunnel", "tunnel", "see `to`, `addresses`, `ca_file` and `inject` of the tunnel in mayfly.toml")
        };
        match found {
            Ok(detail) => Finding { id, title, state: State::Ok, detail, fix: None },
            Err(why) => {
                let detail = if why.starts_with(&what) { why } else { format!("{what}: {why}") };
                Finding { id, title, state: State::Missing, detail, fix: Some(hint.to_owned()) }
            }
        }
    };
    Ok(seen.into_iter().map(finding).collect())
}

/// The signs before each line.
#[derive(Debug, Clone, Copy)]
struct Marks {
    ok: &'static str,
    degraded: &'static str,
    missing: &'static str,
    unknown: &'static str,
    fix: &'static str,
}

impl Marks {
    const UTF8: Self = Self { ok: "✓", degraded: "!", missing: "✗", unknown: "?", fix: "→" };
    const ASCII: Self = Self { ok: "+", degraded: "!", missing: "x", unknown: "?", fix: "->" };

    /// The first of these that is set rules, as in locale(7).
    fn of_locale() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default()
            .to_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Self::UTF8 } else { Self::ASCII }
    }

    fn of(self, state: State) -> &'static str {
        match state {
            State::Ok => self.ok,
            State::Degraded => self.degraded,
            State::Missing => self.missing,
            State::Unknown => self.unknown,
        }
    }
}

/// The report as a person reads it.
struct Page<'a, W: Write> {
    out: &'a mut W,
    marks: Marks,
}

impl<W: Write> Page<'_, W> {
    fn report(&mut self, Report { host: report, service, network }: &Report) -> io::Result<()> {
        let gib = report.memory as f64 / f64::from(1 << 30);
        let cpus = if report.cpus == 1 { "CPU" } else { "CPUs" };
        writeln!(self.out, "Linux {}, {} {cpus}, {gib:.1} GiB of memory\n", report.kernel, report.cpus)?;
        let width = report.findings.iter().map(|finding| finding.title.chars().count()).max().unwrap_or(0);
        for finding in &report.findings {
            self.finding(finding, width)?;
        }
        writeln!(self.out, "\ntiers")?;
        for tier in &report.tiers {
            self.tier(tier, width)?;
        }
        if !service.is_empty() {
            writeln!(self.out, "\nservice")?;
        }
        service.iter().try_for_each(|finding| self.finding(finding, width))?;
        if !network.is_empty() {
            writeln!(self.out, "\nnetwork")?;
        }
        network.iter().try_for_each(|finding| self.finding(finding, width))
    }

    fn finding(&mut self, finding: &Finding, width: usize) -> io::Result<()> {
        self.line(self.marks.of(finding.state), finding.title, width, &finding.detail)?;
        match &finding.fix {
            Some(fix) => self.line(" ", "", width, &format!("{} {fix}", self.marks.fix)),
            None => Ok(()),
        }
    }

    fn tier(&mut self, tier: &TierReport, width: usize) -> io::Result<()> {
        let name = tier.tier.name();
        if tier.ready {
            return self.line(self.marks.ok, name, width, "ready");
        }
        self.line(self.marks.missing, name, width, tier.why_not.first().map_or("", String::as_str))?;
        for why in tier.why_not.iter().skip(1) {
            self.line(" ", "", width, why)?;
        }
        match &tier.fix {
            Some(fix) => self.line(" ", "", width, &format!("{} {fix}", self.marks.fix)),
            None => Ok(()),
        }
    }

    fn line(&mut self, mark: &str, title: &str, width: usize, text: &str) -> io::Result<()> {
        writeln!(self.out, "  {mark} {title:width$}  {text}")
    }
}

#[cfg(test)]
mod tests {
    use pool::host::CgroupMode;
    use pool::{DockerSettings, Tier, VmSettings};

    use super::*;

    fn finding(state: State, fix: Option<&str>) -> Finding {
        Finding { id: "x", title: "a thing", state, detail: "seen".into(), fix: fix.map(str::to_owned) }
    }

    fn page(findings: Vec<Finding>, tiers: Vec<TierReport>, marks: Marks) -> String {
        let report = HostReport {
            kernel: "6.1.0".into(),
            cpus: 2,
            memory: 8 << 30,
            cgroup: CgroupMode::V2,
            findings,
            tiers,
        };
        let mut out = Vec::new();
        Page { out: &mut out, marks }
            .report(&Report { host: report, service: Vec::new(), network: Vec::new() })
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_missing_thing_is_followed_by_what_mends_it() {
        let text = page(vec![finding(State::Missing, Some("mend it"))], vec![], Marks::ASCII);
        assert!(text.contains("  x a thing  seen\n             -> mend it\n"), "{text}");
        assert!(text.is_ascii());
    }

    #[test]
    fn a_tier_that_cannot_run_lists_every_reason() {
        let tier = TierReport {
            tier: Tier::Chroot,
            ready: false,
            why_not: vec!["first".into(), "second".into()],
            fix: Some("act".into()),
        };
        let text = page(vec![finding(State::Ok, None)], vec![tier], Marks::UTF8);
        assert!(text.starts_with("Linux 6.1.0, 2 CPUs, 8.0 GiB of memory\n"), "{text}");
        assert!(text.contains("  ✗ chroot   first\n             second\n             → act\n"), "{text}");
    }

    #[test]
    fn the_exit_code_says_whether_jobs_can_run() {
        let query = Query {
            data_dir: std::env::temp_dir(),
            run_dir: std::env::temp_dir(),
            docker: DockerSettings::default(),
            vm: VmSettings::default(),
            images: Ok(vec![]),
        };
        let mut out = Vec::new();
        let code = run(&DoctorArgs { json: true }, &query, &Config::default(), &mut out).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let ready = report["tiers"].as_array().unwrap().iter().any(|tier| tier["ready"] == true);
        let expected = if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        assert_eq!(format!("{code:?}"), format!("{expected:?}"));
    }
}

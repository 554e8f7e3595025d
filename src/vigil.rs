//! The selftest of a host that serves: at its start, and again and again.
//!
//! It is a process of its own, this very program, so that nothing of an attack is in the one that has the jobs; what it finds
//! decides which tiers are refused. A run that gives no report changes nothing and is said.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pool::Tier;
use scheduler::{AmqpQueue, Service, Tested, config::SelftestPart, metrics::Metrics};
use selftest::{Report, TierReport, Verdict};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use crate::{complaint::remark, node::Places};

/// Far longer than all tiers take together under emulation.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Who watches.
#[derive(Debug)]
pub(crate) struct Vigil {
    part: SelftestPart,
    tiers: Vec<Tier>,
    places: Places,
    metrics: Option<Arc<Metrics>>,
}

impl Vigil {
    pub(crate) fn new(
        part: SelftestPart,
        tiers: &[Tier],
        places: &Places,
        metrics: Option<Arc<Metrics>>,
    ) -> Self {
        Self { part, tiers: tiers.to_vec(), places: places.clone(), metrics }
    }

    /// Looks as often as is configured.
    pub(crate) async fn keep(self, service: Arc<Service<AmqpQueue>>) {
        let Some(every) = self.part.every else { return };
        loop {
            sleep(every).await;
            self.look(&service).await;
        }
    }

    /// Looks once, and refuses what is exposed.
    pub(crate) async fn look(&self, service: &Service<AmqpQueue>) {
        let report = match timeout(PATIENCE, self.ask()).await {
            Ok(Ok(report)) => report,
            Ok(Err(why)) => return self.heard_nothing(service, &format!(": {why}")),
            Err(_) => return self.heard_nothing(service, &format!(" within {PATIENCE:?}")),
        };
        for found in &report.tiers {
            let Ok(tier) = found.tier.parse::<Tier>() else { continue };
            if let Some(metrics) = &self.metrics {
                let counts: Vec<_> =
                    Verdict::ALL.iter().map(|verdict| (verdict.name(), found.count(*verdict))).collect();
                metrics.selftest(tier, &counts);
            }
            let (said, refused) = (selftest::sum(found), refusal(found));
            remark(&format!("selftest: {said}"));
            service.tested(Tested { tier, at_ms: now(), said, holds: refused.is_none() });
            service.refuse(tier, refused);
        }
    }

    /// It was asked and is not known.
    fn heard_nothing(&self, service: &Service<AmqpQueue>, why: &str) {
        let said = format!("the selftest gave no report{why}");
        remark(&said);
        if let Some(metrics) = &self.metrics {
            metrics.selftest_gave_no_report();
        }
        for tier in &self.tiers {
            service.tested(Tested { tier: *tier, at_ms: now(), said: said.clone(), holds: false });
        }
    }

    async fn ask(&self) -> Result<Report, String> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("selftest").arg("--json").args(["--image", &self.part.image]);
        command.arg("--data-dir").arg(&self.places.data_dir).arg("--run-dir").arg(&self.places.run_dir);
        if let Some(config) = &self.places.config {
            command.arg("--config").arg(config);
        }
        for tier in &self.tiers {
            command.args(["--tier", tier.name()]);
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{}: {}", output.status, said.trim().lines().last().unwrap_or_default())
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Why a tier is not to be used, if anything of it is open or says nothing.
fn refusal(found: &TierReport) -> Option<String> {
    let ids: Vec<_> =
        found.alarming().map(|finding| format!("{} ({})", finding.id, finding.verdict.name())).collect();
    (!ids.is_empty()).then(|| format!("the selftest found {}", ids.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use scheduler::metrics::Known;
    use selftest::Finding;

    use super::*;

    #[test]
    fn every_verdict_is_a_value_of_its_label_and_nothing_else_is() {
        let text = Metrics::new(Known::default()).text(None);
        let of_chroot = "mayfly_selftest_probes{tier=\"chroot\",verdict=\"";
        let shown: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(of_chroot)?.split_once('"'))
            .map(|(verdict, _)| verdict)
            .collect();
        assert_eq!(shown, Verdict::ALL.map(Verdict::name).into());
    }

    #[test]
    fn a_tier_is_refused_for_what_is_open_and_not_for_what_is_not_verified() {
        let found = |verdicts: &[Verdict]| TierReport {
            tier: "chroot".to_owned(),
            findings: verdicts
                .iter()
                .map(|verdict| Finding {
                    id: "F01".to_owned(),
                    verdict: *verdict,
                    why: String::new(),
                    inside: None,
                    control: None,
                })
                .collect(),
        };
        assert_eq!(refusal(&found(&[Verdict::Blocked, Verdict::Unverified, Verdict::Residual])), None);
        let refused = refusal(&found(&[Verdict::Blocked, Verdict::Exposed])).unwrap();
        assert_eq!(refused, "the selftest found F01 (exposed)");
    }
}

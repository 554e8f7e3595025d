//! What a selftest found, as a program reads it (`mayfly schema selftest`).

use std::collections::BTreeMap;

use pool::Tier;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{CATALOGUE, Probe},
    looks::{Look, Looks},
    verdict::{Expected, Seen, Verdict, judge},
};

/// The whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The version of this form: 1.
    pub schema_version: u32,
    /// Whether nothing that is to hold is open, and no control was void.
    pub holds: bool,
    /// Which mayfly asked.
    pub version: String,
    /// On which kernel.
    pub kernel: String,
    /// In which image, `name@sha256:…`.
    pub image: String,
    /// What was found on each tier.
    pub tiers: Vec<TierReport>,
    /// Tiers that this host cannot run, and why.
    pub left_out: BTreeMap<String, String>,
}

/// One tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierReport {
    /// Which.
    pub tier: String,
    /// In the order of the catalogue.
    pub findings: Vec<Finding>,
}

/// One probe on one tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The probe's id.
    pub id: String,
    /// What was found.
    pub verdict: Verdict,
    /// What the verdict rests on, in one line.
    pub why: String,
    /// What was seen in the sandbox, or of what handles its bytes. Missing where it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<Look>,
    /// What the control saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Look>,
}

impl Finding {
    /// Judges one probe by its two looks.
    pub(crate) fn new(probe: &Probe, tier: Tier, inside: Option<&Look>, control: Option<&Look>) -> Self {
        let expected = probe.expected_of(tier);
        let seen = |look: Option<&Look>| look.map_or(Seen::Unknown, |look| look.seen);
        let verdict = judge(expected, seen(inside), seen(control));
        let of = |look: Option<&Look>| {
            look.map_or_else(|| "it was not asked".to_owned(), |look| look.evidence.clone())
        };
        let why = match verdict {
            Verdict::NotApplicable => match expected {
                Expected::NotApplicable => probe.mechanism.to_owned(),
                _ => of(inside),
            },
            Verdict::Void => format!("the control held, too: {}", of(control)),
            Verdict::Unverified if seen(inside) == Seen::Held => match control {
                Some(control) if control.seen == Seen::Held => {
                    format!("nothing to see on this host: {}", of(inside))
                }
                Some(control) => format!("without a control: {}", control.evidence),
                None => "without a control".to_owned(),
            },
            _ => of(inside),
        };
        Self { id: probe.id.to_owned(), verdict, why, inside: inside.cloned(), control: control.cloned() }
    }
}

impl TierReport {
    pub(crate) fn new(tier: Tier, probes: &[&'static Probe], inside: &Looks, control: &Looks) -> Self {
        let findings = probes
            .iter()
            .map(|probe| Finding::new(probe, tier, inside.of(probe.id), control.of(probe.id)))
            .collect();
        Self { tier: tier.name().to_owned(), findings }
    }

    /// How many findings are of a verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// What is alarming here.
    pub fn alarming(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.verdict.is_alarming())
    }
}

impl Report {
    /// The version of this form.
    pub const SCHEMA_VERSION: u32 = 1;

    /// The probes that were asked, in the order of the catalogue.
    pub fn probes(&self) -> impl Iterator<Item = &'static Probe> + '_ {
        let asked =
            |id: &str| self.tiers.iter().flat_map(|tier| &tier.findings).any(|finding| finding.id == id);
        CATALOGUE.iter().filter(move |probe| asked(probe.id))
    }

    /// The finding of a probe on a tier.
    #[must_use]
    pub fn of(&self, tier: &str, id: &str) -> Option<&Finding> {
        self.tiers.iter().find(|report| report.tier == tier)?.findings.iter().find(|finding| finding.id == id)
    }

    /// Findings of a verdict, those that say the same of several tiers or probes together: ids, tiers, why.
    pub(crate) fn together(&self, verdict: Verdict) -> Vec<(Vec<&str>, Vec<&str>, &str)> {
        // First by probe and reason over tiers, then by tiers and reason over probes.
        let mut by_probe: Vec<(&str, &str, Vec<&str>)> = Vec::new();
        for probe in self.probes() {
            for tier in &self.tiers {
                let Some(finding) = tier.findings.iter().find(|finding| finding.id == probe.id) else {
                    continue;
                };
                if finding.verdict != verdict {
                    continue;
                }
                match by_probe.iter_mut().find(|(id, why, _)| *id == probe.id && *why == finding.why) {
                    Some((_, _, tiers)) => tiers.push(&tier.tier),
                    None => by_probe.push((probe.id, &finding.why, vec![&tier.tier])),
                }
            }
        }
        let mut all: Vec<(Vec<&str>, Vec<&str>, &str)> = Vec::new();
        for (id, why, tiers) in by_probe {
            match all.iter_mut().find(|(_, of, said)| *said == why && *of == tiers) {
                Some((ids, _, _)) => ids.push(id),
                None => all.push((vec![id], tiers, why)),
            }
        }
        all
    }
}

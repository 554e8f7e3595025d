//! What the findings mean for each tier.

use serde::Serialize;

use super::{Finding, State};
use crate::tier::Tier;

/// The steps that the chroot tier never goes without: any of them failing refuses the sandbox.
const CHROOT_NEEDS: [&str; 11] = [
    "root",
    "user-namespaces",
    "namespaces",
    "no-nested-namespaces",
    "idmapped-mounts",
    "tmpfs",
    "procfs",
    "pivot-root",
    "seccomp",
    "cgroup-controllers",
    "cgroup-writable",
];

/// Whether a tier can run jobs on this host with this build.
#[derive(Debug, Clone, Serialize)]
pub struct TierReport {
    /// Which tier.
    pub tier: Tier,
    /// Whether it can.
    pub ready: bool,
    /// Each thing in the way.
    pub why_not: Vec<String>,
    /// The first command or act that mends one of them.
    pub fix: Option<String>,
}

pub(super) fn judge(findings: &[Finding]) -> Vec<TierReport> {
    let judge = |tier| match tier {
        Tier::Chroot => chroot(findings),
        later => TierReport {
            tier: later,
            ready: false,
            why_not: vec!["this build has the chroot tier only".to_owned()],
            fix: None,
        },
    };
    Tier::ALL.into_iter().map(judge).collect()
}

fn chroot(findings: &[Finding]) -> TierReport {
    let needs = || CHROOT_NEEDS.map(|id| (id, findings.iter().find(|finding| finding.id == id)));
    let met =
        |found: Option<&Finding>| found.is_some_and(|it| matches!(it.state, State::Ok | State::Degraded));
    let mut unmet: Vec<_> = needs().into_iter().filter(|(_, found)| !met(*found)).collect();
    let ready = unmet.is_empty();
    // What could not be looked at follows from what is missing. Alone it is a reason: not proved is not there.
    if unmet.iter().any(|(_, found)| is_missing(*found)) {
        unmet.retain(|(_, found)| is_missing(*found));
    }
    let why_not = unmet.iter().map(|(id, found)| match found {
        Some(finding) => format!("{}: {}", finding.title, finding.detail),
        None => format!("{id}: not looked at"),
    });
    let fix = unmet.iter().find_map(|(_, found)| found.and_then(|finding| finding.fix.clone()));
    TierReport { tier: Tier::Chroot, ready, why_not: why_not.collect(), fix }
}

fn is_missing(found: Option<&Finding>) -> bool {
    found.is_some_and(|finding| finding.state == State::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ok() -> Vec<Finding> {
        CHROOT_NEEDS.into_iter().map(|id| Finding::new(id, id, State::Ok, "")).collect()
    }

    #[test]
    fn the_chroot_tier_is_ready_only_when_every_need_is_met() {
        assert!(judge(&all_ok())[0].ready);
        for broken in 0..CHROOT_NEEDS.len() {
            for state in [State::Missing, State::Unknown] {
                let mut findings = all_ok();
                findings[broken] = Finding::new(CHROOT_NEEDS[broken], "it", state, "why").mended_by("act");
                let chroot = &judge(&findings)[0];
                assert!(!chroot.ready);
                assert_eq!(chroot.why_not, ["it: why"]);
                assert_eq!(chroot.fix.as_deref(), Some("act"));
            }
        }
    }

    #[test]
    fn what_follows_from_a_missing_need_is_no_reason_of_its_own() {
        let mut findings = all_ok();
        findings[3].state = State::Missing;
        findings[4].state = State::Unknown;
        assert_eq!(judge(&findings)[0].why_not, [format!("{}: ", CHROOT_NEEDS[3])]);
    }

    #[test]
    fn a_need_that_nobody_looked_at_is_not_taken_for_met() {
        assert!(!judge(&all_ok()[1..])[0].ready);
    }

    #[test]
    fn the_tiers_that_this_build_lacks_are_never_ready() {
        let reports = judge(&all_ok());
        assert_eq!(reports.len(), 4);
        assert!(reports.iter().skip(1).all(|report| !report.ready && !report.why_not.is_empty()));
    }
}

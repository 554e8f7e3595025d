//! What the findings mean for each tier.

use serde::Serialize;

use super::{Finding, State};
use crate::tier::Tier;

/// The steps that none of the tiers on the host's kernel goes without: any of them failing refuses the sandbox.
const KERNEL_NEEDS: [&str; 11] = [
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

/// What a machine's process needs of the host's kernel.
const MACHINE_NEEDS: [&str; 6] =
    ["root", "namespaces", "tmpfs", "pivot-root", "cgroup-controllers", "cgroup-writable"];

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
        Tier::Chroot => weigh(tier, &KERNEL_NEEDS, findings),
        // The same root in namespaces that another program makes.
        Tier::Nspawn => weigh(tier, &[&KERNEL_NEEDS[..], &["systemd-nspawn"]].concat(), findings),
        Tier::Docker => weigh(tier, &[&KERNEL_NEEDS[..], &["docker"]].concat(), findings),
        // The agent makes the rest inside.
        Tier::Vm => {
            let mut needs = [&MACHINE_NEEDS[..], &["qemu", "accelerator"]].concat();
            // Looked at only where it is to make them.
            needs.extend(findings.iter().map(|finding| finding.id).filter(|id| *id == "libvirt"));
            weigh(tier, &needs, findings)
        }
    };
    Tier::ALL.into_iter().map(judge).collect()
}

fn weigh(tier: Tier, needs: &[&'static str], findings: &[Finding]) -> TierReport {
    let needs = needs.iter().map(|id| (*id, findings.iter().find(|finding| finding.id == *id)));
    let met =
        |found: Option<&Finding>| found.is_some_and(|it| matches!(it.state, State::Ok | State::Degraded));
    let mut unmet: Vec<_> = needs.filter(|(_, found)| !met(*found)).collect();
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
    TierReport { tier, ready, why_not: why_not.collect(), fix }
}

fn is_missing(found: Option<&Finding>) -> bool {
    found.is_some_and(|finding| finding.state == State::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ok() -> Vec<Finding> {
        KERNEL_NEEDS.into_iter().map(|id| Finding::new(id, id, State::Ok, "")).collect()
    }

    #[test]
    fn the_chroot_tier_is_ready_only_when_every_need_is_met() {
        assert!(judge(&all_ok())[0].ready);
        for broken in 0..KERNEL_NEEDS.len() {
            for state in [State::Missing, State::Unknown] {
                let mut findings = all_ok();
                findings[broken] = Finding::new(KERNEL_NEEDS[broken], "it", state, "why").mended_by("act");
                let chroot = &judge(&findings)[0];
                assert!(!chroot.ready);
                assert_eq!(chroot.why_not, ["it: why"]);
                assert_eq!(chroot.fix.as_deref(), Some("act"));
            }
        }
    }

    #[test]
    fn the_nspawn_tier_needs_systemd_nspawn_and_all_that_chroot_needs() {
        let mut findings = all_ok();
        let nspawn = |findings: &[Finding]| judge(findings)[1].clone();
        assert_eq!((nspawn(&findings).tier, nspawn(&findings).ready), (Tier::Nspawn, false));
        findings
            .push(Finding::new("systemd-nspawn", "it", State::Missing, "not here").mended_by("install it"));
        assert_eq!(nspawn(&findings).why_not, ["it: not here"]);
        assert_eq!(nspawn(&findings).fix.as_deref(), Some("install it"));
        findings[KERNEL_NEEDS.len()].state = State::Ok;
        assert!(nspawn(&findings).ready);
        findings[0].state = State::Missing;
        assert!(!nspawn(&findings).ready);
    }

    #[test]
    fn the_docker_tier_needs_a_daemon_and_all_that_chroot_needs() {
        let mut findings = all_ok();
        let docker = |findings: &[Finding]| judge(findings)[2].clone();
        assert_eq!((docker(&findings).tier, docker(&findings).ready), (Tier::Docker, false));
        findings.push(Finding::new("docker", "it", State::Missing, "not here").mended_by("install it"));
        assert_eq!(
            (docker(&findings).why_not, docker(&findings).fix),
            (vec!["it: not here".into()], Some("install it".into()))
        );
        findings[KERNEL_NEEDS.len()].state = State::Degraded;
        assert!(docker(&findings).ready);
        findings[0].state = State::Missing;
        assert!(!docker(&findings).ready);
    }

    #[test]
    fn what_follows_from_a_missing_need_is_no_reason_of_its_own() {
        let mut findings = all_ok();
        findings[3].state = State::Missing;
        findings[4].state = State::Unknown;
        assert_eq!(judge(&findings)[0].why_not, [format!("{}: ", KERNEL_NEEDS[3])]);
    }

    #[test]
    fn a_need_that_nobody_looked_at_is_not_taken_for_met() {
        assert!(!judge(&all_ok()[1..])[0].ready);
    }

    #[test]
    fn the_vm_tier_needs_qemu_and_something_that_runs_it() {
        let mut findings = all_ok();
        let vm = |findings: &[Finding]| judge(findings)[3].clone();
        assert_eq!((vm(&findings).tier, vm(&findings).ready), (Tier::Vm, false));
        findings.push(Finding::new("qemu", "QEMU", State::Ok, ""));
        findings.push(Finding::new("accelerator", "it", State::Missing, "no KVM").mended_by("allow"));
        assert_eq!(
            (vm(&findings).why_not, vm(&findings).fix),
            (vec!["it: no KVM".into()], Some("allow".into()))
        );
        findings.last_mut().unwrap().state = State::Degraded;
        assert!(vm(&findings).ready);
        findings.push(Finding::new("libvirt", "libvirt", State::Missing, "no daemon"));
        assert_eq!(vm(&findings).why_not, ["libvirt: no daemon"]);
    }
}

//! What the jobs of one tenant may ask for, and what they get when they do not ask. Pure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use egress::Rights;
use pool::{Limits, Tier};
use worker::Trust;

/// What holds for the jobs of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// No job of the tenant runs on a weaker tier than this.
    pub floor: Tier,
    /// What a job gets that names no limits.
    pub limits: Limits,
    /// Output that a job may write which does not say how much, in bytes.
    pub output: u64,
    /// How long a job may run that does not say.
    pub timeout: Duration,
    /// The longest timeout that a job may ask for.
    pub longest_timeout: Duration,
    /// How long a job has between SIGTERM and SIGKILL that does not say.
    pub grace: Duration,
    /// The longest grace that a job may ask for.
    pub longest_grace: Duration,
    /// Bytes in the files and the stdin of one job together.
    pub inline_bytes: usize,
    /// Files of one job.
    pub files: usize,
    /// Patterns of artifacts of one job.
    pub patterns: usize,
    /// What a job may reach, and secrets that it may have.
    pub egress: Arc<Rights>,
}

impl Default for Policy {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            floor: Tier::Chroot,
            limits: Limits::default(),
            output: 64 * MIB,
            timeout: Duration::from_secs(10 * 60),
            longest_timeout: Duration::from_secs(24 * 60 * 60),
            grace: Duration::from_secs(1),
            longest_grace: Duration::from_secs(60),
            inline_bytes: 32 * MIB as usize,
            files: 10_000,
            patterns: 100,
            egress: Arc::default(),
        }
    }
}

impl Policy {
    /// The strongest of what the job asks, what its trust means, and the floor. Never weaker than any of them.
    #[must_use]
    pub fn tier(&self, asked: Option<Tier>, trust: Option<Trust>) -> Tier {
        let meant = match (asked, trust) {
            (None, None) => Some(meaning(Trust::Untrusted)),
            (_, trust) => trust.map(meaning),
        };
        asked.into_iter().chain(meant).fold(self.floor, Tier::max)
    }
}

/// What holds for each tenant.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    default: Policy,
    tenants: HashMap<String, Policy>,
}

impl Policies {
    /// One for each of these tenants, and one for all others.
    #[must_use]
    pub fn new(default: Policy, tenants: HashMap<String, Policy>) -> Self {
        Self { default, tenants }
    }

    /// The same, with what is counted for each tenant's jobs that run already: who reads the limits again does not
    /// double them.
    #[must_use]
    pub(crate) fn going_on_from(mut self, running: &Self) -> Self {
        // Look-ups are all tenants' together, those of a new one, too.
        let resolver = running.tenants.values().next().map(|policy| policy.egress.resolver.clone());
        for (name, policy) in &mut self.tenants {
            let rights = Arc::make_mut(&mut policy.egress);
            if let Some(before) = running.tenants.get(name) {
                rights.go_on_from(&before.egress);
            } else if let Some(resolver) = &resolver {
                rights.resolver = resolver.clone();
            }
        }
        self
    }

    /// What holds for a tenant.
    #[must_use]
    pub fn of(&self, tenant: &str) -> &Policy {
        self.tenants.get(tenant).unwrap_or(&self.default)
    }
}

impl From<Policy> for Policies {
    /// The same for all.
    fn from(policy: Policy) -> Self {
        Self::new(policy, HashMap::new())
    }
}

/// The tier that a word of trust stands for.
fn meaning(trust: Trust) -> Tier {
    match trust {
        Trust::Trusted => Tier::Chroot,
        Trust::Internal => Tier::Nspawn,
        Trust::Untrusted => Tier::Docker,
        Trust::Hostile => Tier::Vm,
    }
}

#[cfg(test)]
mod tests {
    use egress::{Share, TenantLimits};

    use super::*;

    #[test]
    fn the_tier_is_the_strongest_of_what_is_asked_what_trust_means_and_the_floor() {
        use Tier::{Chroot, Docker, Nspawn, Vm};
        let table = [
            // asked, trust, floor → tier
            ((None, None, Chroot), Docker),
            ((None, None, Vm), Vm),
            ((Some(Chroot), None, Chroot), Chroot),
            ((Some(Chroot), None, Nspawn), Nspawn),
            ((Some(Vm), None, Nspawn), Vm),
            ((None, Some(Trust::Trusted), Chroot), Chroot),
            ((None, Some(Trust::Internal), Chroot), Nspawn),
            ((None, Some(Trust::Hostile), Chroot), Vm),
            ((Some(Chroot), Some(Trust::Hostile), Chroot), Vm),
            ((Some(Vm), Some(Trust::Trusted), Chroot), Vm),
            ((Some(Chroot), Some(Trust::Trusted), Docker), Docker),
        ];
        for ((asked, trust, floor), expected) in table {
            let policy = Policy { floor, ..Policy::default() };
            assert_eq!(policy.tier(asked, trust), expected, "{asked:?} {trust:?} {floor}");
        }
    }

    #[test]
    fn limits_that_are_read_again_are_not_doubled() {
        let policies = |connections| {
            let resolver = Arc::default();
            let share = || Arc::new(Share::new(TenantLimits { connections, ..TenantLimits::default() }));
            let rights = || Rights { share: share(), resolver: Arc::clone(&resolver), ..Rights::default() };
            let tenant =
                |name: &str| (name.to_owned(), Policy { egress: Arc::new(rights()), ..Policy::default() });
            Policies::new(Policy::default(), HashMap::from(["a", "b", "new", "newer"].map(tenant)))
        };
        let mut running = policies(5);
        running.tenants.retain(|name, _| !name.starts_with("new"));
        let (same, other) = (policies(5).going_on_from(&running), policies(6).going_on_from(&running));
        let share = |policies: &Policies, name: &str| policies.of(name).egress.share.clone();
        assert!(Arc::ptr_eq(&share(&same, "a"), &share(&running, "a")));
        for (one, other) in [("a", "b"), ("new", "newer"), ("a", "new")] {
            assert!(!Arc::ptr_eq(&share(&same, one), &share(&same, other)), "each tenant has its own");
        }
        let resolver = |policies: &Policies| policies.of("new").egress.resolver.clone();
        assert!(Arc::ptr_eq(&resolver(&same), &running.of("a").egress.resolver), "look-ups are the host's");
        assert!(!Arc::ptr_eq(&share(&other, "a"), &share(&running, "a")), "what is new holds");
    }

    #[test]
    fn no_choice_of_a_job_gets_below_the_floor() {
        let words = [Trust::Trusted, Trust::Internal, Trust::Untrusted, Trust::Hostile].map(Some);
        let asked = Tier::ALL.map(Some);
        for floor in Tier::ALL {
            let policy = Policy { floor, ..Policy::default() };
            for trust in words.into_iter().chain([None]) {
                for asked in asked.into_iter().chain([None]) {
                    assert!(policy.tier(asked, trust) >= floor);
                }
            }
        }
    }
}

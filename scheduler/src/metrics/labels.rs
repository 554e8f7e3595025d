//! The labels of metrics. Each has a closed set of values, or one that the configuration bounds: never a job's or a
//! sandbox's id, so that what a scrape weighs does not depend on how much work there was.

use pool::Tier;

/// What stands for every tenant or image that is not told apart.
pub(crate) const OTHER: &str = "other";
/// The tier of a job that never got as far as to have one.
pub(crate) const NO_TIER: &str = "none";

const TIERS: &[&str] = &["chroot", "nspawn", "docker", "vm"];
const JOB_TIERS: &[&str] = &["chroot", "nspawn", "docker", "vm", NO_TIER];

/// A label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    Tier,
    JobTier,
    Outcome,
    Source,
    ColdReason,
    Phase,
    Class,
    Why,
    State,
    Making,
    Ending,
    Leftover,
    Resource,
    Link,
    Message,
    QueueCall,
    StoreCall,
    Answer,
    Sent,
    Accelerator,
    Tenant,
    Image,
    Version,
    Verb,
    Verdict,
    Direction,
    Refusal,
}

/// The values that a label can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// These.
    Closed(&'static [&'static str]),
    /// The tenants of the configuration, and one for all others.
    Tenants,
    /// The images that the pool has, up to a bound, and one for all others.
    Images,
    /// What this process was built from or started for: one.
    Own,
}

impl Label {
    /// Its name beside a value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tier | Self::JobTier => "tier",
            Self::Outcome => "outcome",
            Self::Source => "source",
            Self::ColdReason | Self::Why | Self::Refusal => "reason",
            Self::Phase => "phase",
            Self::Class => "class",
            Self::State => "state",
            Self::Making | Self::Answer | Self::Sent => "result",
            Self::Ending => "how",
            Self::Leftover => "kind",
            Self::Resource => "resource",
            Self::Link => "link",
            Self::Message => "event",
            Self::QueueCall | Self::StoreCall => "operation",
            Self::Accelerator => "accel",
            Self::Tenant => "tenant",
            Self::Image => "image",
            Self::Version => "version",
            Self::Verb => "verb",
            Self::Verdict => "verdict",
            Self::Direction => "direction",
        }
    }

    /// The values that it can have.
    pub(crate) const fn values(self) -> Values {
        Values::Closed(match self {
            Self::Tier => TIERS,
            Self::JobTier => JOB_TIERS,
            Self::Outcome => &[
                "succeeded",
                "failed",
                "timed_out",
                "out_of_memory",
                "output_limit",
                "cancelled",
                "sandbox_lost",
                "infra_error",
                "rejected",
            ],
            Self::Source => &["warm", "cold"],
            Self::ColdReason => &["empty", "shape"],
            Self::Phase => &["checkout", "stage", "run", "collect", "clean"],
            Self::Class => &["high", "normal"],
            Self::Why => &["unable", "stopping", "later", "elsewhere"],
            Self::State => &["making", "ready", "leased", "quarantined"],
            Self::Making => &["made", "failed"],
            Self::Ending => &["destroyed", "reverted", "quarantined"],
            Self::Leftover => &["mayfly", "process", "cgroup", "container", "domain", "uid_range"],
            Self::Resource => &["cpu", "memory", "io"],
            Self::Link => &["intake", "outlet"],
            Self::Message => &[
                "ring",
                "pull_empty",
                "result",
                "result_unrouted",
                "result_cut",
                "reply",
                "reply_refused",
                "reply_lost",
                "dead_letter",
                "dead_letter_refused",
                "moved",
                "put_back",
                "stale_ack",
            ],
            Self::QueueCall => &["pull", "answer", "ack", "requeue"],
            Self::StoreCall => &["begin", "release", "finish"],
            Self::Answer => &["ok", "error"],
            Self::Sent => &["sent", "dropped"],
            Self::Accelerator => &["kvm", "tcg"],
            Self::Verdict => {
                &["blocked", "contained", "not_applicable", "residual", "unverified", "void", "exposed"]
            }
            Self::Direction => &["sent", "received"],
            Self::Refusal => &[
                "name",
                "port",
                "literal",
                "address",
                "resolve",
                "connect",
                "connections",
                "attempts",
                "bytes",
                "sni",
                "request",
            ],
            Self::Tenant => return Values::Tenants,
            Self::Image => return Values::Images,
            Self::Version | Self::Verb => return Values::Own,
        })
    }
}

/// The tier's value.
pub(crate) fn tier(tier: Option<Tier>) -> &'static str {
    tier.map_or(NO_TIER, Tier::name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcomes;

    fn closed(label: Label) -> Vec<&'static str> {
        match label.values() {
            Values::Closed(values) => values.to_vec(),
            open => panic!("{label:?} is {open:?}"),
        }
    }

    #[test]
    fn the_values_are_the_names_that_the_rest_goes_by() {
        assert_eq!(closed(Label::Tier), Tier::ALL.map(Tier::name));
        assert_eq!(closed(Label::Phase), worker::Phase::ALL.map(worker::Phase::name));
        assert_eq!(closed(Label::Outcome), outcomes::ALL.map(worker::Outcome::name));
        let endings = [pool::Ended::Destroyed, pool::Ended::Reverted, pool::Ended::Quarantined];
        assert_eq!(closed(Label::Ending), endings.map(pool::Ended::name));
        assert_eq!(closed(Label::Refusal), egress::Reason::ALL.map(egress::Reason::name));
    }
}

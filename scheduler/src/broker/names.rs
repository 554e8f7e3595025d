//! What things are called on the broker. Pure.
//!
//! A tenant's name may have dots in it, so names are taken apart from their ends, where nothing has.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use pool::Tier;
use worker::{Class, Trust};

use crate::key::is_name;

/// Where results go: a topic exchange, with the routing key `<tenant>.<outcome>`.
pub(crate) const RESULTS: &str = "mayfly.results";
/// Where messages go that a tenant sent with a key that means nothing. Exchange and queue.
pub(crate) const UNROUTABLE: &str = "mayfly.unroutable";
/// Where the broker puts jobs that it gives up by itself: expired, or delivered too often. Exchange and queue.
pub(crate) const RETURNED: &str = "mayfly.returned";
/// What nobody runs any more, with evidence. Exchange and queue.
pub(crate) const DEAD: &str = "mayfly.dead";
/// Tells idle hosts that something came, and by which way.
pub(crate) const BELL: &str = "mayfly.bell";

/// Where jobs wait whose tier no host offers: a queue for each tier.
const PARKED: &str = "mayfly.parked.";
const SUBMIT: &str = "mayfly.submit.";
const JOBS: &str = "mayfly.jobs.";
const REPLY: &str = "mayfly.reply.";
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// The only exchange that a tenant's user may write to: the tenant's identity.
#[must_use]
pub fn submit_exchange(tenant: &str) -> String {
    format!("{SUBMIT}{tenant}")
}

/// The queue in which jobs of a tier wait while no host offers it.
pub(crate) fn parked_queue(tier: Tier) -> String {
    format!("{PARKED}{tier}")
}

/// The tier of such a queue.
pub(crate) fn tier_of_parked(queue: &str) -> Option<Tier> {
    tier_of(queue.strip_prefix(PARKED)?)
}

/// Whose exchange it is.
pub(crate) fn tenant_of_exchange(exchange: &str) -> Option<&str> {
    exchange.strip_prefix(SUBMIT).filter(|tenant| is_name(tenant))
}

/// Whether results for a tenant may be sent to this queue: a direct reply, or a queue of the tenant's own.
#[must_use]
pub fn is_reply_queue(queue: &str, tenant: &str) -> bool {
    if let Some(address) = queue.strip_prefix(DIRECT_REPLY) {
        return is_address(address);
    }
    // The last part has no dot: what belongs to tenant `a.b` is none of `a`'s.
    let own = queue.strip_prefix(REPLY).and_then(|rest| rest.strip_prefix(tenant)?.strip_prefix('.'));
    own.is_some_and(|last| is_name(last) && !last.contains('.'))
}

/// Whether a direct reply may be sent there, which the broker does not tell.
pub(crate) fn is_direct_reply(queue: &str) -> bool {
    queue.starts_with(DIRECT_REPLY)
}

/// Whether this is the address of a channel, as the broker writes it: a process identifier in Erlang's external format,
/// on a node that is named by a number, and a secret. What is none, brokers do not refuse: decoding it fails, and the
/// connection by which the reply was to go is closed.
fn is_address(address: &str) -> bool {
    let Some((process, secret)) = address.strip_prefix('.').and_then(|both| both.split_once('.')) else {
        return false;
    };
    let (Ok(process), Ok(secret)) = (STANDARD.decode(process), STANDARD.decode(secret)) else { return false };
    // Version, a new pid, its node as a UTF-8 atom; then its number, serial and creation of four bytes each.
    let node = match process.as_slice() {
        [131, 88, 118, high, low, rest @ ..] => Some((usize::from(u16::from_be_bytes([*high, *low])), rest)),
        [131, 88, 119, length, rest @ ..] => Some((usize::from(*length), rest)),
        _ => None,
    };
    let named = node.and_then(|(length, rest)| rest.split_at_checked(length)).is_some_and(|(name, rest)| {
        let number = name.strip_prefix(b"reply@");
        rest.len() == 12
            && number.is_some_and(|number| {
                (1..=10).contains(&number.len()) && number.iter().all(u8::is_ascii_digit)
            })
    });
    named && secret.len() == 16
}

/// A name for a tenant's own reply queue.
pub(crate) fn reply_queue(tenant: &str, unique: &str) -> String {
    format!("{REPLY}{tenant}.{unique}")
}

/// The regular expression of the queues that [`is_reply_queue`] calls the tenant's own.
pub(crate) fn reply_pattern(tenant: &str) -> String {
    format!("^{}[A-Za-z0-9_-]+$", escaped(&format!("{REPLY}{tenant}.")))
}

/// The regular expression of the tenant's exchange.
pub(crate) fn submit_pattern(tenant: &str) -> String {
    format!("^{}$", escaped(&submit_exchange(tenant)))
}

fn escaped(name: &str) -> String {
    // Of what a name may hold, only the dot means something.
    name.replace('.', "\\.")
}

/// One way for jobs: a tenant's jobs of one tier and one class. It is one queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// Whose jobs.
    pub tenant: String,
    /// The tier on which they run.
    pub tier: Tier,
    /// Whether they go before others of the tenant.
    pub high: bool,
}

impl Lane {
    /// The lane of a class.
    #[must_use]
    pub fn new(tenant: &str, tier: Tier, class: Class) -> Self {
        Self { tenant: tenant.to_owned(), tier, high: class == Class::High }
    }

    /// The name of its queue.
    #[must_use]
    pub fn queue(&self) -> String {
        format!("{JOBS}{}.{}.{}", self.tenant, self.tier, if self.high { "high" } else { "normal" })
    }

    /// The lane of a queue.
    #[must_use]
    pub fn of_queue(queue: &str) -> Option<Self> {
        let mut parts = queue.strip_prefix(JOBS)?.rsplitn(3, '.');
        let high = match parts.next()? {
            "high" => true,
            "normal" => false,
            _ => return None,
        };
        let tier = tier_of(parts.next()?)?;
        let tenant = parts.next().filter(|tenant| is_name(tenant))?;
        Some(Self { tenant: tenant.to_owned(), tier, high })
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.queue())
    }
}

fn tier_of(name: &str) -> Option<Tier> {
    Tier::ALL.into_iter().find(|tier| tier.name() == name)
}

/// What a job asks for by its routing key: a tier or a word of trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Tier(Tier),
    Trust(Trust),
}

impl Asked {
    /// All that can be asked for.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let words = [Trust::Trusted, Trust::Internal, Trust::Untrusted, Trust::Hostile];
        Tier::ALL.into_iter().map(Self::Tier).chain(words.into_iter().map(Self::Trust))
    }

    fn word(self) -> &'static str {
        match self {
            Self::Tier(tier) => tier.name(),
            Self::Trust(Trust::Trusted) => "trusted",
            Self::Trust(Trust::Internal) => "internal",
            Self::Trust(Trust::Untrusted) => "untrusted",
            Self::Trust(Trust::Hostile) => "hostile",
        }
    }

    /// The routing key.
    pub(crate) fn key(self, high: bool) -> String {
        let word = self.word();
        if high { format!("{word}.high") } else { word.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_survives_being_written_and_read() {
        for tenant in ["acme", "a.b", "vm.high", "x-1_2"] {
            for tier in Tier::ALL {
                for high in [true, false] {
                    let lane = Lane { tenant: tenant.to_owned(), tier, high };
                    assert_eq!(Lane::of_queue(&lane.queue()), Some(lane));
                }
            }
        }
        for other in ["mayfly.jobs.vm.high", "mayfly.jobs.a.vm.low", "mayfly.jobs.a.moon.high", "jobs", ""] {
            assert_eq!(Lane::of_queue(other), None, "{other}");
        }
    }

    const DIRECT: &str =
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxNDg1MTAxMgAABZEAAAAAawRXOw==.HIgJPliWcDLWOMve8b9qhw==";

    #[test]
    fn no_address_is_used_that_breaks_a_broker() {
        assert!(is_reply_queue(DIRECT, "acme"));
        let (process, secret) =
            DIRECT.strip_prefix("amq.rabbitmq.reply-to.").unwrap().split_once('.').unwrap();
        let process = STANDARD.decode(process).unwrap();
        let mut broken = vec![Vec::new(), [process.as_slice(), &[0]].concat()];
        broken.extend((0..process.len()).map(|length| process[..length].to_vec()));
        // Everything but the twelve bytes of the number, which the broker looks up.
        for place in 0..process.len() - 12 {
            let mut other = process.clone();
            other[place] ^= 0x80;
            broken.push(other);
        }
        for process in broken {
            let address = format!("amq.rabbitmq.reply-to.{}.{secret}", STANDARD.encode(&process));
            assert!(!is_reply_queue(&address, "acme"), "{process:?}");
        }
    }

    #[test]
    fn results_go_nowhere_but_to_the_tenants_own_queues() {
        for (queue, tenant, allowed) in [
            ("mayfly.reply.acme.1f-3", "acme", true),
            (DIRECT, "acme", true),
            // The broker never leaves it so.
            ("amq.rabbitmq.reply-to", "acme", false),
            ("amq.rabbitmq.reply-to.", "acme", false),
            ("amq.rabbitmq.reply-to.g1h2AAhyZXBseQ==.token", "acme", false),
            ("amq.rabbitmq.reply-torture", "acme", false),
            ("mayfly.reply.acme.", "acme", false),
            ("mayfly.reply.acme", "acme", false),
            ("mayfly.reply.acme2.x", "acme", false),
            ("mayfly.reply.other.x", "acme", false),
            // It is a queue of the tenant `acme.dev`.
            ("mayfly.reply.acme.dev.x", "acme", false),
            ("mayfly.reply.acme.dev.x", "acme.dev", true),
            ("mayfly.jobs.acme.vm.high", "acme", false),
            ("", "acme", false),
        ] {
            assert_eq!(is_reply_queue(queue, tenant), allowed, "{queue} {tenant}");
        }
    }

    #[test]
    fn the_tenant_is_the_exchange() {
        assert_eq!(tenant_of_exchange(&submit_exchange("a.b")), Some("a.b"));
        assert_eq!(tenant_of_exchange("mayfly.results"), None);
        assert_eq!(tenant_of_exchange("mayfly.submit."), None);
    }

    #[test]
    fn a_pattern_takes_dots_literally() {
        assert_eq!(submit_pattern("a.b"), r"^mayfly\.submit\.a\.b$");
        assert_eq!(reply_pattern("a"), r"^mayfly\.reply\.a\.[A-Za-z0-9_-]+$");
    }
}

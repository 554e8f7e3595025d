//! What there must be on the broker, as a description. Pure.
//!
//! What a job's safety rests on stands in the queues' own arguments, which whoever declares must repeat and nobody can
//! change. What an operator may want to turn stands in policies ([`commands`](super::commands())).

use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable},
};
use pool::Tier;

use super::names::{Asked, BELL, DEAD, Lane, RESULTS, RETURNED, UNROUTABLE, parked_queue, submit_exchange};
use crate::policy::Policy;

/// How often the broker delivers one job before it gives it up by itself. Attempts are counted by mayfly; this ends a
/// job that no mayfly survives. A drain that puts a job back counts too, so it is far above any `max_attempts`.
pub(crate) const DELIVERIES: i64 = 100;
/// The same for queues whose messages must never be given up. "No limit" is not known by every version, and no word
/// means 20 for some.
const ENDLESS: i64 = 1_000_000_000;

/// A tenant, as far as the broker is concerned.
#[derive(Debug, Clone)]
pub struct TenantLanes {
    /// Its name.
    pub name: String,
    /// The weakest tier on which its jobs run.
    pub floor: Tier,
}

/// Everything that must be there.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    pub(crate) tenants: Vec<TenantLanes>,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) bindings: Vec<Binding>,
    /// Bindings that weaken a tenant's floor, as an earlier setup with a lower floor left them.
    pub(crate) not_bound: Vec<Binding>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) kind: ExchangeKind,
    pub(crate) arguments: FieldTable,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) arguments: FieldTable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) exchange: String,
    pub(crate) key: String,
    pub(crate) to: Target,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Queue(String),
    Exchange(String),
}

impl Topology {
    /// For these tenants.
    #[must_use]
    pub fn new(tenants: &[TenantLanes]) -> Self {
        let mut all = Self { tenants: tenants.to_vec(), ..Self::default() };
        all.exchange(RESULTS, ExchangeKind::Topic, table([]));
        all.exchange(BELL, ExchangeKind::Fanout, table([]));
        for (name, rings) in [(DEAD, false), (UNROUTABLE, true), (RETURNED, true)] {
            all.exchange(name, ExchangeKind::Fanout, table([]));
            all.queues.push(Queue { name: name.to_owned(), arguments: kept() });
            all.bind(name, "", Target::Queue(name.to_owned()));
            if rings {
                all.bind(name, "", Target::Exchange(BELL.to_owned()));
            }
        }
        for name in Tier::ALL.map(parked_queue) {
            all.queues.push(Queue { arguments: parked(&name), name });
        }
        for tenant in tenants {
            all.tenant(tenant);
        }
        all
    }

    /// The lanes of its tenants.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> {
        self.queues.iter().filter_map(|queue| Lane::of_queue(&queue.name))
    }

    /// Exchange, key and queue of each binding to a queue.
    pub(crate) fn queue_bindings(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.bindings.iter().filter_map(|binding| match &binding.to {
            Target::Queue(queue) => Some((binding.exchange.as_str(), binding.key.as_str(), queue.as_str())),
            Target::Exchange(_) => None,
        })
    }

    fn tenant(&mut self, tenant: &TenantLanes) {
        let exchange = submit_exchange(&tenant.name);
        // Where a key leads nowhere, the tenant still gets a result.
        self.exchange(&exchange, ExchangeKind::Direct, table([("alternate-exchange", long(UNROUTABLE))]));
        let lane = |tier, high| Lane { tenant: tenant.name.clone(), tier, high };
        for tier in Tier::ALL.into_iter().filter(|tier| *tier >= tenant.floor) {
            for high in [true, false] {
                let name = lane(tier, high).queue();
                self.queues.push(Queue { arguments: jobs(&name), name });
            }
        }
        let policy = Policy { floor: tenant.floor, ..Policy::default() };
        for asked in Asked::all() {
            let tier = match asked {
                Asked::Tier(tier) => policy.tier(Some(tier), None),
                Asked::Trust(trust) => policy.tier(None, Some(trust)),
            };
            for high in [true, false] {
                let key = asked.key(high);
                self.bind(&exchange, &key, Target::Queue(lane(tier, high).queue()));
                self.bind(&exchange, &key, Target::Exchange(BELL.to_owned()));
                for other in Tier::ALL.into_iter().filter(|other| *other != tier) {
                    let to = Target::Queue(lane(other, high).queue());
                    self.not_bound.push(Binding { exchange: exchange.clone(), key: key.clone(), to });
                }
            }
        }
    }

    fn exchange(&mut self, name: &str, kind: ExchangeKind, arguments: FieldTable) {
        self.exchanges.push(Exchange { name: name.to_owned(), kind, arguments });
    }

    fn bind(&mut self, exchange: &str, key: &str, to: Target) {
        self.bindings.push(Binding { exchange: exchange.to_owned(), key: key.to_owned(), to });
    }
}

/// A queue of jobs. What the broker gives up goes to the returned ones, and stays here until it is there.
fn jobs(name: &str) -> FieldTable {
    table([
        ("x-queue-type", long("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERIES)),
        ("x-dead-letter-exchange", long(RETURNED)),
        // The broker sets it, so it says whose job it was: headers can be forged.
        ("x-dead-letter-routing-key", long(name)),
        ("x-dead-letter-strategy", long("at-least-once")),
        ("x-overflow", long("reject-publish")),
    ])
}

/// A queue of jobs whose tier no host offers. Who has waited here for long enough goes to the returned ones.
fn parked(name: &str) -> FieldTable {
    let mut arguments = jobs(name);
    // It is looked at now and then.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(ENDLESS));
    arguments
}

/// A queue from which nothing goes by itself.
fn kept() -> FieldTable {
    table([
        ("x-queue-type", long("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(ENDLESS)),
        ("x-overflow", long("reject-publish")),
    ])
}

pub(crate) fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub(crate) fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::names::tier_of_parked;

    fn leads_to(topology: &Topology, exchange: &str, key: &str) -> Vec<String> {
        let matching = topology.bindings.iter().filter(|b| b.exchange == exchange && b.key == key);
        matching
            .filter_map(|binding| match &binding.to {
                Target::Queue(queue) => Some(queue.clone()),
                Target::Exchange(_) => None,
            })
            .collect()
    }

    #[test]
    fn every_key_leads_to_the_tier_that_policy_gives_it() {
        let tenants =
            Tier::ALL.map(|floor| TenantLanes { name: format!("t.{}", floor.name()), floor }).to_vec();
        let topology = Topology::new(&tenants);
        for TenantLanes { name, floor } in &tenants {
            let exchange = submit_exchange(name);
            for (key, meant) in [
                ("chroot", Tier::Chroot),
                ("nspawn", Tier::Nspawn),
                ("docker", Tier::Docker),
                ("vm", Tier::Vm),
                ("trusted", Tier::Chroot),
                ("internal", Tier::Nspawn),
                ("untrusted", Tier::Docker),
                ("hostile", Tier::Vm),
            ] {
                let tier = meant.max(*floor);
                for (suffix, high) in [("", false), (".high", true)] {
                    let lane = Lane { tenant: name.clone(), tier, high };
                    assert_eq!(leads_to(&topology, &exchange, &format!("{key}{suffix}")), [lane.queue()]);
                }
            }
        }
    }

    #[test]
    fn no_lane_is_weaker_than_the_floor_and_no_old_binding_stays() {
        let topology = Topology::new(&[TenantLanes { name: "acme".into(), floor: Tier::Docker }]);
        assert!(topology.lanes().all(|lane| lane.tier >= Tier::Docker));
        assert_eq!(topology.lanes().count(), 4);
        let weak = Lane { tenant: "acme".into(), tier: Tier::Chroot, high: false }.queue();
        assert!(topology.not_bound.iter().any(|b| b.key == "trusted" && b.to == Target::Queue(weak.clone())));
        assert!(topology.not_bound.iter().all(|binding| !topology.bindings.contains(binding)));
    }

    #[test]
    fn a_queue_of_parked_jobs_is_no_lane_and_is_known_by_its_tier() {
        let topology = Topology::new(&[]);
        for tier in Tier::ALL {
            let queue = parked_queue(tier);
            assert!(topology.queues.iter().any(|other| other.name == queue));
            assert_eq!((Lane::of_queue(&queue), tier_of_parked(&queue)), (None, Some(tier)));
        }
    }

    #[test]
    fn every_job_rings_the_bell() {
        let topology = Topology::new(&[TenantLanes { name: "acme".into(), floor: Tier::Chroot }]);
        for binding in topology.bindings.iter().filter(|binding| binding.exchange == "mayfly.submit.acme") {
            let bell = Binding { to: Target::Exchange(BELL.to_owned()), ..binding.clone() };
            assert!(topology.bindings.contains(&bell), "{}", binding.key);
        }
    }
}

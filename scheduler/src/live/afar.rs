//! Why a job of the service waits, as the store knows it that all hosts share: a host by itself knows of its own lanes alone.

use pool::Tier;

use crate::{
    key::JobKey,
    store::redis::{Host, RedisStore, RedisStoreError},
};

/// Why a job waits that no host has begun. `most`: how many jobs of its tenant may run on each host.
pub async fn why_it_waits(
    store: &RedisStore,
    job: &JobKey,
    most: Option<u32>,
) -> Result<String, RedisStoreError> {
    let (tier, hosts) = (store.needs(job).await?, store.hosts().await?);
    let running = match most {
        Some(_) => store.running().await?,
        None => Vec::new(),
    };
    let running = running.into_iter().find(|(tenant, _)| *tenant == job.tenant).map_or(0, |(_, jobs)| jobs);
    Ok(said_of(&hosts, tier, most.map(|most| (running, u64::from(most)))))
}

/// `cap`: how many jobs of the tenant run on all hosts, and how many may on each.
fn said_of(hosts: &[Host], tier: Option<Tier>, cap: Option<(u64, u64)>) -> String {
    let alive: Vec<&Host> = hosts.iter().filter(|host| host.alive_for.is_some()).collect();
    if let Some(tier) = tier.filter(|_| !alive.is_empty()) {
        let rests = |host: &&&Host| host.facts.resting.iter().any(|name| name == tier.name());
        match alive.iter().find(rests) {
            _ if alive.iter().any(|host| host.offers(tier)) => {}
            Some(host) => {
                let name = &host.facts.host;
                return format!(
                    "no host offers tier {tier} now; {name} makes no sandboxes of it for a while"
                );
            }
            None => return format!("no host offers tier {tier}"),
        }
    }
    let alive: Vec<&Host> =
        alive.into_iter().filter(|host| tier.is_none_or(|tier| host.offers(tier))).collect();
    if let Some((running, most)) = cap.map(|(running, each)| (running, each * alive.len() as u64))
        && (1..=running).contains(&most)
    {
        return format!("tenant cap {running}/{most}");
    }
    let (slots, running) = alive
        .iter()
        .fold((0, 0), |(slots, running), host| (slots + host.facts.slots, running + host.facts.running));
    match alive.len() {
        0 => "no host serves now".to_owned(),
        _ if running >= slots => format!("all {slots} slots of {} hosts are taken", alive.len()),
        hosts => {
            let mut tiers: Vec<&str> =
                alive.iter().flat_map(|host| host.facts.tiers.iter().map(String::as_str)).collect();
            tiers.sort_unstable();
            tiers.dedup();
            match tier {
                Some(tier) => format!("its turn comes; {hosts} hosts offer tier {tier}"),
                None => {
                    format!(
                        "its turn comes, if its tier is one that the {hosts} hosts offer: {}",
                        tiers.join(", ")
                    )
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::redis::HostFacts;

    fn host(tiers: &[&str], resting: &[&str], alive: bool) -> Host {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let facts = HostFacts {
            host: "one".into(),
            tiers: words(tiers),
            resting: words(resting),
            slots: 2,
            ..HostFacts::default()
        };
        Host { facts, alive_for: alive.then_some(Duration::from_secs(1)) }
    }

    #[test]
    fn a_job_that_waits_hears_for_what() {
        let vm = Some(Tier::Vm);
        for (hosts, tier, cap, expected) in [
            (vec![], vm, None, "no host serves now"),
            (vec![host(&["vm"], &[], false)], vm, None, "no host serves now"),
            (vec![host(&["chroot"], &[], true)], vm, None, "no host offers tier vm"),
            (
                vec![host(&["chroot"], &[], true), host(&["vm"], &[], false)],
                vm,
                None,
                "no host offers tier vm",
            ),
            (vec![host(&["vm"], &["vm"], true)], vm, None, "no host offers tier vm now; one makes no"),
            (vec![host(&["vm"], &[], true)], vm, None, "its turn comes; 1 hosts offer tier vm"),
            (vec![host(&["chroot"], &[], true)], None, None, "its turn comes, if its tier is one"),
            (vec![host(&["vm"], &[], true); 2], vm, Some((4, 2)), "tenant cap 4/4"),
            (vec![host(&["vm"], &[], true); 2], vm, Some((3, 2)), "its turn comes"),
            (vec![host(&["chroot"], &[], true)], vm, Some((4, 2)), "no host offers tier vm"),
        ] {
            let said = said_of(&hosts, tier, cap);
            assert!(said.starts_with(expected), "{said:?} is not {expected:?}");
        }
    }
}

//! Where a job of the service stands, when no process of this host has it: the store knows.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use pool::Tier;
use scheduler::{
    Cancelling, JobKey, JobState, Store as _, StoreError,
    config::Config,
    redis::{Host, RedisStore, RedisStoreError},
};
use worker::{ErrorReport, causes};

use crate::{complaint::remark, services};

/// What the store knows of a job; `None` if it knows none such, or if there is no store.
pub(crate) async fn state(config: &Config, job: &JobKey) -> Result<Option<JobState>, ErrorReport> {
    if config.store.is_none() {
        return Ok(None);
    }
    services::answering_store(config).await?.state(job).await.map_err(|error| failed(&error))
}

/// Whether the store can be asked and knows the job.
pub(crate) fn knows(config: &Config, job: &JobKey) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.is_ok_and(|runtime| matches!(runtime.block_on(state(config, job)), Ok(Some(_))))
}

/// Says where a job stands, and why it waits if it does.
pub(crate) async fn show(config: &Config, job: &JobKey, json: bool) -> Result<ExitCode, ErrorReport> {
    let Some(state) = state(config, job).await? else {
        remark(&format!("no job {job} is known"));
        return Ok(ExitCode::FAILURE);
    };
    let store = services::answering_store(config).await?;
    let why = match state {
        JobState::Waiting { cancelled: false } => Some(why_it_waits(config, &store, job).await?),
        _ => None,
    };
    let mut out = io::stdout().lock();
    let written = if json {
        let status = serde_json::json!({ "job": job, "status": state, "waiting_for": why });
        writeln!(out, "{status:#}")
    } else {
        writeln!(out, "{job}  {}", said(state, why.as_deref()))
    };
    written.map_err(|error| {
        ErrorReport::new("cannot write to standard output", error.to_string(), "ask again")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Says that a job is not wanted any more. `None`: it is not known.
pub(crate) async fn cancel(config: &Config, job: &JobKey) -> Result<Option<Cancelling>, ErrorReport> {
    if state(config, job).await?.is_none() {
        return Ok(None);
    }
    let store = services::answering_store(config).await?;
    store.cancel(job).await.map(Some).map_err(|error| failed(&error))
}

fn said(state: JobState, why: Option<&str>) -> String {
    match state {
        JobState::Waiting { cancelled: true } => "cancelled before it began".to_owned(),
        JobState::Waiting { cancelled: false } => format!("waits: {}", why.unwrap_or("its turn comes")),
        JobState::Begun { attempt } => format!("begun, attempt {attempt}"),
        JobState::Over { outcome } => format!("ended: {}", outcome.name()),
    }
}

async fn why_it_waits(config: &Config, store: &RedisStore, job: &JobKey) -> Result<String, ErrorReport> {
    let failed =
        |error: RedisStoreError| ErrorReport::new("the store failed", causes(&error), "see that Redis runs");
    let tier = store.needs(job).await.map_err(failed)?;
    let hosts = store.hosts().await.map_err(failed)?;
    let most = config.tenants.get(&job.tenant).and_then(|tenant| tenant.max_running);
    let running = match most {
        Some(_) => store.running().await.map_err(failed)?,
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

fn failed(error: &StoreError) -> ErrorReport {
    ErrorReport::new("the store failed", causes(error), "see that Redis runs")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scheduler::redis::HostFacts;

    use super::*;

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

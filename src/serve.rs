//! `mayfly serve`: one host of the service. Pulls jobs from the broker and runs them until it is told to stop.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | it was told to stop, and every job that ran has its result or is with the broker again |
//! | 125 | mayfly failed: what to do is said |

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use pool::{Pool, PoolConfig, Tier, host};
use scheduler::{
    AmqpOptions, AmqpQueue, Neighbours, Service, Stage, Stop, Stopper,
    broker::LinkHealth,
    config::{BrokerPart, Config},
    control::Identity,
    live::Sight,
    metrics::Metrics,
    redis::{Health, HostFacts, RedisStore},
    stop,
};
use tokio::time::sleep;
use worker::{ErrorReport, Settings, Worker, causes};

use crate::{
    complaint::{complain, remark},
    log::LogArgs,
    node::{self, Places},
    services::{self, carry_out},
    shown,
    streams::Signals,
    vigil::Vigil,
};

/// How long the last spans of jobs may take to reach the collector.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// Run jobs from the broker, on this host, until told to stop.
///
/// `mayfly setup` prepares the broker. SIGTERM or Ctrl-C: no new jobs, those that run go on to their end. Once more: those
/// are ended too. SIGHUP: tenants and their policies are read again.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// Serves, and says how it went.
pub(crate) fn run(_: &ServeArgs, places: &Places) -> ExitCode {
    carry_out(attend(places))
}

async fn attend(places: &Places) -> Result<ExitCode, ErrorReport> {
    let config = places.config()?;
    let (broker, store) = (services::broker(&config)?, services::store(&config)?);
    if config.tenants.is_empty() {
        let hint = "write one as [tenants.NAME], and run `mayfly setup`";
        return Err(ErrorReport::new("nobody may send jobs", "the configuration has no tenant", hint));
    }
    let signals = Signals::catch()
        .map_err(|error| ErrorReport::new("mayfly cannot start", error.to_string(), "try again"))?;
    // Before anything is made: whoever cannot have the port hears it at once.
    let place = shown::place(&config).await?;
    let tiers = offered(&config, places)?;
    let metrics = place
        .as_ref()
        .map(|_| shown::of_service(&config, &tiers, pool_settings(&config, places).settings.max_instances));
    let pool = open_pool(&config, places, metrics.clone())?;
    let facts = HostFacts {
        host: node::host_name(),
        tiers: tiers.iter().map(ToString::to_string).collect(),
        slots: config.serve.slots,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..HostFacts::default()
    };
    let (jobs, results) = (broker.address(), store.address.to_string());
    let store = RedisStore::open(store, &pool.instance().to_string(), facts).map_err(|error| {
        ErrorReport::new("the store cannot be used", causes(&error), "see store.url in the configuration")
    })?;
    let longest_held = config.broker.as_ref().map_or_else(Duration::default, BrokerPart::longest_held);
    let neighbours = Neighbours { store: store.clone(), longest_held, tier_wait: config.serve.tier_wait };
    let queue = AmqpQueue::open(&broker, AmqpOptions::new(config.lanes(), tiers.clone()), Some(neighbours));
    tokio::spawn(tell_of_claims(store.clone(), longest_held));
    tokio::spawn(tell_of_queue(queue.health(), jobs.clone()));
    tokio::spawn(tell_of_store(store.health(), results.clone()));

    let (slots, metrics_of_selftest) = (config.serve.slots, metrics.clone());
    let worker = Worker::new(pool, Settings::default());
    let artifacts = services::artifacts(&config, places)?;
    let rights = (config.policies().map_err(|error| node::bad_config(&error))?, slots);
    let (traces, sending) = shown::traces(&config, metrics.clone())?.unzip();
    let watched = (metrics.clone(), traces);
    let service = Arc::new(Service::new(queue, (store, artifacts), worker, rights, watched));
    let (stopper, stop) = stop();
    let who = Identity { jobs, results, ..node::identity("serve") };
    let sight = Sight { who, tiers, data_dir: places.data_dir.clone() };
    let control = service.listen(&places.run_dir, &sight, &stop);
    if let Err(error) = &control {
        remark(&format!("`mayfly status` and `mayfly cancel` cannot reach this process: {error}"));
    }
    let heeding = tokio::spawn(heed(signals, stopper.clone(), Arc::clone(&service), places.clone()));
    let hurrying = tokio::spawn(hurry(stop.clone(), stopper.clone(), config.serve.drain));
    let resting = tokio::spawn(tell_of_rest(Arc::clone(&service)));
    let web = place.zip(metrics).map(|(place, metrics)| {
        remark(&format!("the live page, metrics and health are at http://{}", place.address()));
        service.expose(place, metrics, &sight, &stop)
    });
    let vigil = Vigil::new(config.selftest.clone(), &sight.tiers, places, metrics_of_selftest);
    if config.selftest.at_start {
        vigil.look(&service).await;
    }
    let watching = tokio::spawn(vigil.keep(Arc::clone(&service)));
    remark(&format!("serving with {slots} slots"));
    let ran = service.run(&stopper, &stop).await;
    for task in [heeding, hurrying, resting, watching] {
        task.abort();
        // Until then it holds the service.
        let _ = task.await;
    }
    drop(control);
    if let Some(web) = web {
        // Until then somebody may look at the service.
        web.close().await;
    }
    let ended = service.board().ended();
    if let Some((queue, worker)) = close(service).await {
        drop(queue);
        worker.into_pool().close().await;
    }
    if let Some(sending) = sending {
        sending.end(LAST_SPANS).await;
    }
    match ran {
        Ok(()) => {
            remark(&format!("stopped; {ended} jobs ended here"));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let hint = "what was not ended is with the broker; `mayfly doctor` looks at this host";
            Err(ErrorReport::new("serving ended", causes(&error), hint))
        }
    }
}

async fn close(service: Arc<Service<AmqpQueue>>) -> Option<(AmqpQueue, Worker)> {
    Arc::into_inner(service)?.close().await
}

/// The tiers that are wanted and that this host can run. What is left out is said.
fn offered(config: &Config, places: &Places) -> Result<Vec<Tier>, ErrorReport> {
    let report = host::inspect(&node::query(places, config, Ok(Vec::new())));
    let mut tiers = Vec::new();
    for tier in &config.serve.tiers {
        match report.tiers.iter().find(|report| report.tier == *tier) {
            Some(found) if found.ready => tiers.push(*tier),
            Some(_) | None => remark(&format!("tier {tier} is not offered here: see `mayfly doctor`")),
        }
    }
    if tiers.is_empty() {
        let hint = "`mayfly doctor` says what each tier needs";
        return Err(ErrorReport::new("no job can run here", "this host can run none of serve.tiers", hint));
    }
    Ok(tiers)
}

fn pool_settings(config: &Config, places: &Places) -> PoolConfig {
    let mut settings = places.pool(config);
    // Each slot has one in use, one on its way out and one waiting.
    settings.settings.max_instances = settings.settings.max_instances.max(3 * config.serve.slots);
    settings
}

fn open_pool(config: &Config, places: &Places, metrics: Option<Arc<Metrics>>) -> Result<Pool, ErrorReport> {
    let mut settings = pool_settings(config, places);
    if let Some(metrics) = metrics {
        settings.witness = metrics;
    }
    let pool = Pool::open(&settings).map_err(|error| {
        let hint = "`mayfly doctor` says what this host needs";
        ErrorReport::new("no sandbox can be made here", causes(&error), hint)
    })?;
    for keep in &config.pool.keep {
        // The class was looked for when the configuration was read.
        let Ok(want) = keep.want(&config.classes) else { continue };
        if let Err(error) = pool.keep(&want, keep.idle_count) {
            remark(&format!(
                "{} of image {} cannot be kept ready: {}",
                keep.tier,
                keep.image,
                causes(&error)
            ));
        }
    }
    Ok(pool)
}

/// SIGHUP reads tenants again; each other signal goes one stage further: no new jobs, then none at all.
async fn heed(mut signals: Signals, stopper: Stopper, service: Arc<Service<AmqpQueue>>, places: Places) {
    const SIGHUP: u8 = 1;
    loop {
        if signals.next().await == SIGHUP {
            let policies = places
                .config()
                .and_then(|config| config.policies().map_err(|error| node::bad_config(&error)));
            match policies {
                Ok(policies) => {
                    service.set_policies(policies);
                    remark(
                        "the tenants' policies are as the configuration says now; the rest takes a restart",
                    );
                }
                Err(error) => complain(&error),
            }
            continue;
        }
        match stopper.more() {
            Stage::Draining => {
                remark("no more jobs are started; those that run go on to their end (once more: end them)");
            }
            _ => remark("the jobs that run are ended"),
        }
    }
}

/// Ends what has not ended by itself in the time to drain.
async fn hurry(mut stop: Stop, stopper: Stopper, drain: Duration) {
    stop.reached(Stage::Draining).await;
    sleep(drain).await;
    if stop.stage() == Stage::Draining {
        remark("the time to drain is over");
        let _ = stopper.more();
    }
}

/// Says each time when jobs can come again or results can go again, and when not.
async fn tell_of_queue(mut health: tokio::sync::watch::Receiver<scheduler::broker::Health>, address: String) {
    let mut said = [String::new(), String::new()];
    loop {
        let now = health.borrow_and_update().clone();
        for ((link, what), said) in [(&now.intake, "jobs"), (&now.outlet, "results")].iter().zip(&mut said) {
            let text = link_text(link, what, &address);
            if *said != text && !text.is_empty() {
                remark(&text);
            }
            *said = text;
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// Says when a tier can make no sandboxes any more, and when it can again.
async fn tell_of_rest(service: Arc<Service<AmqpQueue>>) {
    let (mut changes, mut before) = (service.rest_changes(), Vec::new());
    loop {
        let now = changes.borrow_and_update().clone();
        for resting in service.resting().iter().filter(|resting| !before.contains(&resting.tier)) {
            let until =
                if resting.is_refused() { "a selftest finds that it holds" } else { "a sandbox can be made" };
            remark(&format!(
                "tier {} {}: its jobs are left to other hosts until {until}; {}",
                resting.tier,
                resting.state(),
                resting.why
            ));
        }
        for tier in before.iter().filter(|tier| !now.contains(tier)) {
            remark(&format!("tier {tier} is offered again"));
        }
        before = now;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Says once what becomes of jobs that run for longer than the broker lets them be held.
async fn tell_of_claims(store: RedisStore, longest_held: Duration) {
    // If the store is closed before it answers, nobody wants to know any more.
    if let Ok(durability) = store.check_durability().await {
        remark(&services::long_jobs(&durability, longest_held).1);
    }
}

fn link_text(link: &LinkHealth, what: &str, address: &str) -> String {
    match (link.connected, &link.blocked, &link.reason) {
        (true, Some(alarm), _) => format!("the broker takes no {what} now: {alarm}"),
        (true, None, _) => format!("connected to {address} for {what}"),
        (false, _, Some(reason)) => format!("no connection to {address} for {what}: {reason}"),
        (false, _, None) => String::new(),
    }
}

async fn tell_of_store(mut health: tokio::sync::watch::Receiver<Health>, address: String) {
    let mut was_down = true;
    loop {
        let down = match &*health.borrow_and_update() {
            Health::Unknown => None,
            Health::Connected => Some(None),
            Health::Down { reason, .. } => Some(Some(reason.clone())),
        };
        match down {
            Some(None) if was_down => {
                was_down = false;
                remark(&format!("connected to {address} for state"));
            }
            Some(Some(reason)) if !was_down => {
                was_down = true;
                remark(&format!("the store at {address} is away, and everything waits for it: {reason}"));
            }
            _ => {}
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

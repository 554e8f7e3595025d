//! The servers that the service form needs, as `mayfly.toml` names them.

use std::{future::Future, process::ExitCode, time::Duration};

use scheduler::{
    ArtifactStore, JobKey,
    broker::{self, BrokerError},
    config::Config,
    redis::{Durability, RedisSettings, RedisStore},
};
use tokio::runtime::Builder;
use worker::{ErrorReport, causes};

use crate::{complaint::complain, exit, node::Places};

const EXAMPLE: &str =
    "the annotated example, deploy/mayfly.toml, shows every setting; name the file by --config";

/// Runs a verb to its end and says what it failed of.
pub(crate) fn carry_out(verb: impl Future<Output = Result<ExitCode, ErrorReport>>) -> ExitCode {
    let ended = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(verb),
        Err(error) => Err(ErrorReport::new("mayfly cannot start", error.to_string(), "see ulimit -u and -n")),
    };
    ended.unwrap_or_else(|error| {
        complain(&error);
        exit::MAYFLY.into()
    })
}

/// Where the broker is, and who mayfly is there.
pub(crate) fn broker(config: &Config) -> Result<broker::Settings, ErrorReport> {
    let Some(broker) = &config.broker else { return Err(no_section("broker")) };
    broker.settings().map_err(|error| ErrorReport::new("the broker cannot be used", causes(&error), EXAMPLE))
}

/// Where the store is, and who mayfly is there.
pub(crate) fn store(config: &Config) -> Result<RedisSettings, ErrorReport> {
    let Some(store) = &config.store else { return Err(no_section("store")) };
    store.settings().map_err(|error| ErrorReport::new("the store cannot be used", causes(&error), EXAMPLE))
}

/// The store, to ask it something.
pub(crate) fn look_at_store(config: &Config) -> Result<RedisStore, ErrorReport> {
    RedisStore::look_on(store(config)?).map_err(|error| no_store(&error))
}

/// A store that answers, to ask it something now.
pub(crate) async fn answering_store(config: &Config) -> Result<RedisStore, ErrorReport> {
    let store = look_at_store(config)?;
    store.check().await.map_err(|error| no_store(&error))?;
    Ok(store)
}

/// Where the files that jobs leave are kept; `None`: nowhere.
pub(crate) fn artifacts(config: &Config, places: &Places) -> Result<Option<ArtifactStore>, ErrorReport> {
    let Some(artifacts) = &config.artifacts else { return Ok(None) };
    let unusable = |why| ErrorReport::new("the artifact store cannot be used", why, EXAMPLE);
    let settings =
        artifacts.settings(places.data_dir.join("arriving")).map_err(|error| unusable(causes(&error)))?;
    ArtifactStore::open(settings).map(Some).map_err(|error| unusable(causes(&error)))
}

/// Whether jobs can run that take longer than the broker lets them be held, and how that is said.
pub(crate) fn long_jobs(durability: &Durability, longest_held: Duration) -> (bool, String) {
    let held = humantime::format_duration(longest_held);
    match durability {
        Durability::Kept => {
            (true, format!("jobs that may run for more than {held} are claimed in the store"))
        }
        Durability::Forgetful(why) | Durability::Unknown(why) => (
            false,
            format!(
                "jobs that may run for more than {held} are rejected, as the store may forget a claim: {why}"
            ),
        ),
    }
}

/// Which job is meant.
pub(crate) fn job(text: &str) -> Result<JobKey, ErrorReport> {
    text.parse().map_err(|error| {
        ErrorReport::new(
            "no such job",
            causes(&error),
            "name it as TENANT/ID, as `mayfly submit` and its result do",
        )
    })
}

/// What the broker did not do.
pub(crate) fn no_broker(error: &BrokerError) -> ErrorReport {
    let hint = match error {
        BrokerError::NotSetUp(_) => "run `mayfly setup` as a user who may configure the broker",
        BrokerError::NoSuchJob(_) => "`mayfly dlq ls` lists those that are there",
        BrokerError::Name(_) => "use 1 to 128 letters, digits, dots, underscores and dashes",
        _ => "see that the broker runs, and that broker.url, user and password are right",
    };
    ErrorReport::new("the broker does not do it", causes(error), hint)
}

fn no_store(error: &(dyn std::error::Error + 'static)) -> ErrorReport {
    let hint = "see that Redis runs, and that store.url, user and password are right";
    ErrorReport::new("the store does not do it", causes(error), hint)
}

fn no_section(name: &str) -> ErrorReport {
    let why = format!("there is no [{name}] in the configuration");
    ErrorReport::new("this needs the servers of the service form", why, EXAMPLE)
}

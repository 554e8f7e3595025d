//! Where a job of the service stands, when no process of this host has it: the store knows.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use scheduler::{
    Cancelling, JobKey, JobState, Store as _, StoreError, config::Config, live::why_it_waits,
    redis::RedisStoreError,
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
        JobState::Waiting { cancelled: false } => {
            let most = config.tenants.get(&job.tenant).and_then(|tenant| tenant.max_running);
            let failed = |error: RedisStoreError| {
                ErrorReport::new("the store failed", causes(&error), "see that Redis runs")
            };
            Some(why_it_waits(&store, job, most).await.map_err(failed)?)
        }
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

fn failed(error: &StoreError) -> ErrorReport {
    ErrorReport::new("the store failed", causes(error), "see that Redis runs")
}

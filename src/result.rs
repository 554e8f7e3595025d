//! `mayfly result`: what became of a job, from any host.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use scheduler::{ArtifactStore, JobKey, Store as _};
use worker::{Arrival, Artifact, ArtifactSink as _, ErrorReport, JobResult, causes};

use crate::{
    complaint::remark,
    get::LocalFiles,
    node::Places,
    services::{self, carry_out},
};

/// Print the result of a job of the service, as JSON.
///
/// Ends with 1 if the job has none yet, or is not known.
#[derive(Debug, Args)]
pub(crate) struct ResultArgs {
    /// The job: TENANT/ID.
    job: String,
    /// Fetch the files that it left into this directory, each under its path in the sandbox.
    #[arg(long, value_name = "DIR")]
    get: Option<PathBuf>,
}

/// Asks the store and prints.
pub(crate) fn run(args: &ResultArgs, places: &Places) -> ExitCode {
    carry_out(attend(args, places))
}

async fn attend(args: &ResultArgs, places: &Places) -> Result<ExitCode, ErrorReport> {
    let job = services::job(&args.job)?;
    let config = places.config()?;
    let store = services::answering_store(&config).await?;
    let hint = "see that Redis runs";
    let failed = |error: scheduler::StoreError| ErrorReport::new("the store failed", causes(&error), hint);
    let Some(result) = store.result(&job).await.map_err(failed)? else {
        let state = store.state(&job).await.map_err(failed)?;
        remark(&match state {
            Some(_) => format!("{job} has no result yet; `mayfly status {job}` says where it stands"),
            None => format!("no job {job} is known"),
        });
        return Ok(ExitCode::FAILURE);
    };
    if let Some(directory) = &args.get {
        let Some(artifacts) = services::artifacts(&config, places)? else {
            let why = "there is no [artifacts] in the configuration";
            return Err(ErrorReport::new("the files were not kept", why, "configure where they are kept"));
        };
        fetch(&artifacts, &job, &result, directory).await?;
    }
    let text = serde_json::to_string_pretty(&result).map_err(io::Error::from);
    let printed = text.and_then(|text| writeln!(io::stdout().lock(), "{text}"));
    printed.map_err(|error| {
        ErrorReport::new("cannot write to standard output", error.to_string(), "ask again")
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn fetch(
    artifacts: &ArtifactStore,
    job: &JobKey,
    result: &JobResult,
    directory: &Path,
) -> Result<(), ErrorReport> {
    let mut files = LocalFiles::below(directory);
    for artifact in &result.artifacts {
        let fetched = one(artifacts, job, result.attempt, artifact, &mut files).await;
        fetched.map_err(|why| {
            let what = format!("cannot fetch {}", artifact.path.escape_debug());
            ErrorReport::new(
                what,
                why,
                "see that the artifact store can be reached and the directory written to",
            )
        })?;
    }
    remark(&format!("{} files fetched into {}", result.artifacts.len(), directory.display()));
    Ok(())
}

async fn one(
    artifacts: &ArtifactStore,
    job: &JobKey,
    attempt: u32,
    artifact: &Artifact,
    files: &mut LocalFiles,
) -> Result<(), String> {
    let mut fetching = artifacts.get(job, attempt, &artifact.path).await.map_err(|error| causes(&error))?;
    let arrival = Arrival { asked: 0, path: artifact.path.as_bytes(), mode: 0o644 };
    files.begin(arrival).await.map_err(|error| error.to_string())?;
    loop {
        match fetching.next().await {
            Ok(Some(bytes)) => files.write(&bytes).await.map_err(|error| error.to_string())?,
            Ok(None) => return files.keep().await.map_err(|error| error.to_string()),
            Err(error) => {
                files.discard().await;
                return Err(causes(&error));
            }
        }
    }
}

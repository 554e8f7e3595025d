//! `mayfly schema`: prints the JSON Schema of what people write and read.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use worker::{Job, JobResult};

/// Print the JSON Schema of jobs or of results.
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// Which one.
    of: Document,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Document {
    /// A job, as it is submitted.
    Job,
    /// A result, as `run --json` prints it.
    Result,
}

pub(crate) fn run(args: &SchemaArgs) -> io::Result<ExitCode> {
    let schema = match args.of {
        Document::Job => schemars::schema_for!(Job),
        Document::Result => schemars::schema_for!(JobResult),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schema)?;
    writeln!(out)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

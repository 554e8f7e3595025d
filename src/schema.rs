//! `mayfly schema`: prints the JSON Schema of what people write and read.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use selftest::Report;
use worker::{Job, JobResult};

/// Print the JSON Schema of jobs, of results or of selftest reports.
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
    /// A report, as `selftest --json` prints it.
    Selftest,
}

pub(crate) fn run(args: &SchemaArgs) -> io::Result<ExitCode> {
    let schema = match args.of {
        Document::Job => schemars::schema_for!(Job),
        Document::Result => schemars::schema_for!(JobResult),
        Document::Selftest => schemars::schema_for!(Report),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schema)?;
    writeln!(out)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

//! The command line: its words, and which file carries each out.

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use images::Store;
use worker::{ErrorReport, causes};

use crate::{
    audit::{self, AuditArgs},
    batch::{self, BatchArgs},
    bench::{self, BenchArgs},
    cancel::{self, CancelArgs},
    complaint::complain,
    dlq::{self, DlqArgs},
    doctor::{self, DoctorArgs},
    exit,
    image::{self, ImageArgs},
    log::{self, LogFormat},
    logs::{self, LogsArgs},
    node::{self, Places},
    pool_status::{self, PoolArgs},
    reap::{self, ReapArgs},
    result::{self, ResultArgs},
    run::{self, RunArgs},
    schema::{self, SchemaArgs},
    selftest::{self, SelftestArgs},
    serve::{self, ServeArgs},
    setup::{self, SetupArgs},
    status::{self, StatusArgs},
    submit::{self, SubmitArgs},
    top::{self, TopArgs},
};

/// Runs jobs of AI agents, each in a sandbox that lives for that job only.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<RunArgs>),
    Batch(BatchArgs),
    Serve(ServeArgs),
    Setup(SetupArgs),
    Submit(SubmitArgs),
    Result(ResultArgs),
    Logs(LogsArgs),
    Status(StatusArgs),
    Top(TopArgs),
    Cancel(CancelArgs),
    Dlq(DlqArgs),
    Pool(PoolArgs),
    Image(ImageArgs),
    Doctor(DoctorArgs),
    Audit(AuditArgs),
    Reap(ReapArgs),
    Bench(BenchArgs),
    Selftest(SelftestArgs),
    Schema(SchemaArgs),
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let Cli { places, verb } = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::MAYFLY.into() } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = begin_log(&verb) {
        return failed(&error);
    }
    match verb {
        Verb::Run(args) => run::run(*args, &places),
        Verb::Batch(args) => batch::run(args, &places),
        Verb::Serve(args) => serve::run(&args, &places),
        Verb::Setup(args) => setup::run(&args, &places),
        Verb::Submit(args) => submit::run(args, &places),
        Verb::Result(args) => result::run(&args, &places),
        Verb::Logs(args) => logs::run(&args, &places),
        Verb::Dlq(args) => dlq::run(args, &places),
        Verb::Status(args) => asked(status::run(&args, &places, &mut io::stdout().lock())),
        Verb::Top(args) => asked(top::run(&args, &places, &mut io::stdout())),
        Verb::Cancel(args) => asked(cancel::run(&args, &places, &mut io::stdout().lock())),
        Verb::Pool(args) => asked(pool_status::run(&args, &places, &mut io::stdout().lock())),
        Verb::Image(args) => image::run(args, &places).unwrap_or_else(|report| failed(&report)),
        Verb::Doctor(args) => {
            let images = images(&places);
            let config = match places.config() {
                Ok(config) => config,
                Err(error) => {
                    complain(&error);
                    return exit::MAYFLY.into();
                }
            };
            let query = node::query(&places, &config, images);
            doctor::run(&args, &query, &config, &mut io::stdout().lock())
                .unwrap_or_else(|error| no_output(&error))
        }
        Verb::Audit(args) => match audit::run(args, &places, &mut io::stdout().lock()) {
            Ok(printed) => printed.unwrap_or_else(|error| no_output(&error)),
            Err(error) => failed(&ErrorReport::new(
                "audit",
                causes(&error),
                "run it as root, on the node's own data directory",
            )),
        },
        Verb::Reap(args) => match reap::run(&args, &places, &mut io::stdout().lock()) {
            Ok(printed) => printed.unwrap_or_else(|error| no_output(&error)),
            Err(error) => {
                failed(&ErrorReport::new("reap", causes(&error), "`mayfly doctor` looks at this host"))
            }
        },
        Verb::Bench(args) => bench::run(&args, &places),
        Verb::Selftest(args) => selftest::run(&args, &places),
        Verb::Schema(args) => schema::run(&args).unwrap_or_else(|error| no_output(&error)),
    }
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words)
}

/// Begins to say what happens inside, to whoever asks; a host that serves says what goes wrong without being asked.
fn begin_log(verb: &Verb) -> Result<(), ErrorReport> {
    match verb {
        Verb::Serve(args) => log::begin(args.log.log_format, Some("warn")),
        _ => log::begin(LogFormat::Text, None),
    }
}

fn images(places: &Places) -> Result<Vec<String>, String> {
    let folder = places.data_dir.join("images");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let listed = Store::open(&folder).and_then(|store| store.list()).map_err(|error| causes(&error))?;
    Ok(listed
        .iter()
        .flat_map(|image| image.names.iter().map(|name| format!("{name}@{}", image.manifest.digest)))
        .collect())
}

/// A question to live processes ends.
fn asked(answered: io::Result<ExitCode>) -> ExitCode {
    answered.unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let hint = "ask as the user who runs them";
            failed(&ErrorReport::new("cannot ask the mayflies of this host", error.to_string(), hint))
        }
        _ => no_output(&error),
    })
}

fn failed(report: &ErrorReport) -> ExitCode {
    complain(report);
    exit::MAYFLY.into()
}

/// Standard output does not take what was asked for.
fn no_output(error: &io::Error) -> ExitCode {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return exit::READER_GONE.into();
    }
    let _ = writeln!(io::stderr(), "mayfly: cannot write to standard output: {error}");
    exit::MAYFLY.into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

//! What mayfly says of its own work on stderr, beside what it answers: for people, or for programs.

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, filter::Directive};
use worker::ErrorReport;

/// Says how much: `warn`, or `pool=debug,warn`.
const HOW_MUCH: &str = "MAYFLY_LOG";
/// The broker's client shows whole messages here: jobs' output, and what producers sent.
const MESSAGES: &str = "lapin::returned_messages";
/// The target of mayfly's own voice where programs read the log: it is there, however little else is.
pub(crate) const VOICE: &str = "mayfly::voice";

/// Whom the log is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines of text, for people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// How a process that serves says what happens.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Whom what it says on stderr is for. `MAYFLY_LOG` says how much that is: `warn` where it is not set
    #[arg(long, env = "MAYFLY_LOG_FORMAT", value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Begins. `usual`: how much is said where nobody asks; `None`: nothing, and a start does not pay for it.
pub(crate) fn begin(format: LogFormat, usual: Option<&str>) -> Result<(), ErrorReport> {
    let asked = std::env::var(HOW_MUCH).ok();
    let Some(how_much) = asked.as_deref().or(usual) else { return Ok(()) };
    let filter = EnvFilter::try_new(how_much).map_err(|error| {
        let hint = format!("write a level, such as {HOW_MUCH}=warn, or some: {HOW_MUCH}=pool=debug,warn");
        ErrorReport::new(format!("{HOW_MUCH} says nothing that mayfly knows"), error.to_string(), hint)
    })?;
    let filter = filter.add_directive(directive(MESSAGES, "off"));
    let log = tracing_subscriber::fmt().with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).with_env_filter(filter).init(),
        LogFormat::Json => {
            let log = log.with_env_filter(filter.add_directive(directive(VOICE, "info"))).json();
            log.flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
    // Nobody else begins.
    let _ = FORMAT.set(format);
    Ok(())
}

fn directive(target: &str, level: &str) -> Directive {
    format!("{target}={level}").parse().expect("both are constants")
}

/// Whether programs read what mayfly says.
pub(crate) fn is_for_programs() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

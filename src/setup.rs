//! `mayfly setup`: makes on the broker what the configured tenants need, and says what an operator must do beside it.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use scheduler::{
    AmqpOptions,
    broker::{OperatorCommand, commands, connect, declare},
};
use worker::ErrorReport;

use crate::{
    node::Places,
    services::{self, carry_out, no_broker},
};

/// Prepare the broker for the tenants of the configuration.
///
/// Makes exchanges, queues and bindings, which does no harm when they are there. Users, permissions and policies are not
/// made by a client: the commands for them are printed, for whoever may run rabbitmqctl.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// Make nothing; only print the commands for users, permissions and policies.
    #[arg(long)]
    commands: bool,
}

/// Sets up and prints.
pub(crate) fn run(args: &SetupArgs, places: &Places) -> ExitCode {
    carry_out(attend(args, places))
}

async fn attend(args: &SetupArgs, places: &Places) -> Result<ExitCode, ErrorReport> {
    let config = places.config()?;
    let settings = services::broker(&config)?;
    let topology = AmqpOptions::new(config.lanes(), config.serve.tiers.clone()).topology();
    let all = commands(&topology, settings.vhost(), settings.user(), settings.consumer_timeout);
    if !args.commands {
        let connected = connect(&settings, "setup").await.map_err(|error| no_broker(&error))?;
        declare(&connected, &topology).await.map_err(|error| no_broker(&error))?;
    }
    let done = (!args.commands)
        .then(|| format!("{} has what {} tenants need", settings.address(), config.tenants.len()));
    print(done, &all, &mut io::stdout().lock()).map_err(|error| {
        ErrorReport::new(
            "cannot write to standard output",
            error.to_string(),
            "the broker is set up all the same",
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn print(done: Option<String>, commands: &[OperatorCommand], out: &mut impl Write) -> io::Result<()> {
    if let Some(done) = done {
        writeln!(out, "# {done}. What only an operator can do, once, on a node of the broker:")?;
    }
    for command in commands {
        let since = command.since.map_or(String::new(), |since| format!(" (RabbitMQ {since} and later)"));
        writeln!(out, "# {}{since}", command.why)?;
        if command.asks_password {
            writeln!(out, "#   (it asks for the password)")?;
        }
        writeln!(out, "{command}")?;
    }
    out.flush()
}

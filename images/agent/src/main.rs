//! The agent: the first process of every sandbox.
//!
//! It speaks the protocol of the library beside it on descriptors 0 and 1, holds one process armed, lets it become
//! the job, and carries files in and out. It knows no tier and makes no sandbox: whoever starts it did that, but in a
//! virtual machine, where nobody else is (`machine.rs`).

use std::env;
use std::io::Write;
use std::process::ExitCode;

use failure::Failure;

mod arm;
mod channel;
mod exec;
mod failure;
mod files;
mod job;
mod landlock;
mod machine;
mod options;
mod privilege;
mod reach;
mod seccomp;
mod session;
mod streams;
mod sys;
mod tunnels;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == machine::NOTHING) {
        // A word all the same: its way out is the way of every job's output.
        return if std::io::stdout().write_all(b"\n").is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    // A kernel hands its first process what it does not know itself, before what is meant for it.
    let failure = match args.iter().position(|arg| arg == machine::OPTION) {
        Some(at) => machine::serve(args.into_iter().skip(at + 1)),
        None => session::serve(|| options::parse(args.into_iter()).map(session::Surroundings::OfHost)),
    };
    match failure {
        Failure::HostGone => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

//! The agent: the first process of every sandbox.
//!
//! It speaks the protocol of the library beside it on descriptors 0 and 1, holds one process armed, lets it become
//! the job, and carries files in and out. It knows no tier and makes no sandbox: whoever starts it did that.

use std::env;
use std::process::ExitCode;

mod arm;
mod channel;
mod exec;
mod failure;
mod files;
mod job;
mod landlock;
mod options;
mod privilege;
mod reach;
mod seccomp;
mod session;
mod streams;
mod sys;

fn main() -> ExitCode {
    match session::serve(env::args_os().skip(1)) {
        failure::Failure::HostGone => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

//! `mayfly`: the one executable that people and the pool call.

mod audit;
mod batch;
mod bench;
mod cancel;
mod cli;
mod complaint;
mod dlq;
mod doctor;
mod exit;
mod get;
mod image;
mod log;
mod logs;
mod node;
mod pool_status;
mod put;
mod reap;
mod remote;
mod result;
mod run;
mod schema;
mod selftest;
mod serve;
mod services;
mod setup;
mod shown;
mod status;
mod streams;
mod submit;
mod summary;
mod top;
mod vigil;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // Before anything else: the spawner must be the only thread of its process.
    if let (Some(word), None) = (words.next(), words.next())
        && word == pool::SPAWNER_ARG
    {
        return pool::spawner();
    }
    let mut words = std::env::args_os().skip(1);
    if let (Some(word), None) = (words.next(), words.next())
        && word == ::selftest::CONTROL_ARG
    {
        return ::selftest::control();
    }
    cli::main()
}

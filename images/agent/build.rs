//! Compiles the table of system calls into the BPF program that the agent loads.
//!
//! Done here and not in the agent, so that arming a job costs one system call and no work.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

#[path = "filter.rs"]
mod filter;
#[path = "syscalls.rs"]
mod syscalls;

use syscalls::{ALLOWED, ALLOWED_WHEN, REFUSED, UNKNOWN};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=filter.rs");
    println!("cargo::rerun-if-changed=syscalls.rs");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if arch != "x86_64" {
        return Err(format!("syscalls.rs has no table for {arch}: the agent is x86_64 only").into());
    }
    check_table()?;
    let mut source = String::new();
    let program = filter::program();
    writeln!(source, "pub(super) static FILTER: [libc::sock_filter; {}] = [", program.len())?;
    for libc::sock_filter { code, jt, jf, k } in program {
        writeln!(source, "libc::sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    writeln!(source, "];")?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("filters.rs"), source)?;
    Ok(())
}

/// A call that has two answers, or one twice, is a slip of the pen that would go unseen.
fn check_table() -> Result<(), Box<dyn Error>> {
    let mut seen = BTreeSet::new();
    let allowed = ALLOWED.iter().flat_map(|(_, calls)| calls.iter().copied());
    let refused = REFUSED.iter().flat_map(|(_, calls)| calls.iter().copied());
    let unknown = UNKNOWN.iter().flat_map(Clone::clone);
    for call in allowed.chain(ALLOWED_WHEN.iter().map(|when| when.call)).chain(refused).chain(unknown) {
        if !seen.insert(call) {
            return Err(format!("syscalls.rs: call {call} stands in the table twice").into());
        }
    }
    Ok(())
}

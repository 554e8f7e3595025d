//! Compiles the table of system calls into the two BPF programs that the agent loads.
//!
//! Done here and not in the agent, so that arming a job costs one system call for each filter and no work.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

#[path = "syscalls.rs"]
mod syscalls;

use syscalls::{ALLOWED, ALLOWED_WHEN, Arg, REFUSED, UNKNOWN, When};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=syscalls.rs");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if arch != "x86_64" {
        return Err(format!("syscalls.rs has no table for {arch}: the agent is x86_64 only").into());
    }
    check_table()?;
    let mut source = String::new();
    write_program(&mut source, "ALLOW_LIST", &allow_list()?)?;
    write_program(&mut source, "UNKNOWN_CALLS", &unknown_calls()?)?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("filters.rs"), source)?;
    Ok(())
}

/// A call that is both allowed and refused, or said twice, is a slip of the pen that would go unseen.
fn check_table() -> Result<(), Box<dyn Error>> {
    let mut seen = BTreeSet::new();
    let allowed = ALLOWED.iter().flat_map(|(_, calls)| calls.iter().copied());
    let refused = REFUSED.iter().flat_map(|(_, calls)| calls.iter().copied());
    for call in allowed.chain(ALLOWED_WHEN.iter().map(|when| when.call)).chain(refused) {
        if !seen.insert(call) {
            return Err(format!("syscalls.rs: call {call} stands in the table twice").into());
        }
    }
    Ok(())
}

fn allow_list() -> Result<BpfProgram, Box<dyn Error>> {
    let mut rules = BTreeMap::new();
    for call in ALLOWED.iter().flat_map(|(_, calls)| calls.iter()) {
        rules.insert(*call, vec![]);
    }
    for When { call, any_of } in ALLOWED_WHEN {
        let alternatives = any_of.iter().map(|args| rule(args)).collect::<Result<Vec<_>, _>>()?;
        rules.insert(*call, alternatives);
    }
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// Loaded after the allow-list: of two equal actions the newest filter's errno is the one that is returned.
fn unknown_calls() -> Result<BpfProgram, Box<dyn Error>> {
    let rules = UNKNOWN.iter().flat_map(Clone::clone).map(|call| (call, vec![])).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Box<dyn Error>> {
    Ok(SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()?)
}

fn rule(args: &[Arg]) -> Result<SeccompRule, Box<dyn Error>> {
    let conditions = args.iter().map(|arg| {
        let (index, op, value) = match *arg {
            Arg::Is(index, value) => (index, SeccompCmpOp::Eq, value),
            Arg::IsNot(index, value) => (index, SeccompCmpOp::Ne, value),
            Arg::Masked(index, mask, value) => (index, SeccompCmpOp::MaskedEq(mask), value),
        };
        // The kernel reads each of these arguments as 32 bits; bits above them must not change the verdict.
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
    });
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}

fn write_program(source: &mut String, name: &str, program: &BpfProgram) -> Result<(), Box<dyn Error>> {
    writeln!(source, "pub(super) static {name}: [libc::sock_filter; {}] = [", program.len())?;
    for op in program {
        let (code, jt, jf, k) = (op.code, op.jt, op.jf, op.k);
        writeln!(source, "libc::sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")?;
    }
    writeln!(source, "];")?;
    Ok(())
}

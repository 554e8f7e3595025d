//! Compiles the table of system calls into one BPF program: a search tree over runs of calls that share an answer.
//!
//! A tree and not a list, because the kernel tries each filter with every call number when it is loaded, so that it
//! need not run it for calls that are always allowed: of the list, which a general compiler makes, that
//! took a fifth of a millisecond for each sandbox, of the tree next to nothing. And one program instead of two.

use std::collections::BTreeMap;

use libc::sock_filter;

use crate::syscalls::{ALLOWED, ALLOWED_WHEN, Arg, UNKNOWN};

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
const X86_64: u32 = 0xc000_003e;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// What a call gets.
#[derive(Clone, Copy)]
enum Answer {
    Allow,
    Refuse,
    Unknown,
    /// It depends on the arguments: any one of these alternatives must hold.
    When(&'static [&'static [Arg]]),
}

/// The whole program.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut program = vec![
        op(LOAD, ARCH),
        // i386 numbers mean other calls.
        branch(IF_EQUAL, X86_64, 1, 0),
        op(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        op(LOAD, NUMBER),
    ];
    program.extend(tree(&runs()));
    program
}

/// Where each run of calls with one answer begins, from call 0 on.
fn runs() -> Vec<(u32, Answer)> {
    let mut answers = BTreeMap::new();
    for call in ALLOWED.iter().flat_map(|(_, calls)| calls.iter()) {
        answers.insert(*call as u32, Answer::Allow);
    }
    for when in ALLOWED_WHEN {
        answers.insert(when.call as u32, Answer::When(when.any_of));
    }
    for call in UNKNOWN.iter().flat_map(Clone::clone) {
        answers.insert(call as u32, Answer::Unknown);
    }
    let mut runs = vec![(0, Answer::Refuse)];
    let mut next = 0;
    for (call, answer) in answers {
        if call > next {
            extend(&mut runs, next, Answer::Refuse);
        }
        extend(&mut runs, call, answer);
        next = call + 1;
    }
    extend(&mut runs, next, Answer::Refuse);
    runs
}

/// Goes on with the last run if the answer is the same, else begins another.
fn extend(runs: &mut Vec<(u32, Answer)>, from: u32, answer: Answer) {
    let same = |a: Answer, b: Answer| {
        matches!(
            (a, b),
            (Answer::Allow, Answer::Allow)
                | (Answer::Refuse, Answer::Refuse)
                | (Answer::Unknown, Answer::Unknown)
        )
    };
    match runs.last_mut() {
        Some((_, last)) if same(*last, answer) => {}
        Some((start, last)) if *start == from => *last = answer,
        _ => runs.push((from, answer)),
    }
}

/// The call's number is in the accumulator.
fn tree(runs: &[(u32, Answer)]) -> Vec<sock_filter> {
    if let [(_, answer)] = runs {
        return leaf(*answer);
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let (below, above) = (tree(low), tree(high));
    let mut program = Vec::with_capacity(below.len() + above.len() + 2);
    // A conditional jump reaches 255 instructions far, a plain one any distance.
    match u8::try_from(below.len()) {
        Ok(distance) => program.push(branch(IF_AT_LEAST, high[0].0, distance, 0)),
        Err(_) => program.extend([branch(IF_AT_LEAST, high[0].0, 0, 1), op(JUMP, below.len() as u32)]),
    }
    program.extend(below);
    program.extend(above);
    program
}

fn leaf(answer: Answer) -> Vec<sock_filter> {
    let refuse = op(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    match answer {
        Answer::Allow => vec![op(RETURN, libc::SECCOMP_RET_ALLOW)],
        Answer::Refuse => vec![refuse],
        Answer::Unknown => vec![op(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)],
        Answer::When(any_of) => {
            let mut program: Vec<_> = any_of.iter().flat_map(|args| alternative(args)).collect();
            program.push(refuse);
            program
        }
    }
}

/// Allows the call if all arguments hold; else goes on with what follows.
fn alternative(args: &[Arg]) -> Vec<sock_filter> {
    let mut program = vec![op(RETURN, libc::SECCOMP_RET_ALLOW)];
    // From the end, where the distance to what follows is known.
    for arg in args.iter().rev() {
        let past = program.len() as u8;
        let (index, mask, test) = match *arg {
            Arg::Is(index, value) => (index, None, branch(IF_EQUAL, value as u32, 0, past)),
            Arg::IsNot(index, value) => (index, None, branch(IF_EQUAL, value as u32, past, 0)),
            Arg::Masked(index, mask, value) => (index, Some(mask), branch(IF_EQUAL, value as u32, 0, past)),
        };
        program.insert(0, test);
        if let Some(mask) = mask {
            program.insert(0, op(AND, mask as u32));
        }
        // The lower half of an argument: the kernel reads each of these as 32 bits, and the bits above them must not
        // change the verdict.
        program.insert(0, op(LOAD, ARGS + 8 * u32::from(index)));
    }
    program
}

fn op(code: u32, k: u32) -> sock_filter {
    branch(code, k, 0, 0)
}

fn branch(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

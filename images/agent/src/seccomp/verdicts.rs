//! The compiled filter says what the table says, for every call there is: an interpreter runs it.

use super::compiled::FILTER;

#[path = "../../syscalls.rs"]
#[expect(dead_code, reason = "the whole table is here, and some of it is for the build")]
mod syscalls;

use syscalls::{ALLOWED, ALLOWED_WHEN, Arg, UNKNOWN};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const X86_64: u32 = 0xc000_003e;

/// Runs the program as the kernel does, on a `struct seccomp_data`.
fn verdict(arch: u32, call: u32, args: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        0 => call,
        4 => arch,
        16..64 => (args[(offset as usize - 16) / 8] >> (offset % 8 * 8)) as u32,
        _ => panic!("the filter reads offset {offset}"),
    };
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let op = FILTER[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { op.jt } else { op.jf });
        match u32::from(op.code) {
            0x20 => value = word(op.k),
            0x54 => value &= op.k,
            0x15 => at += jump(value == op.k),
            0x35 => at += jump(value >= op.k),
            0x05 => at += op.k as usize,
            0x06 => return op.k,
            code => panic!("the filter has an instruction {code:#x}"),
        }
    }
}

#[test]
fn every_call_without_conditions_gets_the_answer_of_the_table() {
    let allowed: Vec<i64> = ALLOWED.iter().flat_map(|(_, calls)| calls.iter().copied()).collect();
    // The x32 convention sets a bit that makes a number of its own.
    for call in (0..2048).chain(0x4000_0000..0x4000_0800).chain([u32::MAX]) {
        if ALLOWED_WHEN.iter().any(|when| when.call == i64::from(call)) {
            continue;
        }
        let expected = if allowed.contains(&i64::from(call)) {
            ALLOW
        } else if UNKNOWN.iter().any(|range| range.contains(&i64::from(call))) {
            NO_SUCH_CALL
        } else {
            REFUSE
        };
        assert_eq!(verdict(X86_64, call, [0; 6]), expected, "call {call:#x}");
    }
}

#[test]
fn a_call_with_conditions_is_allowed_when_one_alternative_holds_and_only_then() {
    let interesting = |when: &syscalls::When, index: u8| {
        let mut values = vec![0, 1, 2, u64::from(u32::MAX), 1 << 32, (1 << 32) | 1];
        for arg in when.any_of.iter().flat_map(|args| args.iter()) {
            match *arg {
                Arg::Is(at, value) | Arg::IsNot(at, value) if at == index => {
                    values.extend([value, value ^ 1, value | (1 << 40)]);
                }
                Arg::Masked(at, mask, value) if at == index => {
                    values.extend([value, value | !mask, mask, mask & mask.wrapping_neg()]);
                }
                _ => {}
            }
        }
        values
    };
    for when in ALLOWED_WHEN {
        for first in interesting(when, 0) {
            for second in interesting(when, 1) {
                for third in interesting(when, 2) {
                    let args = [first, second, third, 7, 7, 7];
                    let low = |index: u8| args[usize::from(index)] as u32;
                    let holds = |arg: &Arg| match *arg {
                        Arg::Is(index, value) => low(index) == value as u32,
                        Arg::IsNot(index, value) => low(index) != value as u32,
                        Arg::Masked(index, mask, value) => low(index) & mask as u32 == value as u32,
                    };
                    let allowed = when.any_of.iter().any(|args| args.iter().all(holds));
                    let expected = if allowed { ALLOW } else { REFUSE };
                    assert_eq!(
                        verdict(X86_64, when.call as u32, args),
                        expected,
                        "call {} {args:x?}",
                        when.call
                    );
                }
            }
        }
    }
}

#[test]
fn a_call_by_another_convention_kills_the_process() {
    const I386: u32 = 0x4000_0003;
    for call in 0..512 {
        assert_eq!(verdict(I386, call, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}

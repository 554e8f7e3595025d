//! `mayfly selftest`: the sandboxes of this host are attacked from inside, and the answer is printed.
//!
//! Every probe is an ordinary job that asks whether something is visible, writable or limited, and has a control: the same
//! question asked without protection, which must be answered with yes, or the probe is void. `catalogue` says what is
//! asked and what is expected of each tier, `verdict` what two answers mean together.

mod catalogue;
mod verdict;

pub use catalogue::{CATALOGUE, Probe, Way};
pub use verdict::{Expected, Seen, Verdict, judge};

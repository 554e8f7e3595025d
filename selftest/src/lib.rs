//! `mayfly selftest`: the sandboxes of this host are attacked from inside, and the answer is printed.
//!
//! Every probe asks whether something is visible, writable or limited, and has a control: the same question asked without
//! protection, which must be answered with yes, or the probe is void. `catalogue` says what is asked and what is expected of
//! each tier; `inside` asks it as ordinary jobs, `host` asks what handles a sandbox's bytes, `control` asks without
//! protection; `verdict` says what two answers mean together.

mod catalogue;
mod control;
mod ground;
mod host;
mod html;
mod inside;
mod looks;
mod page;
mod report;
mod selftest;
mod verdict;

pub use catalogue::{CATALOGUE, Probe, Way};
pub use control::{CONTROL_ARG, main as control};
pub use ground::CANARY;
pub use host::Servers;
pub use html::render;
pub use looks::{Look, Looks};
pub use page::{print, sum};
pub use report::{Finding, Report, TierReport};
pub use selftest::{Selftest, SelftestError};
pub use verdict::{Expected, Seen, Verdict, judge};

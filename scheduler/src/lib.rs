//! Takes jobs in, decides what they may have, and hands them to workers.
//!
//! - [`admit()`]: a job as its author wrote it becomes an assignment, or a [`Refusal`] that says why not.
//! - [`Policy`]: what the jobs of one tenant may ask for.

mod admit;
mod policy;

pub use admit::{Origin, Refusal, admit, path as check_path};
pub use policy::Policy;

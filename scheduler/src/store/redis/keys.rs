//! What things are called in Redis.
//!
//! ```text
//! <prefix>:{<tenant>/<id>}:job      hash: state, tier, digest, starts, epoch, owner, token, spent, cancelled,
//!                                   outcome
//! <prefix>:{<tenant>/<id>}:result   the result as JSON; gone before the job is forgotten
//! <prefix>:{<tenant>/<id>}:output   stream: what the job writes, while it runs and shortly after
//! <prefix>:leases                   sorted set: instance → when its lease runs out (µs, Redis' clock)
//! <prefix>:silence                  hash: when any heartbeat was heard last, and until when leases are not held to it
//! <prefix>:hosts                    hash: instance → what the host says of itself
//! <prefix>:begun                    hash: job → "owner epoch token" of its attempt; the owner is empty if nobody has it
//! <prefix>:cancels                  set: jobs that have begun, have no result, and are not wanted any more
//! <prefix>:claims                   hash: job → "owner epoch token"
//! <prefix>:claims:records           hash: job → what is needed to run it and to answer
//! <prefix>:claims:lanes             hash: job → the lane that it came by
//! <prefix>:claims:due               sorted set: job → when it may be taken again
//! <prefix>:turn:<what>              string: the instance whose turn it was, for as long as nobody else's is
//! <prefix>:cancelled                channel: a job that has begun is not wanted any more
//! ```
//!
//! In the shared ones the entries bear tenant and id, so no tenant's job has a name in common with another's.

use std::fmt::Write;

use crate::key::{JobKey, is_name};

/// The names below one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    pub(super) leases: String,
    pub(super) silence: String,
    pub(super) hosts: String,
    pub(super) begun: String,
    pub(super) cancels: String,
    pub(super) claims: String,
    pub(super) records: String,
    pub(super) lanes: String,
    pub(super) due: String,
    pub(super) channel: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let under = |name: &str| format!("{prefix}:{name}");
        Self {
            prefix: prefix.to_owned(),
            leases: under("leases"),
            silence: under("silence"),
            hosts: under("hosts"),
            begun: under("begun"),
            cancels: under("cancels"),
            claims: under("claims"),
            records: under("claims:records"),
            lanes: under("claims:lanes"),
            due: under("claims:due"),
            channel: under("cancelled"),
        }
    }

    pub(super) fn job(&self, job: &JobKey) -> String {
        self.of(job, "job")
    }

    pub(super) fn result(&self, job: &JobKey) -> String {
        self.of(job, "result")
    }

    pub(super) fn output(&self, job: &JobKey) -> String {
        self.of(job, "output")
    }

    pub(super) fn turn(&self, what: &str) -> String {
        format!("{}:turn:{what}", self.prefix)
    }

    fn of(&self, job: &JobKey, what: &str) -> String {
        format!("{}:{{{}}}:{what}", self.prefix, name(job))
    }
}

/// The job's name inside Redis: `tenant/id`. What is no name (nobody admits such a job, but anybody may ask for one)
/// is escaped, so that it is not taken for another.
pub(super) fn name(job: &JobKey) -> String {
    format!("{}/{}", escaped(&job.tenant), escaped(&job.id))
}

fn escaped(part: &str) -> String {
    if is_name(part) {
        return part.to_owned();
    }
    part.bytes().fold("%".to_owned(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_jobs_share_a_name() {
        let names =
            [("a", "b"), ("a", "b}:job"), ("a}", "b"), ("a", "6a"), ("a", "j"), ("", "a/b"), ("a/b", "")];
        let names: std::collections::HashSet<_> =
            names.iter().map(|(tenant, id)| Keys::new("m").job(&JobKey::new(*tenant, *id))).collect();
        assert_eq!(names.len(), 7, "{names:?}");
        assert!(names.contains("m:{a/b}:job"));
    }
}

//! Jobs that are malformed, or that ask for what nobody gets, at the real intake.

use std::time::Duration;

use pool::Tier;
use scheduler::{Origin, Policy, admit};
use serde_json::Value;
use worker::Job;

use crate::looks::Look;

/// Deeper than any document that somebody wrote.
const DEPTH: usize = 100_000;

/// M06: each is refused by the type, none by running out of anything.
pub(super) fn malformed_jobs() -> (Look, Look) {
    let job = |more: &str| format!(r#"{{"schema_version":1,"image":"base","command":["true"]{more}}}"#);
    let nested = format!(r#","meta":{{"a":{}{}}}"#, "[".repeat(DEPTH), "]".repeat(DEPTH));
    let documents = [
        ("nested deeply", job(&nested)),
        ("a field twice", job(r#","image":"other""#)),
        ("an unknown field", job(r#","privileged":true"#)),
        ("a huge number", job(r#","max_attempts":1e400"#)),
        ("a negative number", job(r#","max_attempts":-1"#)),
        ("no document", "\u{0}".to_owned()),
    ];
    let taken =
        |(what, text): &(&'static str, String)| serde_json::from_str::<Job>(text).is_ok().then_some(*what);
    let taken: Vec<_> = documents.iter().filter_map(taken).collect();
    // A reader that knows no fields, as a queue would be read without a schema.
    let lax: Vec<_> = documents
        .iter()
        .filter(|(_, text)| serde_json::from_str::<Value>(text).is_ok())
        .map(|(what, _)| *what)
        .collect();
    (
        told(&taken, &format!("{} malformed jobs are refused", documents.len())),
        told(&lax, "a reader without a schema takes none"),
    )
}

/// M08: what a job asks for never weakens what its tenant gets.
pub(super) fn greedy_jobs() -> (Look, Look) {
    let floor = Policy { floor: Tier::Vm, ..Policy::default() };
    let base = || Job {
        schema_version: 1,
        image: "base".to_owned(),
        command: vec!["true".to_owned()],
        tier: Some(Tier::Chroot),
        ..Job::default()
    };
    let admitted = |job: Job, policy: &Policy| {
        let origin = Origin {
            id: "selftest".to_owned(),
            tenant: "selftest".to_owned(),
            attempt: 1,
            queued: Duration::ZERO,
        };
        admit(job, origin, policy)
    };
    let mut taken = Vec::new();
    if !admitted(base(), &floor).is_ok_and(|job| job.want.tier == Tier::Vm) {
        taken.push("a tier below the tenant's floor");
    }
    let variable = |name: &str| Job { env: [(name.to_owned(), String::new())].into(), ..base() };
    let greedy = [
        ("a reserved variable", variable("MAYFLY_ANY")),
        ("a variable with an equals sign", variable("A=B")),
        ("a path as an image", Job { image: "/etc".to_owned(), ..base() }),
        ("an image with a way up", Job { image: "../base".to_owned(), ..base() }),
        (
            "a descriptor as a working directory",
            Job { workdir: Some("/proc/self/fd/7".to_owned()), ..base() },
        ),
        ("artifacts of the kernel's", Job { artifacts: vec!["/proc/1/root/etc".to_owned()], ..base() }),
        ("a secret", Job { secrets: vec!["any".to_owned()], ..base() }),
    ];
    let count = greedy.len();
    for (what, job) in greedy {
        if admitted(job, &Policy::default()).is_ok() {
            taken.push(what);
        }
    }
    for field in ["privileged", "mounts", "devices", "network", "user", "cap_add"] {
        let text = format!(r#"{{"schema_version":1,"image":"base","command":["true"],"{field}":["/"]}}"#);
        if serde_json::from_str::<Job>(&text).is_ok() {
            taken.push(field);
        }
    }
    // Without a floor the same job gets what it asks for.
    let without = admitted(base(), &Policy::default()).is_ok_and(|job| job.want.tier == Tier::Chroot);
    (
        told(&taken, &format!("{} greedy jobs are refused or lifted to their tenant's floor", count + 7)),
        Look::told(!without, "without a floor the tier is the job's to choose"),
    )
}

fn told(taken: &[&str], otherwise: &str) -> Look {
    if taken.is_empty() { Look::held(otherwise) } else { Look::open(format!("taken: {}", taken.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Seen;

    #[test]
    fn the_intake_holds_and_a_lax_one_does_not() {
        for (look, control) in [malformed_jobs(), greedy_jobs()] {
            assert_eq!((look.seen, control.seen), (Seen::Held, Seen::Open), "{look:?}");
        }
    }
}

//! Admission, as tables: what is taken, and what is refused with which field.

use pool::Tier;
use serde_json::{Value, json};

use super::*;

fn origin() -> Origin {
    Origin { id: "made-up".to_owned(), tenant: "local".to_owned(), attempt: 1, queued: Duration::ZERO }
}

fn admitted(fields: &Value) -> Result<Assignment, Refusal> {
    let mut job = json!({ "schema_version": 1, "image": "base", "command": ["true"] });
    job.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    admit(serde_json::from_value(job).unwrap(), origin(), &Policy::default())
}

#[test]
fn what_a_job_does_not_say_is_filled_in() {
    let job = admitted(&json!({})).unwrap();
    assert_eq!((job.id.as_str(), job.tenant.as_str(), job.attempt), ("made-up", "local", 1));
    assert_eq!(job.want.tier, Tier::Docker);
    assert_eq!(job.want.limits, Limits::default());
    assert_eq!(job.timeout, Duration::from_secs(600));
}

#[test]
fn the_tenant_is_never_taken_from_the_job() {
    assert_eq!(admitted(&json!({ "tenant": "somebody-else" })).unwrap().tenant, "local");
}

#[test]
fn a_disk_that_is_not_named_fits_the_memory_that_is() {
    let limits = admitted(&json!({ "limits": { "memory": "32MiB" } })).unwrap().want.limits;
    assert_eq!((limits.memory, limits.disk), (32 << 20, 16 << 20));
}

#[test]
fn each_bad_value_is_refused_by_the_name_of_its_field() {
    let long = "x".repeat(LONGEST_STRING + 1);
    let deep = format!("/{}", "x".repeat(LONGEST_NAME + 1));
    let text = json!({ "text": "" });
    let table = [
        (json!({ "schema_version": 2 }), "schema_version: it is 2"),
        (json!({ "id": "" }), "id: "),
        (json!({ "id": "a b" }), "id: "),
        (json!({ "id": "x".repeat(129) }), "id: "),
        (json!({ "image": "../etc" }), "image: "),
        (json!({ "image": "" }), "image: "),
        (json!({ "command": [] }), "command: it is empty"),
        (json!({ "command": [""] }), "command[0]: it is empty"),
        (json!({ "command": ["a", "b\0c"] }), "command[1]: it has a NUL"),
        (json!({ "command": ["a", long] }), "command[1]: it is 131072 bytes"),
        (json!({ "command": vec!["x".repeat(100_000); 6] }), "command: with env it is 600006 bytes"),
        (json!({ "env": { "1A": "" } }), "env.1A: "),
        (json!({ "env": { "": "" } }), "env.: "),
        (json!({ "env": { "A=B": "" } }), "env.A=B: "),
        (json!({ "env": { "A\u{1b}": "" } }), "env.A\\u{1b}: "),
        (json!({ "env": { "A": "\0" } }), "env.A: it has a NUL"),
        (json!({ "env": { "MAYFLY_X": "" } }), "env.MAYFLY_X: names that start"),
        (json!({ "secrets": ["key"] }), "secrets[0]: tenant local has no secret key; it has none"),
        (json!({ "allow": ["a.org"] }), "allow[0]: a.org is not allowed for tenant local"),
        (json!({ "allow": ["http://a.org"] }), "allow[0]: \"http://a.org\" has a port"),
        (json!({ "tunnels": ["model"] }), "tunnels[0]: tenant local has no tunnel model; it has none"),
        (json!({ "stdin": { "artifact": "sha256:00" } }), "stdin: this version"),
        (json!({ "files": { "a": text } }), "files.a: the path is not absolute"),
        (json!({ "files": { "/a/../b": text } }), "files./a/../b: the path leaves the sandbox"),
        (json!({ "files": { "/a//b": text } }), "files./a//b: the path has an empty part"),
        (json!({ "files": { "/job/": text } }), "files./job/: the path names a directory"),
        (json!({ "files": { "/": text } }), "files./: the path names a directory"),
        (json!({ "files": { "/proc/self/mem": text } }), "files./proc/self/mem: the path lies in /proc"),
        (json!({ "workdir": "job" }), "workdir: the path is not absolute"),
        (json!({ "workdir": "/proc/self/fd/7" }), "workdir: the path lies in /proc"),
        (json!({ "workdir": "/job/.." }), "workdir: the path leaves the sandbox"),
        (json!({ "workdir": deep }), "workdir: the path is too long"),
        (json!({ "artifacts": ["/job/*", "*.txt"] }), "artifacts[1]: the path is not absolute"),
        (json!({ "artifacts": ["/job/../*"] }), "artifacts[0]: the path leaves"),
        (json!({ "artifacts": vec!["/job"; 101] }), "artifacts: there are 101"),
        (json!({ "timeout": "0s" }), "timeout: no time"),
        (json!({ "timeout": "25h" }), "timeout: 90000s is above"),
        (json!({ "grace": "2m" }), "grace: 120s is above"),
        (json!({ "max_attempts": 0 }), "max_attempts: "),
        (json!({ "limits": { "memory": "1MiB" } }), "limits: memory of 1048576 bytes is below"),
        (json!({ "limits": { "cpus": 0 } }), "limits: cpus of 0/1000 is below"),
        (json!({ "limits": { "cpus": -1.0 } }), "limits.cpus: -1 is no number"),
        (json!({ "limits": { "cpus": 1e300 } }), "limits.cpus: "),
        (json!({ "limits": { "pids": 0 } }), "limits: pids of 0 is below"),
        (json!({ "limits": { "memory": "64MiB", "disk": "64MiB" } }), "limits: disk of"),
    ];
    for (fields, expected) in table {
        let refusal = admitted(&fields).expect_err(&fields.to_string());
        let said = refusal.to_string();
        assert!(said.starts_with(expected), "{expected:?} was expected, {said:?} was said");
        assert!(!refusal.hint().is_empty());
    }
}

#[test]
fn plain_paths_are_taken() {
    for path in ["/job/a", "/tmp/x.y/..z", "/dev/shm/a", "/procure", "/"] {
        assert!(admitted(&json!({ "workdir": path })).is_ok(), "{path}");
    }
}

#[test]
fn files_and_stdin_share_one_cap() {
    let half = "x".repeat(Policy::default().inline_bytes / 2 + 1);
    let one = json!({ "files": { "/job/a": { "text": half } } });
    assert!(admitted(&one).is_ok());
    let mut both = one;
    both["stdin"] = json!({ "text": half });
    let said = admitted(&both).unwrap_err().to_string();
    assert!(said.starts_with("files: with stdin they are"), "{said}");
}

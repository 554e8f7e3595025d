//! What producers get wrong: each hears why, nothing is lost and nothing is harmed.

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::Version;
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, script};

on_every_broker! {
    what_is_no_job_is_rejected_with_the_reason
}

fn what_is_no_job_is_rejected_with_the_reason(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "longest_timeout = '1m'\n") else { return };
    let mut host = cluster.host();
    let producer = cluster.producer(ReplyBy::Queue);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let meta =
        |text: &str| script("true", &json!({})).replacen('{', &format!("{{\"meta\":{text},"), 1).into_bytes();
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", b"".to_vec(), "EOF"),
        ("no-json", b"{ not json".to_vec(), "key must be a string"),
        ("not-utf-8", b"{\"schema_version\":1,\"image\":\"\xff\"}".to_vec(), "unicode"),
        ("a-list", b"[]".to_vec(), "invalid length"),
        ("deep", meta(&format!("{{\"a\":{deep}}}")), "recursion limit"),
        ("nan", meta("{\"a\":NaN}"), "expected value"),
        ("huge", meta("{\"a\":1e999}"), "number out of range"),
        ("twice", b"{\"schema_version\":1,\"schema_version\":1}".to_vec(), "duplicate field"),
        ("version", script("true", &json!({ "schema_version": 9 })).into_bytes(), "schema_version"),
        ("unknown", script("true", &json!({ "privileged": true })).into_bytes(), "privileged"),
        ("foreign", script("true", &json!({ "tenant": "other" })).into_bytes(), "tenant"),
        ("absurd", script("true", &json!({ "limits": { "cpus": 1e9 } })).into_bytes(), "limits.cpus"),
        ("long", script("true", &json!({ "timeout": "2m" })).into_bytes(), "timeout"),
        ("no-image", script("true", &json!({ "image": "no-such-image" })).into_bytes(), "no-such-image"),
    ];
    let sent: Vec<_> =
        table.into_iter().map(|(id, body, why)| (id, cluster.send(&producer, id, body), why)).collect();
    for (id, sent, expected) in sent {
        let result = cluster.answer(sent);
        assert_eq!((result.outcome, result.id.as_str()), (Outcome::Rejected, id));
        let why = result.error.unwrap().why;
        assert!(why.contains(expected), "{id} is rejected without {expected:?}: {why}");
    }
    // And the next one runs.
    assert_eq!(
        cluster.answer(cluster.send(&producer, "fine", script("true", &json!({})))).outcome,
        Outcome::Succeeded
    );
    host.stop().code(0);
    host.check();
}

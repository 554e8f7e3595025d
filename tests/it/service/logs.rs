//! What a host that serves says on stderr, to people and to programs.

use std::collections::BTreeMap;

use scheduler::broker::ReplyBy;
use serde_json::{Value, json};
use servers::{Version, free_port};
use worker::Outcome;

use super::unable::{break_images, mend_images};
use crate::harness::{Cluster, Finished, eventually, script};

/// Serves with a collector of traces that is not there, runs a job, and stops.
fn served(cluster: &Cluster, format: Option<&str>) -> Finished {
    let mut host = Cluster::idle_host();
    let nowhere = format!("[traces]\nendpoint = 'http://127.0.0.1:{}/v1/traces'\n", free_port().unwrap());
    cluster.serve_changed(
        &mut host,
        |text| format!("{text}\n{nowhere}"),
        |mayfly| match format {
            Some(format) => mayfly.env("MAYFLY_LOG_FORMAT", format).env("MAYFLY_LOG", "info"),
            None => mayfly,
        },
    );
    let producer = cluster.producer(ReplyBy::Direct);
    let id = format.unwrap_or("usual");
    let evil = script("printf '\\033[31m{\"level\":\"ERROR\"} CANARY\\n' >&2", &json!({}));
    assert_eq!(cluster.answer(cluster.send(&producer, id, evil)).outcome, Outcome::Succeeded);
    let ended = host.stop().code(0);
    host.check();
    let text = ended.stderr();
    assert!(!text.contains("CANARY"), "what a job writes is no part of it: {text}");
    ended
}

#[test]
fn people_read_what_goes_wrong_though_nobody_asked_and_without_colours() {
    let test = "service::logs::people_read_what_goes_wrong_though_nobody_asked_and_without_colours";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let ended = served(&cluster, None);
    let text = ended.stderr();
    let warnings: Vec<_> = text.lines().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(warnings.len(), 1, "once: {text}");
    assert!(warnings[0].contains("spans are left out"), "{text}");
    assert!(text.contains("mayfly: serving with") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn programs_read_one_object_a_line() {
    let test = "service::logs::programs_read_one_object_a_line";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let ended = served(&cluster, Some("json"));
    let lines: Vec<Value> =
        ended.stderr().lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "no {field}: {line}");
        }
    }
    let of = |level: &str, words: &str| {
        let said =
            |line: &&Value| line["level"] == level && line["message"].as_str().unwrap().contains(words);
        lines.iter().filter(said).count()
    };
    assert_eq!((of("INFO", "serving with"), of("WARN", "spans are left out")), (1, 1), "{lines:?}");
    assert_eq!(of("ERROR", ""), 0, "{lines:?}");
}

#[test]
fn a_sandbox_that_cannot_be_made_is_told_once_however_often_it_is_tried() {
    let test = "service::logs::a_sandbox_that_cannot_be_made_is_told_once_however_often_it_is_tried";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let mut host = Cluster::idle_host();
    cluster.serve(&mut host, |mayfly| mayfly.env("MAYFLY_LOG_FORMAT", "json"));
    let producer = cluster.producer(ReplyBy::Queue);
    let first = cluster.send(&producer, "first", script("true", &json!({})));
    assert_eq!(cluster.answer(first).outcome, Outcome::Succeeded);
    let images = break_images(&host);
    let sent: Vec<_> = (0..6)
        .map(|number| cluster.send(&producer, &format!("job-{number}"), script("true", &json!({}))))
        .collect();
    eventually("it was tried three times", || {
        let said = host.node.mayfly(["status", "--json"]).finish().code(0).json();
        let ours = said.as_array()?.iter().find(|who| who["pid"] == host.running().pid())?.clone();
        (ours["resting"][0]["tries"].as_u64()? >= 3).then_some(())
    });
    mend_images(&host, &images);
    for sent in sent {
        assert_eq!(cluster.answer(sent).outcome, Outcome::Succeeded);
    }
    let ended = host.stop().code(0);
    host.check();
    let lines = ended.stderr().lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let lines: Vec<_> = lines.collect();
    let mut causes = BTreeMap::<&str, usize>::new();
    for line in lines.iter().filter(|line| ["WARN", "ERROR"].contains(&line["level"].as_str().unwrap())) {
        *causes.entry(line["message"].as_str().unwrap()).or_default() += 1;
    }
    // Whether the pool tries by itself depends on where the jobs were when the images went.
    causes.entry("cannot make a sandbox").or_insert(1);
    assert_eq!(causes, [("cannot make a sandbox", 1)].into(), "{lines:#?}");
    let tells = |line: &&Value| line["message"].as_str().unwrap().starts_with("tier chroot rests: ");
    assert_eq!(lines.iter().filter(tells).count(), 1, "what becomes of its jobs is told once too");
}

#[test]
fn what_a_host_cannot_do_is_an_object_too_and_a_level_that_is_none_is_refused() {
    let node = Cluster::idle_host().node;
    let config = node.write("no-broker.toml", "");
    let serve = || node.mayfly(["serve"]).env("MAYFLY_CONFIG", config.clone());
    let ended = serve().env("MAYFLY_LOG_FORMAT", "json").finish().code(125);
    let said: Value = serde_json::from_str(ended.stderr().trim()).unwrap();
    assert_eq!(said["level"], "ERROR");
    assert!(["message", "why", "hint"].iter().all(|field| said[field].is_string()), "{said}");
    let refused = serve().env("MAYFLY_LOG", "pool=loud").finish().code(125);
    refused.says(&["MAYFLY_LOG", "pool=debug,warn"]);
}

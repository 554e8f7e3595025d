//! Traces of jobs, as a collector gets them that speaks OTLP over HTTP.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use scheduler::broker::{ReplyBy, Submission};
use serde_json::{Value, json};
use servers::{Version, free_port, get};
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, Host, eventually, script, submission};

on_every_broker!(a_job_is_one_tree_of_spans_below_its_producers);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What a collector does with spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Take,
    /// It takes them, and keeps none.
    Forget,
    Refuse,
    /// It never answers.
    Hang,
}

/// A collector on loopback.
pub(super) struct Collector {
    pub(super) endpoint: String,
    connections: Arc<AtomicUsize>,
    spans: Arc<Mutex<Vec<Value>>>,
    /// Header lines of all requests.
    headers: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    pub(super) fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let started = Self {
            endpoint: format!("http://{}/v1/traces", listener.local_addr().unwrap()),
            connections: Arc::default(),
            spans: Arc::default(),
            headers: Arc::default(),
        };
        let (connections, spans) = (Arc::clone(&started.connections), Arc::clone(&started.spans));
        let headers = Arc::clone(&started.headers);
        // It ends with the process of the tests.
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::SeqCst);
                let (lines, body) = request(&stream);
                headers.lock().unwrap().extend(lines);
                let status = match does {
                    Does::Take | Does::Forget => "200 OK",
                    Does::Refuse => "500 Internal Server Error",
                    Does::Hang => {
                        held.push(stream);
                        continue;
                    }
                };
                if does == Does::Take {
                    spans.lock().unwrap().extend(spans_of(&serde_json::from_slice(&body).unwrap()));
                }
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        });
        started
    }

    pub(super) fn was_asked(&self) -> bool {
        self.connections.load(Ordering::SeqCst) > 0
    }

    /// The spans of a job, as soon as its own is there: it comes last.
    fn job(&self, id: &str) -> Vec<Value> {
        eventually("the job's trace has come", || {
            let spans = self.spans.lock().unwrap();
            let job = spans.iter().find(|span| note(span, "mayfly.job") == Some(id))?;
            let same = |span: &&Value| span["traceId"] == job["traceId"];
            Some(spans.iter().filter(same).cloned().collect())
        })
    }
}

fn request(stream: &TcpStream) -> (Vec<String>, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_lowercase());
    }
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (lines, body)
}

fn spans_of(body: &Value) -> Vec<Value> {
    let scopes = body["resourceSpans"].as_array().unwrap().iter();
    let scopes = scopes.flat_map(|it| it["scopeSpans"].as_array().unwrap());
    scopes.flat_map(|it| it["spans"].as_array().unwrap().clone()).collect()
}

fn note<'a>(span: &'a Value, name: &str) -> Option<&'a str> {
    let notes = span["attributes"].as_array()?;
    notes.iter().find(|note| note["key"] == name)?["value"]["stringValue"].as_str()
}

fn at(span: &Value, field: &str) -> u128 {
    span[field].as_str().unwrap().parse().unwrap()
}

/// A host that sends its traces there, and the port where it shows itself.
fn serve(cluster: &Cluster, traces: &str) -> (Host, u16) {
    let (mut host, port) = (Cluster::idle_host(), free_port().unwrap());
    let here = format!("listen = '127.0.0.1:{port}'");
    let change =
        |text: &str| format!("{}\n[traces]\n{traces}", text.replace("listen = '127.0.0.1:0'", &here));
    cluster.serve_changed(&mut host, change, |it| it);
    (host, port)
}

fn a_job_is_one_tree_of_spans_below_its_producers(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let collector = Collector::start(Does::Take);
    let secret = Cluster::idle_host();
    let headers = secret.node.write("headers", "Authorization: Bearer 0123456789");
    let traces = format!("endpoint = '{}'\nheaders_file = '{}'", collector.endpoint, headers);
    let (mut host, _) = serve(&cluster, &traces);
    let producer = cluster.producer(ReplyBy::Direct);
    let body = script("echo x >/job/out", &json!({ "artifacts": ["/job/out"] }));
    let traced =
        Submission { traceparent: Some(format!("00-{TRACE}-{PARENT}-01")), ..submission("traced", &*body) };
    assert_eq!(cluster.answer(cluster.submit(&producer, traced)).outcome, Outcome::Succeeded);
    let malformed = Submission { traceparent: Some("00-evil".to_owned()), ..submission("malformed", &*body) };
    cluster.answer(cluster.submit(&producer, malformed));
    cluster.answer(cluster.send(&producer, "plain", body));

    let spans = collector.job("traced");
    let names: Vec<_> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["wait", "checkout", "stage", "run", "collect", "result", "job"]);
    let (job, parts) = spans.split_last().unwrap();
    assert_eq!((&job["traceId"], &job["parentSpanId"]), (&json!(TRACE), &json!(PARENT)));
    assert!(parts.iter().all(|part| part["parentSpanId"] == job["spanId"]), "{spans:?}");
    for (before, after) in parts.iter().zip(&parts[1..]) {
        assert!(at(before, "startTimeUnixNano") <= at(after, "startTimeUnixNano"), "{before} {after}");
    }
    assert!(at(&parts[5], "endTimeUnixNano") <= at(job, "endTimeUnixNano"));
    let said = ["mayfly.tenant", "mayfly.tier", "mayfly.outcome"].map(|name| note(job, name));
    assert_eq!(said, [Some(cluster.tenant.as_str()), Some("chroot"), Some("succeeded")]);

    for id in ["plain", "malformed"] {
        let spans = collector.job(id);
        assert_eq!((spans.len(), spans[6].get("parentSpanId")), (7, None), "a trace of its own");
        assert_ne!(spans[6]["traceId"], TRACE);
    }
    assert!(collector.headers.lock().unwrap().contains(&"authorization: bearer 0123456789".to_owned()));
    host.stop().code(0);
    host.check();
}

#[test]
fn jobs_do_not_hear_of_a_collector_that_takes_nothing() {
    let test = "service::traces::jobs_do_not_hear_of_a_collector_that_takes_nothing";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let refusing = Collector::start(Does::Refuse);
    let hanging = Collector::start(Does::Hang);
    let away = format!("http://127.0.0.1:{}/v1/traces", free_port().unwrap());
    for (name, endpoint) in
        [("refusing", &refusing.endpoint), ("hanging", &hanging.endpoint), ("away", &away)]
    {
        let (mut host, port) = serve(&cluster, &format!("endpoint = '{endpoint}'"));
        let producer = cluster.producer(ReplyBy::Direct);
        for number in 0..5 {
            let id = format!("{name}-{number}");
            let result = cluster.answer(cluster.send(&producer, &id, script("true", &json!({}))));
            assert_eq!(result.outcome, Outcome::Succeeded, "{result:?}");
        }
        let dropped = || {
            let (_, text) = get(port, "/metrics", "").ok()?;
            let series = "mayfly_trace_spans_total{result=\"dropped\"} ";
            let count: f64 = text.lines().find_map(|line| line.strip_prefix(series))?.parse().unwrap();
            (count > 0.0).then_some(())
        };
        eventually("what was dropped is counted", dropped);
        host.stop().code(0);
        host.check();
    }
    assert!(hanging.was_asked());
}

#[test]
fn without_an_endpoint_nothing_is_sent() {
    let test = "service::traces::without_an_endpoint_nothing_is_sent";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let collector = Collector::start(Does::Take);
    let mut host = Cluster::idle_host();
    // What other programs take their collector from.
    let told =
        |mayfly: crate::harness::Mayfly| mayfly.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint);
    cluster.serve(&mut host, told);
    let producer = cluster.producer(ReplyBy::Direct);
    let traced = Submission {
        traceparent: Some(format!("00-{TRACE}-{PARENT}-01")),
        ..submission("traced", script("true", &json!({})))
    };
    assert_eq!(cluster.answer(cluster.submit(&producer, traced)).outcome, Outcome::Succeeded);
    host.stop().code(0);
    host.check();
    assert!(!collector.was_asked());
}

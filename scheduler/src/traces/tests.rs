//! Jobs that go through a queue of which the test holds both ends, and the spans that come of it.

use pool::{Tier, Want};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use worker::{Assignment, Cancelled, Ended, ErrorReport, Progress, cancellation};

use super::*;
use crate::{
    admit::{Origin, admit},
    key::BodyDigest,
    metrics::Known,
    policy::Policy,
    queue::{Backlog, Keeping, Pulled, Queue, QueueError, Requeue},
    runner::Runner,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const QUEUED: Duration = Duration::from_secs(90);

/// Gives one job, by a producer with this trace, and runs it as it was told to.
struct Puppet(Option<&'static str>);

impl Queue for Puppet {
    type Delivery = ();

    async fn pull(&self) -> Result<Option<Pulled<()>>, QueueError> {
        let (key, body) = (JobKey::new("acme", "one"), BodyDigest::of(&[]));
        Ok(Some(Pulled { delivery: (), key, body, job: Ok(job()), tier: Some(Tier::Docker), queued: QUEUED }))
    }

    fn traceparent(&self, (): &()) -> Option<TraceParent> {
        TraceParent::read(self.0?, None)
    }

    async fn keep(&self, (): &mut (), _: Duration) -> Keeping {
        Keeping::Kept
    }

    async fn answer(&self, (): &(), _: &JobResult, _: u64) -> Result<(), QueueError> {
        Ok(())
    }

    async fn ack(&self, (): ()) -> Result<(), QueueError> {
        Ok(())
    }

    async fn requeue(&self, (): (), _: Requeue) -> Result<(), QueueError> {
        Ok(())
    }

    fn rest(&self, _: Tier, _: bool) {}

    fn backlog(&self) -> Backlog {
        Backlog::default()
    }
}

impl Runner for Puppet {
    async fn work(&self, _: &Assignment, _: Progress, _: Cancelled) -> Ended {
        Ended::without_sandbox(result())
    }

    async fn try_one(&self, _: &Want) -> Result<(), ErrorReport> {
        Ok(())
    }

    fn expect(&self, _: &Want, _: usize) {}

    fn standing(&self) -> Vec<pool::KindStatus> {
        Vec::new()
    }
}

fn job() -> worker::Job {
    let text = r#"{ "schema_version": 1, "image": "base", "tier": "docker", "command": ["true"] }"#;
    serde_json::from_str(text).unwrap()
}

fn result() -> JobResult {
    let phases = Phases { checkout_us: 100, stage_us: 200, run_us: 300, ..Phases::default() };
    let source = Some(Source::Warm);
    let report = ErrorReport::new("", "", "");
    JobResult {
        phases,
        source,
        tier: Some(Tier::Docker),
        ..JobResult::never_started("one", "acme", Outcome::Failed, report)
    }
}

/// Traces that stay where they are, for so many jobs.
fn kept(waiting: usize, metrics: Option<Arc<Metrics>>) -> (Arc<Traces>, mpsc::Receiver<Vec<Span>>) {
    let (sender, taken) = mpsc::channel(waiting);
    let left_out = Arc::new(LeftOut::new(metrics));
    (Arc::new(Traces { tries: Mutex::default(), sender, left_out, share: 1.0 }), taken)
}

/// Takes one job to its result, with so many runs.
async fn carry_out(traces: &Arc<Traces>, parent: Option<&'static str>, runs: usize) {
    let queue = Traced::new(Puppet(parent), Some(Arc::clone(traces)));
    let runner = Traced::new(Puppet(None), Some(Arc::clone(traces)));
    let mut pulled = queue.pull().await.unwrap().unwrap();
    let origin = Origin { id: "one".into(), tenant: "acme".into(), attempt: 1, queued: QUEUED };
    let assignment = admit(job(), origin, &Policy::default()).unwrap();
    queue.keep(&mut pulled.delivery, Duration::ZERO).await;
    for _ in 0..runs {
        let (_canceller, cancelled) = cancellation();
        let _ = runner.work(&assignment, Progress::default(), cancelled).await.clean().await;
    }
    queue.answer(&pulled.delivery, &result(), 1).await.unwrap();
    queue.ack(pulled.delivery).await.unwrap();
}

fn number(span: &Value, field: &str) -> u128 {
    span[field].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_jobs_spans_are_one_tree_below_its_producers_in_the_order_of_its_life() {
    let (traces, mut taken) = kept(1, None);
    carry_out(&traces, Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), 2).await;
    let spans: Vec<Value> = taken.try_recv().unwrap().iter().map(Span::json).collect();
    let names: Vec<_> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["wait", "checkout", "stage", "run", "checkout", "stage", "run", "result", "job"],
        "each of the two sandboxes"
    );
    let (job, parts) = spans.split_last().unwrap();
    assert_eq!(
        (job["traceId"].as_str(), job["parentSpanId"].as_str()),
        (Some(TRACE), Some("00f067aa0ba902b7"))
    );
    assert_eq!((&job["kind"], &job["status"]), (&json!(CONSUMER), &json!({ "code": 2 })));
    assert_eq!(
        number(job, "endTimeUnixNano") / 1_000_000_000 - number(job, "startTimeUnixNano") / 1_000_000_000,
        90
    );
    for part in parts {
        assert_eq!((&part["traceId"], &part["parentSpanId"]), (&job["traceId"], &job["spanId"]), "{part}");
    }
    assert!(parts[1..4].is_sorted_by_key(|span| number(span, "startTimeUnixNano")));
    assert_eq!(number(&parts[1], "endTimeUnixNano"), number(&parts[2], "startTimeUnixNano"));
    let notes = job["attributes"].to_string();
    for value in ["acme", "failed", "docker", "warm"] {
        assert!(notes.contains(value), "no {value} in {notes}");
    }
    assert!(traces.with_tries(|tries| tries.is_empty()), "nothing is kept of a job that is over");
}

const CONSUMER: u8 = 5;

#[tokio::test]
async fn a_job_without_a_trace_begins_one_and_one_that_is_not_recorded_none() {
    let (traces, mut taken) = kept(2, None);
    carry_out(&traces, None, 1).await;
    let root = taken.try_recv().unwrap().last().unwrap().json();
    assert_eq!(root.get("parentSpanId"), None);
    assert_eq!(root["traceId"].as_str().unwrap().len(), 32);
    carry_out(&traces, Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"), 1).await;
    assert!(taken.try_recv().is_err());
    assert!(traces.with_tries(|tries| tries.is_empty()));
}

#[tokio::test]
async fn what_does_not_fit_is_dropped_and_counted() {
    let metrics = Arc::new(Metrics::new(Known::default()));
    let (traces, _taken) = kept(1, Some(Arc::clone(&metrics)));
    carry_out(&traces, None, 1).await;
    carry_out(&traces, None, 1).await;
    let text = metrics.text(None);
    assert!(text.contains("mayfly_trace_spans_total{result=\"dropped\"} 6"), "{text}");
}

/// Answers every request with this status.
async fn collector(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // The last bytes of an export's JSON.
            while !request.ends_with(b"}]}]}]}") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    endpoint
}

#[tokio::test]
async fn a_collector_that_takes_none_costs_spans_and_nothing_else() {
    for (endpoint, result) in [
        (collector("200 OK").await, "sent"),
        (collector("500 Internal Server Error").await, "dropped"),
        ("http://127.0.0.1:1/v1/traces".to_owned(), "dropped"),
    ] {
        let metrics = Arc::new(Metrics::new(Known::default()));
        let (host, version) = ("here".to_owned(), "1".to_owned());
        let settings =
            TraceSettings { endpoint, headers: TraceHeaders::default(), share: 1.0, host, version };
        let (traces, sending) = Traces::open(settings, Some(Arc::clone(&metrics))).unwrap();
        carry_out(&traces, None, 1).await;
        drop(traces);
        sending.end(Duration::from_secs(20)).await;
        let text = metrics.text(None);
        assert!(text.contains(&format!("mayfly_trace_spans_total{{result=\"{result}\"}} 6")), "{text}");
    }
}

#[tokio::test]
async fn what_the_collector_has_not_taken_at_the_end_is_counted() {
    // It accepts, and nobody answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let metrics = Arc::new(Metrics::new(Known::default()));
    let (host, version) = ("here".to_owned(), "1".to_owned());
    let settings = TraceSettings { endpoint, headers: TraceHeaders::default(), share: 1.0, host, version };
    let (traces, sending) = Traces::open(settings, Some(Arc::clone(&metrics))).unwrap();
    carry_out(&traces, None, 1).await;
    drop(traces);
    sending.end(Duration::ZERO).await;
    let text = metrics.text(None);
    assert!(text.contains("mayfly_trace_spans_total{result=\"dropped\"} 6"), "{text}");
}

#[test]
fn headers_are_read_line_by_line_and_not_shown() {
    let headers = TraceHeaders::read("Authorization: Bearer secret\n\nX-Scope: 1\n").unwrap();
    assert_eq!(format!("{headers:?}"), "2 headers");
    assert_eq!(TraceHeaders::read("a: b\nno header\n").unwrap_err(), 2);
}

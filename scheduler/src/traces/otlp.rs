//! Spans as OTLP has them, in JSON, and the collector that takes them.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::{
    Client, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};
use serde_json::{Value, json};

use super::context::{Context, id};
use crate::live::text;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Letters of a value.
const LONGEST: usize = 256;
/// The kinds of spans and the state of one that failed, by their numbers in OTLP.
const INTERNAL: u8 = 1;
const CONSUMER: u8 = 5;
const ERROR: u8 = 2;

/// Where traces go.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The collector's address for traces: `http://…/v1/traces`.
    pub endpoint: String,
    /// What goes with each request.
    pub headers: TraceHeaders,
    /// The share of the traces that begin here which are recorded, from 0 to 1.
    pub share: f64,
    /// The name of this host.
    pub host: String,
    /// The version of mayfly.
    pub version: String,
}

/// Headers for the collector. They may hold a token, and are not shown.
#[derive(Clone, Default)]
pub struct TraceHeaders(HeaderMap);

impl fmt::Debug for TraceHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} headers", self.0.len())
    }
}

impl TraceHeaders {
    /// Reads `Name: value`, one a line. `Err`: the number of the line that is none.
    pub fn read(text: &str) -> Result<Self, usize> {
        let mut headers = HeaderMap::new();
        for (number, line) in (1_usize..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let header = line.split_once(':').and_then(|(name, value)| {
                let mut value = HeaderValue::from_str(value.trim()).ok()?;
                value.set_sensitive(true);
                Some((name.trim().parse::<HeaderName>().ok()?, value))
            });
            let (name, value) = header.ok_or(number)?;
            headers.insert(name, value);
        }
        Ok(Self(headers))
    }
}

/// A part of a trace.
#[derive(Debug, Clone)]
pub(super) struct Span {
    trace: u128,
    state: Option<String>,
    id: u64,
    parent: Option<u64>,
    pub(super) name: &'static str,
    kind: u8,
    from: SystemTime,
    to: SystemTime,
    notes: Vec<(&'static str, Value)>,
    pub(super) failed: bool,
}

impl Span {
    /// The whole of a job.
    pub(super) fn root(of: &Context, name: &'static str, (from, to): (SystemTime, SystemTime)) -> Self {
        let Context { trace, parent, span, state } = of.clone();
        Self {
            trace,
            state,
            id: span,
            parent,
            name,
            kind: CONSUMER,
            from,
            to,
            notes: Vec::new(),
            failed: false,
        }
    }

    /// A part of it.
    pub(super) fn child(of: &Context, name: &'static str, when: (SystemTime, SystemTime)) -> Self {
        // One without an id is refused by the collector, and no other.
        let (id, parent) = (id().unwrap_or_default(), Some(of.span));
        Self { id, parent, kind: INTERNAL, ..Self::root(of, name, when) }
    }

    /// Says something of it.
    pub(super) fn note(&mut self, name: &'static str, value: Option<&str>) {
        let value = value.map(|value| json!({ "stringValue": text::line(value, LONGEST) }));
        self.notes.extend(value.map(|value| (name, value)));
    }

    /// Says a number of it. OTLP has them as text.
    pub(super) fn count(&mut self, name: &'static str, value: i64) {
        self.notes.push((name, json!({ "intValue": value.to_string() })));
    }

    pub(super) fn json(&self) -> Value {
        let nanos = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        let mut span = json!({
            "traceId": format!("{:032x}", self.trace),
            "spanId": format!("{:016x}", self.id),
            "name": self.name,
            "kind": self.kind,
            "startTimeUnixNano": nanos(self.from),
            "endTimeUnixNano": nanos(self.to.max(self.from)),
            "attributes": self.notes.iter().map(|(name, value)| attribute(name, value)).collect::<Vec<_>>(),
        });
        if let Some(parent) = self.parent {
            span["parentSpanId"] = json!(format!("{parent:016x}"));
        }
        if let Some(state) = &self.state {
            span["traceState"] = json!(state);
        }
        if self.failed {
            span["status"] = json!({ "code": ERROR });
        }
        span
    }
}

fn attribute(name: &str, value: &Value) -> Value {
    json!({ "key": name, "value": value })
}

/// Where spans go.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client,
    endpoint: Url,
    headers: HeaderMap,
    resource: Value,
}

impl Collector {
    pub(super) fn new(settings: TraceSettings) -> Result<Self, String> {
        let TraceSettings { endpoint, headers, host, version, .. } = settings;
        let endpoint: Url = endpoint.parse().map_err(|error| format!("{endpoint}: {error}"))?;
        // The same provider as everywhere; whoever is first decides.
        let _ = rustls::crypto::CryptoProvider::install_default(rustls::crypto::ring::default_provider());
        // A redirect would carry the headers to who knows whom.
        let client = Client::builder().timeout(PATIENCE).no_proxy().redirect(Policy::none()).build();
        let client = client.map_err(|error| worker::causes(&error))?;
        let names = [("service.name", "mayfly"), ("service.version", &version), ("host.name", &host)];
        let names = names.map(|(name, value)| attribute(name, &json!({ "stringValue": value })));
        Ok(Self { client, endpoint, headers: headers.0, resource: json!({ "attributes": names }) })
    }

    pub(super) async fn send(&self, spans: &[Span]) -> Result<(), String> {
        let spans: Vec<_> = spans.iter().map(Span::json).collect();
        let scope = json!({ "scope": { "name": "mayfly" }, "spans": spans });
        let body = json!({ "resourceSpans": [{ "resource": self.resource, "scopeSpans": [scope] }] });
        let post = self.client.post(self.endpoint.clone()).headers(self.headers.clone());
        let post = post.header(CONTENT_TYPE, "application/json").body(body.to_string());
        let answer = post.send().await.map_err(|error| worker::causes(&error))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answers {status}")),
        }
    }
}

//! One trace of each job of the service: from its producer's `traceparent` through its wait, its sandbox, its run and its
//! result, sent to an OpenTelemetry collector (OTLP over HTTP, as JSON).
//!
//! - `TraceParent`: the producer's trace, read and checked.
//! - `context`: which trace a job's spans belong to.
//! - [`Traced`]: a queue and a runner that take the times. The dispatcher knows of nothing.
//! - `otlp`: the form in which spans are sent.
//! - `sending`: the task that sends them.
//!
//! It holds nothing up: what cannot be sent in time is left out and counted, and where nobody asks for traces nothing is
//! noted. Names and times leave the host, and never what a job was given or what it wrote.

mod context;
mod otlp;
mod sending;
#[cfg(test)]
mod tests;
mod traced;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use pool::{Source, Tier};
use tokio::sync::mpsc;
use worker::{JobResult, Outcome, Phases};

pub(crate) use self::context::TraceParent;
use self::{
    context::Context,
    otlp::{Collector, Span},
    sending::LeftOut,
};
pub use self::{
    otlp::{TraceHeaders, TraceSettings},
    sending::Sending,
    traced::{Followed, Traced},
};
use crate::{key::JobKey, metrics::Metrics};

/// Jobs whose spans wait to be sent.
const WAITING: usize = 2048;

/// The traces of one process.
#[derive(Debug)]
pub struct Traces {
    /// Of the jobs that have a sandbox now: what was in which when. A job's entry is its delivery's, and goes with it.
    tries: Mutex<HashMap<JobKey, Vec<Try>>>,
    sender: mpsc::Sender<Vec<Span>>,
    left_out: Arc<LeftOut>,
    /// The share of the traces that begin here which are recorded.
    share: f64,
}

/// A job in one sandbox, or in none that could be made.
#[derive(Debug)]
struct Try {
    began: SystemTime,
    ended: SystemTime,
    phases: Phases,
    source: Option<Source>,
    generation: Option<String>,
}

impl Try {
    /// One that has just ended so.
    fn new(began: SystemTime, result: &JobResult) -> Self {
        let (source, generation) = (result.source, result.generation.clone());
        Self { began, ended: SystemTime::now(), phases: result.phases, source, generation }
    }
}

impl Traces {
    /// Begins. To be called inside a tokio runtime. `Err`: it cannot speak HTTP, and why.
    pub fn open(
        settings: TraceSettings,
        metrics: Option<Arc<Metrics>>,
    ) -> Result<(Arc<Self>, Sending), String> {
        let share = settings.share;
        let collector = Collector::new(settings)?;
        let (sender, taken) = mpsc::channel(WAITING);
        let left_out = Arc::new(LeftOut::new(metrics));
        let sending = Sending::begin(collector, taken, Arc::clone(&left_out));
        Ok((Arc::new(Self { tries: Mutex::default(), sender, left_out, share }), sending))
    }

    fn with_tries<T>(&self, act: impl FnOnce(&mut HashMap<JobKey, Vec<Try>>) -> T) -> T {
        // Nothing panics between two halves of a change.
        act(&mut self.tries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends them by and by, or leaves them out.
    fn send(&self, spans: Vec<Span>) {
        self.left_out.waits(spans.len());
        if let Err(error) = self.sender.try_send(spans) {
            self.left_out.full(error.into_inner().len());
        }
    }
}

/// All spans of a job that has its result, the job's own last.
fn spans(
    of: &Context,
    (sent, pulled): (SystemTime, SystemTime),
    tries: &[Try],
    (told_from, now): (SystemTime, SystemTime),
    (result, told): (&JobResult, bool),
) -> Vec<Span> {
    let mut spans = vec![Span::child(of, "wait", (sent, pulled))];
    for (number, tried) in (1_i64..).zip(tries) {
        let phases = &tried.phases;
        let mut at = tried.began;
        for (name, us) in [
            ("checkout", phases.checkout_us),
            ("stage", phases.stage_us),
            ("run", phases.run_us),
            ("collect", phases.collect_us),
        ] {
            // A phase that was not reached took no time.
            let end = at.checked_add(Duration::from_micros(us)).unwrap_or(at);
            if us > 0 {
                let mut span = Span::child(of, name, (at, end));
                if name == "checkout" {
                    span.count("mayfly.sandbox", number);
                    span.note("mayfly.source", tried.source.map(source));
                    span.note("mayfly.generation", tried.generation.as_deref());
                }
                spans.push(span);
            }
            at = end;
        }
    }
    // From the end of its last sandbox: it is stored before it is told.
    let from = tries.last().map_or(told_from, |last| last.ended);
    let mut last = Span::child(of, "result", (from, now));
    last.failed = !told;
    spans.push(last);
    let mut whole = Span::root(of, "job", (sent, now));
    for (name, value) in [
        ("mayfly.job", Some(result.id.as_str())),
        ("mayfly.tenant", Some(result.tenant.as_str())),
        ("mayfly.outcome", Some(result.outcome.name())),
        ("mayfly.tier", result.tier.map(Tier::name)),
        ("mayfly.image", result.image.as_deref()),
        ("mayfly.source", result.source.map(source)),
    ] {
        whole.note(name, value);
    }
    whole.count("mayfly.attempt", i64::from(result.attempt));
    whole.failed = !matches!(result.outcome, Outcome::Succeeded | Outcome::Cancelled);
    spans.push(whole);
    spans
}

fn source(of: Source) -> &'static str {
    match of {
        Source::Warm => "warm",
        Source::Cold => "cold",
    }
}

//! The task that sends spans, and the count of those that it does not. It alone speaks to the collector, so a slow one
//! holds up nothing but itself: what does not fit into the queue meanwhile is left out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::otlp::{Collector, Span};
use crate::metrics::Metrics;

/// Jobs whose spans go together, and how long the first of them waits for others.
const TOGETHER: usize = 128;
const GATHER: Duration = Duration::from_secs(1);

/// What sends them, until all that were taken are sent and the last [`Traces`](super::Traces) is gone.
#[derive(Debug)]
pub struct Sending {
    task: JoinHandle<()>,
    left_out: Arc<LeftOut>,
}

impl Sending {
    pub(super) fn begin(
        collector: Collector,
        taken: mpsc::Receiver<Vec<Span>>,
        left_out: Arc<LeftOut>,
    ) -> Self {
        Self { task: tokio::spawn(send(collector, taken, Arc::clone(&left_out))), left_out }
    }

    /// Waits for the last of them, for so long at most.
    pub async fn end(mut self, within: Duration) {
        if timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            // Until then it counts what it sends.
            let _ = self.task.await;
            let spans = self.left_out.rest();
            tracing::warn!(
                spans,
                ?within,
                "the collector did not take the last spans in time: they are left out"
            );
        }
    }
}

/// Spans that nobody gets. That there are such is said once, until some are taken again.
#[derive(Debug)]
pub(super) struct LeftOut {
    metrics: Option<Arc<Metrics>>,
    said: AtomicBool,
    /// Spans that are neither sent nor left out yet.
    waiting: AtomicUsize,
}

impl LeftOut {
    pub(super) fn new(metrics: Option<Arc<Metrics>>) -> Self {
        Self { metrics, said: AtomicBool::new(false), waiting: AtomicUsize::new(0) }
    }

    /// They are to be sent.
    pub(super) fn waits(&self, spans: usize) {
        self.waiting.fetch_add(spans, Ordering::Relaxed);
    }

    /// All that still wait are left out.
    fn rest(&self) -> usize {
        let spans = self.waiting.load(Ordering::Relaxed);
        self.count("dropped", spans);
        spans
    }

    fn count(&self, result: &str, spans: usize) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            metrics.spans(result, spans);
        }
    }

    /// Too many wait already.
    pub(super) fn full(&self, spans: usize) {
        self.count("dropped", spans);
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!("the collector of traces is too slow: spans are left out");
        }
    }

    fn refused(&self, spans: usize, why: &str) {
        self.count("dropped", spans);
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(why, "the collector takes no traces: spans are left out");
        }
    }

    fn taken(&self, spans: usize) {
        self.count("sent", spans);
        if self.said.swap(false, Ordering::Relaxed) {
            tracing::info!("the collector takes traces again");
        }
    }
}

/// Sends what comes, many at once.
async fn send(collector: Collector, mut taken: mpsc::Receiver<Vec<Span>>, left_out: Arc<LeftOut>) {
    while let Some(first) = taken.recv().await {
        let (mut batch, until) = (first, Instant::now() + GATHER);
        for _ in 1..TOGETHER {
            tokio::select! {
                more = taken.recv() => match more {
                    Some(more) => batch.extend(more),
                    None => break,
                },
                () = sleep_until(until) => break,
            }
        }
        match collector.send(&batch).await {
            Ok(()) => left_out.taken(batch.len()),
            Err(why) => left_out.refused(batch.len(), &why),
        }
    }
}

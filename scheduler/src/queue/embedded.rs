//! The queue of one batch: the lines of its jobs file, in their order.
//!
//! A line stays in the journal until it is acknowledged. The file itself is read when a line is pulled, so that
//! neither memory nor the journal grows with what the jobs hold.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pool::{Tier, Want};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use worker::JobResult;

use super::{Backlog, Keeping, Pulled, Queue, QueueError, Requeue};
use crate::{
    failpoint,
    intake::JobsFile,
    journal::{Change, Journal, JournalError, LINES, Line},
    key::{BodyDigest, JobKey},
};

/// Lines that are fetched from the journal at once.
const FETCH: usize = 256;
/// Lines that may be given away before the next flush: after a power loss as many may count as started that were not.
const AHEAD: u64 = 64;

/// The embedded queue.
#[derive(Debug)]
pub(crate) struct EmbeddedQueue {
    journal: Arc<Journal>,
    file: JobsFile,
    opened: Instant,
    lines: Mutex<Lines>,
    changed: Notify,
    /// One puller at a time extends the horizon.
    reserving: tokio::sync::Mutex<()>,
}

/// Where the queue stands.
#[derive(Debug)]
struct Lines {
    /// The next ones, in order.
    window: VecDeque<(u64, Line)>,
    /// The last one that was fetched.
    fetched: u64,
    exhausted: bool,
    /// Lines that came back, and when they may go again.
    again: VecDeque<(Instant, u64, Line)>,
    /// Lines in somebody's hands.
    out: HashMap<u64, Line>,
    /// No line after this one may be given away yet.
    horizon: u64,
    /// Lines that wait, by kind.
    waiting: HashMap<Option<u32>, u64>,
    /// The same for the backlog's readers.
    kinds: HashMap<u32, Want>,
}

/// One line in the hands of who pulled it. Dropped without a word it is delivered again by the next process.
pub(crate) struct Delivery {
    number: u64,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.number)
    }
}

/// What there is to pull now.
enum Next {
    Line(u64, Line),
    /// Not before the horizon has moved at least here.
    Beyond(u64),
    /// Something may come back.
    Later(Option<Instant>),
    Nothing,
}

impl EmbeddedQueue {
    /// The lines that are left, `waiting` of each kind.
    pub(crate) fn new(
        journal: Arc<Journal>,
        file: JobsFile,
        kinds: HashMap<u32, Want>,
        waiting: HashMap<Option<u32>, u64>,
    ) -> Self {
        let lines = Lines {
            window: VecDeque::new(),
            fetched: 0,
            exhausted: false,
            again: VecDeque::new(),
            out: HashMap::new(),
            horizon: 0,
            waiting,
            kinds,
        };
        Self {
            journal,
            file,
            opened: Instant::now(),
            lines: Mutex::new(lines),
            changed: Notify::new(),
            reserving: tokio::sync::Mutex::new(()),
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing panics between two halves of a change.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Result<Next, JournalError> {
        let mut lines = self.lines();
        let now = Instant::now();
        if lines.again.front().is_some_and(|(at, ..)| *at <= now)
            && let Some((_, number, line)) = lines.again.pop_front()
        {
            lines.give(number, &line);
            return Ok(Next::Line(number, line));
        }
        if lines.window.is_empty() && !lines.exhausted {
            let fetched = self.fetch(lines.fetched)?;
            lines.exhausted = fetched.len() < FETCH;
            lines.fetched = fetched.back().map_or(lines.fetched, |(number, _)| *number);
            lines.window = fetched;
        }
        let horizon = lines.horizon;
        match lines.window.pop_front() {
            Some((number, line)) if number <= horizon => {
                lines.give(number, &line);
                Ok(Next::Line(number, line))
            }
            Some((number, line)) => {
                lines.window.push_front((number, line));
                Ok(Next::Beyond(number))
            }
            None => match lines.again.front() {
                Some((at, ..)) => Ok(Next::Later(Some(*at))),
                None if lines.out.is_empty() => Ok(Next::Nothing),
                None => Ok(Next::Later(None)),
            },
        }
    }

    fn fetch(&self, after: u64) -> Result<VecDeque<(u64, Line)>, JournalError> {
        self.journal.read(|read| {
            let table = read.open_table(LINES)?;
            let mut fetched = VecDeque::new();
            for row in table.range(after + 1..)?.take(FETCH) {
                let (number, row) = row?;
                fetched.push_back((number.value(), Line::from_row(row.value())));
            }
            Ok(fetched)
        })
    }

    /// Makes durable that lines up to well beyond `number` may have been given away.
    async fn reserve(&self, number: u64) -> Result<(), QueueError> {
        let _one = self.reserving.lock().await;
        if self.lines().horizon >= number {
            return Ok(());
        }
        let upto = number + AHEAD;
        let (told, answer) = oneshot::channel();
        self.journal.ask(Change::Reserve { upto, told });
        match answer.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(QueueError::Failed(Box::new(error))),
            Err(_) => return Err(failed(JournalError::Given("its writer has ended".to_owned()))),
        }
        self.lines().horizon = upto;
        Ok(())
    }

    /// Moves the horizon before anybody has to wait for it.
    fn reserve_ahead(self: &Arc<Self>, number: u64) {
        let horizon = self.lines().horizon;
        if number + AHEAD / 2 >= horizon {
            let queue = Arc::clone(self);
            tokio::spawn(async move {
                // If it fails, whoever comes to the horizon hears of it.
                let _ = queue.reserve(horizon + 1).await;
            });
        }
    }

    fn pulled(self: &Arc<Self>, number: u64, line: &Line) -> Result<Pulled<Delivery>, QueueError> {
        self.reserve_ahead(number);
        let key: JobKey = line.key.parse().map_err(|error| QueueError::Failed(Box::new(error)))?;
        let (body, job) = if let Some(first) = line.twin {
            (BodyDigest::of(&[]), Err(self.file.twin(number, first)))
        } else {
            let read = self.file.read(number, line.place);
            read.map_err(|error| QueueError::Failed(Box::new(error)))?
        };
        let queued = self.opened.elapsed();
        let job = job.map_err(Into::into);
        Ok(Pulled { delivery: Delivery { number }, key, body, job, tier: None, queued })
    }
}

impl Lines {
    fn give(&mut self, number: u64, line: &Line) {
        if let Some(waiting) = self.waiting.get_mut(&line.kind) {
            *waiting = waiting.saturating_sub(1);
        }
        self.out.insert(number, line.clone());
    }
}

impl Queue for Arc<EmbeddedQueue> {
    type Delivery = Delivery;

    async fn pull(&self) -> Result<Option<Pulled<Delivery>>, QueueError> {
        loop {
            // Registered before the look, so that what comes back in between is not missed.
            let changed = self.changed.notified();
            match self.next().map_err(failed)? {
                Next::Line(number, line) => return self.pulled(number, &line).map(Some),
                Next::Beyond(number) => self.reserve(number).await?,
                Next::Later(Some(at)) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
                Next::Later(None) => changed.await,
                Next::Nothing => {
                    // All who wait see it.
                    self.changed.notify_waiters();
                    return Ok(None);
                }
            }
        }
    }

    /// A line stays in the journal for however long.
    async fn keep(&self, _: &mut Delivery, _: Duration) -> Keeping {
        Keeping::Kept
    }

    /// The results file, which the store writes, is the answer.
    async fn answer(&self, _: &Delivery, _: &JobResult, _: u64) -> Result<(), QueueError> {
        Ok(())
    }

    async fn ack(&self, delivery: Delivery) -> Result<(), QueueError> {
        self.journal.ask(Change::Ack(delivery.number));
        self.lines().out.remove(&delivery.number);
        self.changed.notify_waiters();
        failpoint::pass("acked");
        Ok(())
    }

    async fn requeue(&self, delivery: Delivery, why: Requeue) -> Result<(), QueueError> {
        let pause = match why {
            Requeue::Stopping | Requeue::Unable | Requeue::Elsewhere(_) => Duration::ZERO,
            Requeue::Later(pause) => pause,
        };
        let mut lines = self.lines();
        if let Some(line) = lines.out.remove(&delivery.number) {
            *lines.waiting.entry(line.kind).or_default() += 1;
            let at = Instant::now() + pause;
            let place = lines.again.partition_point(|(other, ..)| *other <= at);
            lines.again.insert(place, (at, delivery.number, line));
        }
        drop(lines);
        self.changed.notify_waiters();
        Ok(())
    }

    /// There are no others.
    fn rest(&self, _: Tier, _: bool) {}

    fn backlog(&self) -> Backlog {
        let lines = self.lines();
        let kinds = lines.kinds.iter().map(|(kind, want)| {
            let waiting = lines.waiting.get(&Some(*kind)).copied().unwrap_or(0);
            (want.clone(), waiting)
        });
        Backlog { jobs: lines.waiting.values().sum(), kinds: kinds.collect() }
    }
}

fn failed(error: JournalError) -> QueueError {
    QueueError::Failed(Box::new(error))
}

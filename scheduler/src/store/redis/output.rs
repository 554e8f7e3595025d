//! What a job writes, shown while it runs: a stream for each job that keeps the newest part.
//!
//! Showing never holds a job back. A writer takes everything at once; what Redis does not take in time is left out, the
//! oldest first, so that the last a job wrote is seen even if it writes no more. Each piece says where in the output it
//! belongs, so a reader sees what is missing, for whichever reason.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use redis::Pipeline;
use tokio::{io::AsyncWrite, sync::mpsc, time::sleep};
use worker::Live;

use super::{
    RedisStore,
    link::{Link, passes},
    millis,
};
use crate::key::JobKey;

/// Pieces of one job's output that are kept, about.
const PIECES: usize = 1024;
/// Bytes of one piece.
const PIECE: usize = 4096;
/// Bytes that may wait for Redis: of one job, and of all.
const WAITING_OF_ONE: usize = 1024 * 1024;
const WAITING_OF_ALL: usize = 16 * 1024 * 1024;
/// Bytes in one go, and of one job in it: who floods holds up nobody else.
const BATCH: usize = 256 * 1024;
const SHARE: usize = 64 * 1024;
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 64;
/// What is written shortly after one another goes together.
const GATHER: Duration = Duration::from_millis(20);
/// How long a job may be silent before what it wrote is no more shown.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// How long it is shown after the job's end; then its result tells.
const KEPT_AFTER: Duration = Duration::from_secs(10 * 60);

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Stdout => "o",
            Self::Stderr => "e",
        }
    }
}

/// Shows what one attempt writes, until this is dropped.
#[derive(Debug)]
pub struct LiveOutput {
    feed: Arc<Feed>,
}

/// One attempt's way to the pump.
#[derive(Debug)]
struct Feed {
    key: String,
    attempt: u32,
    waiting: Mutex<Waiting>,
    pump: mpsc::UnboundedSender<Arc<Feed>>,
    /// What waits of all attempts.
    all: Arc<AtomicUsize>,
}

/// What Redis has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    cost: usize,
    /// The pump knows that something waits.
    is_in_line: bool,
    has_ended: bool,
}

/// Bytes that follow on one another.
#[derive(Debug)]
struct Piece {
    stream: Stream,
    at: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    /// How much of what comes next belongs into it.
    fn room(&self, stream: Stream, at: u64) -> usize {
        let follows = self.stream == stream && self.at + self.bytes.len() as u64 == at;
        if follows { PIECE.saturating_sub(self.bytes.len()) } else { 0 }
    }
}

impl Waiting {
    fn push(&mut self, stream: Stream, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut room = self.pieces.back().map_or(0, |last| last.room(stream, at));
            if room == 0 {
                self.pieces.push_back(Piece { stream, at, bytes: Vec::new() });
                self.cost += OVERHEAD;
                room = PIECE;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pieces.back_mut().expect("there is one").bytes.extend_from_slice(now);
            self.cost += now.len();
            at += now.len() as u64;
            bytes = later;
        }
    }

    fn pop(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        self.cost -= piece.cost();
        Some(piece)
    }
}

/// What one attempt has for Redis in one go.
struct Taken {
    feed: Arc<Feed>,
    pieces: Vec<Piece>,
    /// It is the last.
    ends: bool,
}

impl Feed {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what waits, within the bounds: the oldest goes, and the newest always has a place.
    fn change<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting();
        let before = waiting.cost;
        let made = change(&mut waiting);
        let others = self.all.load(Ordering::Relaxed).saturating_sub(before);
        while waiting.pieces.len() > 1
            && (waiting.cost > WAITING_OF_ONE || others + waiting.cost > WAITING_OF_ALL)
        {
            waiting.pop();
        }
        self.all.fetch_add(waiting.cost, Ordering::Relaxed);
        self.all.fetch_sub(before, Ordering::Relaxed);
        made
    }

    fn offer(self: &Arc<Self>, change: impl FnOnce(&mut Waiting)) {
        let is_news = self.change(|waiting| {
            change(waiting);
            !mem::replace(&mut waiting.is_in_line, true)
        });
        if is_news {
            // A pump that has ended shows nothing.
            let _ = self.pump.send(Arc::clone(self));
        }
    }

    /// The oldest that waits, and whether there is more.
    fn take(self: &Arc<Self>) -> (Taken, bool) {
        self.change(|waiting| {
            let (mut pieces, mut cost) = (Vec::new(), 0);
            while cost < SHARE
                && let Some(piece) = waiting.pop()
            {
                cost += piece.cost();
                pieces.push(piece);
            }
            waiting.is_in_line = !waiting.pieces.is_empty();
            let ends = waiting.has_ended && !waiting.is_in_line;
            (Taken { feed: Arc::clone(self), pieces, ends }, waiting.is_in_line)
        })
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let cost = self.waiting().cost;
        self.all.fetch_sub(cost, Ordering::Relaxed);
    }
}

impl Taken {
    /// Has it said again, unless the attempt is over: then its result tells.
    fn put_back(self) {
        let feed = self.feed;
        feed.offer(|waiting| {
            if !waiting.has_ended {
                for piece in self.pieces.into_iter().rev() {
                    waiting.cost += piece.cost();
                    waiting.pieces.push_front(piece);
                }
            }
        });
    }
}

impl LiveOutput {
    /// Where the attempt's stdout goes.
    #[must_use]
    pub fn stdout(&self) -> Live {
        self.writer(Stream::Stdout)
    }

    /// Where its stderr goes.
    #[must_use]
    pub fn stderr(&self) -> Live {
        self.writer(Stream::Stderr)
    }

    fn writer(&self, stream: Stream) -> Live {
        Box::new(Writer { feed: Arc::clone(&self.feed), stream, at: 0 })
    }
}

impl Drop for LiveOutput {
    fn drop(&mut self) {
        self.feed.offer(|waiting| waiting.has_ended = true);
    }
}

struct Writer {
    feed: Arc<Feed>,
    stream: Stream,
    at: u64,
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let (stream, at) = (self.stream, self.at);
        self.feed.offer(|waiting| waiting.push(stream, at, bytes));
        self.at += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl RedisStore {
    /// Shows what an attempt writes to whoever follows the job.
    #[must_use]
    pub fn live_output(&self, job: &JobKey, attempt: u32) -> LiveOutput {
        let pump = &self.shared.pump;
        let feed = Feed {
            key: self.shared.keys.output(job),
            attempt,
            waiting: Mutex::default(),
            pump: pump.sender().clone(),
            all: Arc::clone(&pump.all),
        };
        LiveOutput { feed: Arc::new(feed) }
    }
}

/// Carries the output of all jobs to Redis, on a connection of its own.
#[derive(Debug)]
pub(super) struct Pump {
    link: Arc<Link>,
    all: Arc<AtomicUsize>,
    sender: OnceLock<mpsc::UnboundedSender<Arc<Feed>>>,
}

impl Pump {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, all: Arc::default(), sender: OnceLock::new() }
    }

    #[cfg(test)]
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// It starts with the first job that is shown, and ends with the store and the last of them.
    fn sender(&self) -> &mpsc::UnboundedSender<Arc<Feed>> {
        self.sender.get_or_init(|| {
            let (sender, feeds) = mpsc::unbounded_channel();
            tokio::spawn(pump(Arc::clone(&self.link), feeds));
            sender
        })
    }
}

async fn pump(link: Arc<Link>, mut feeds: mpsc::UnboundedReceiver<Arc<Feed>>) {
    let mut line = VecDeque::new();
    loop {
        if line.is_empty() {
            let Some(first) = feeds.recv().await else { return };
            line.push_back(first);
        }
        sleep(GATHER).await;
        while let Ok(feed) = feeds.try_recv() {
            line.push_back(feed);
        }
        let batch = next(&mut line);
        if let Err(error) = link.try_once::<()>(&pipeline(&batch)).await {
            tracing::debug!(%error, attempts = batch.len(), "live output is not shown now");
            // A reader says a piece that came twice once.
            if passes(&error) {
                batch.into_iter().for_each(Taken::put_back);
            }
            sleep(GATHER * 10).await;
        }
    }
}

/// A share of each that waits, in turn.
fn next(line: &mut VecDeque<Arc<Feed>>) -> Vec<Taken> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH
        && let Some(feed) = line.pop_front()
    {
        let (taken, has_more) = feed.take();
        bytes += taken.pieces.iter().map(Piece::cost).sum::<usize>();
        batch.push(taken);
        if has_more {
            line.push_back(feed);
        }
    }
    batch
}

fn pipeline(batch: &[Taken]) -> Pipeline {
    let mut commands = redis::pipe();
    for Taken { feed, pieces, ends } in batch {
        for Piece { stream, at, bytes } in pieces {
            add(&mut commands, feed).arg("at").arg(at).arg(stream.code()).arg(bytes).ignore();
        }
        if *ends {
            add(&mut commands, feed).arg("end").arg("").ignore();
        }
        let kept = if *ends { KEPT_AFTER } else { KEPT };
        commands.cmd("PEXPIRE").arg(&feed.key).arg(millis(kept)).ignore();
    }
    commands
}

fn add<'a>(commands: &'a mut Pipeline, feed: &Feed) -> &'a mut Pipeline {
    commands.cmd("XADD").arg(&feed.key).arg("MAXLEN").arg("~").arg(PIECES).arg("*");
    commands.arg("attempt").arg(feed.attempt)
}

//! What a job writes, shown while it runs: a stream for each job that keeps the newest part.
//!
//! Showing never holds a job back. A writer takes everything at once; what Redis does not take in time is left out.
//! Each piece says where in the output it belongs, so a reader sees what is missing, for whichever reason.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use redis::Pipeline;
use tokio::{io::AsyncWrite, sync::mpsc, time::sleep};
use worker::Live;

use super::{RedisStore, link::Link, millis};
use crate::key::JobKey;

/// Pieces of one job's output that are kept, about.
const PIECES: usize = 1024;
/// Bytes of one piece.
const PIECE: usize = 4096;
/// Bytes that may wait for Redis: of one job, and of all.
const WAITING_OF_ONE: usize = 1024 * 1024;
const WAITING_OF_ALL: usize = 16 * 1024 * 1024;
/// Bytes in one go.
const BATCH: usize = 256 * 1024;
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
    waiting: AtomicUsize,
    pump: mpsc::UnboundedSender<Piece>,
    all: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Piece {
    feed: Arc<Feed>,
    what: What,
}

#[derive(Debug)]
enum What {
    Output { stream: Stream, at: u64, bytes: Vec<u8> },
    End,
}

impl Piece {
    fn cost(&self) -> usize {
        match &self.what {
            What::Output { bytes, .. } => bytes.len() + OVERHEAD,
            What::End => 0,
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let cost = self.cost();
        self.feed.waiting.fetch_sub(cost, Ordering::Relaxed);
        self.feed.all.fetch_sub(cost, Ordering::Relaxed);
    }
}

impl Feed {
    /// Takes it if there is room.
    fn offer(self: &Arc<Self>, what: What) {
        let piece = Piece { feed: Arc::clone(self), what };
        let cost = piece.cost();
        let (one, all) =
            (self.waiting.fetch_add(cost, Ordering::Relaxed), self.all.fetch_add(cost, Ordering::Relaxed));
        if one + cost <= WAITING_OF_ONE && all + cost <= WAITING_OF_ALL {
            // A pump that has ended shows nothing; the piece is dropped and uncounted either way.
            let _ = self.pump.send(piece);
        }
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
        self.feed.offer(What::End);
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
        for piece in bytes.chunks(PIECE) {
            self.feed.offer(What::Output { stream: self.stream, at: self.at, bytes: piece.to_vec() });
            self.at += piece.len() as u64;
        }
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
            waiting: AtomicUsize::new(0),
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
    sender: OnceLock<mpsc::UnboundedSender<Piece>>,
}

impl Pump {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, all: Arc::default(), sender: OnceLock::new() }
    }

    /// It starts with the first job that is shown, and ends with the store and the last of them.
    fn sender(&self) -> &mpsc::UnboundedSender<Piece> {
        self.sender.get_or_init(|| {
            let (sender, pieces) = mpsc::unbounded_channel();
            tokio::spawn(pump(Arc::clone(&self.link), pieces));
            sender
        })
    }
}

async fn pump(link: Arc<Link>, mut pieces: mpsc::UnboundedReceiver<Piece>) {
    while let Some(first) = pieces.recv().await {
        sleep(GATHER).await;
        let mut batch = vec![first];
        let mut bytes = 0;
        while bytes < BATCH
            && let Ok(piece) = pieces.try_recv()
        {
            bytes += piece.cost();
            batch.push(piece);
        }
        // What does not arrive is missed by the reader, who sees that it is; nobody waits for it.
        if let Err(error) = link.try_once::<()>(&pipeline(&batch)).await {
            tracing::debug!(%error, pieces = batch.len(), "live output is not shown");
            sleep(GATHER * 10).await;
        }
    }
}

/// One entry for all bytes that follow on one another, up to the size of a piece.
fn pipeline(batch: &[Piece]) -> Pipeline {
    let mut commands = redis::pipe();
    let mut open: Option<(&Arc<Feed>, Stream, u64, Vec<u8>)> = None;
    for piece in batch {
        let feed = &piece.feed;
        match &piece.what {
            What::Output { stream, at, bytes } => {
                if let Some((of, same, from, gathered)) = &mut open
                    && Arc::ptr_eq(of, feed)
                    && same == stream
                    && *from + gathered.len() as u64 == *at
                    && gathered.len() + bytes.len() <= PIECE
                {
                    gathered.extend_from_slice(bytes);
                    continue;
                }
                close(&mut commands, open.take());
                open = Some((feed, *stream, *at, bytes.clone()));
            }
            What::End => {
                close(&mut commands, open.take());
                add(&mut commands, feed).arg("end").arg("");
                commands.ignore();
                commands.cmd("PEXPIRE").arg(&feed.key).arg(millis(KEPT_AFTER)).ignore();
            }
        }
    }
    close(&mut commands, open);
    commands
}

fn close(commands: &mut Pipeline, open: Option<(&Arc<Feed>, Stream, u64, Vec<u8>)>) {
    let Some((feed, stream, at, bytes)) = open else { return };
    add(commands, feed).arg("at").arg(at).arg(stream.code()).arg(bytes).ignore();
    commands.cmd("PEXPIRE").arg(&feed.key).arg(millis(KEPT)).ignore();
}

fn add<'a>(commands: &'a mut Pipeline, feed: &Feed) -> &'a mut Pipeline {
    commands.cmd("XADD").arg(&feed.key).arg("MAXLEN").arg("~").arg(PIECES).arg("*");
    commands.arg("attempt").arg(feed.attempt)
}

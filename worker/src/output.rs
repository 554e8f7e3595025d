//! One output stream of a job: its first bytes are kept, all of it is counted, and a live reader may look on.
//!
//! A slow reader holds back its own stream and nothing else: what it has not taken yet waits here, never more
//! than the stream's credit, because credit goes back to the sandbox only for what was taken.

use std::collections::VecDeque;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::result::Text;

/// Somebody who reads a stream while the job runs. If it fails it is left out, and the job goes on.
pub type Live = Box<dyn AsyncWrite + Send + Unpin>;

pub(crate) struct Output {
    first: Vec<u8>,
    cap: usize,
    bytes: u64,
    ended: bool,
    live: Option<Live>,
    waiting: VecDeque<Vec<u8>>,
    /// Bytes of the first waiting chunk that the reader took already.
    taken: usize,
    unflushed: bool,
}

impl Output {
    /// Keeps the first `cap` bytes and shows everything to `live`.
    pub(crate) fn new(cap: usize, live: Option<Live>) -> Self {
        Self {
            first: Vec::new(),
            cap,
            bytes: 0,
            ended: false,
            live,
            waiting: VecDeque::new(),
            taken: 0,
            unflushed: false,
        }
    }

    /// Takes what the job wrote. Only the first `room` bytes of it may be kept or shown. Returns how many bytes
    /// are done with already.
    pub(crate) fn take(&mut self, mut chunk: Vec<u8>, room: usize) -> usize {
        let received = chunk.len();
        self.bytes += received as u64;
        chunk.truncate(room);
        let keep = chunk.len().min(self.cap - self.first.len());
        self.first.extend_from_slice(&chunk[..keep]);
        if self.live.is_none() || chunk.is_empty() {
            return received;
        }
        let waits = chunk.len();
        self.waiting.push_back(chunk);
        received - waits
    }

    /// Whether the live reader has everything that came.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.unflushed
    }

    /// Hands the live reader some of what waits, and returns how many bytes are done with. Never returns while
    /// idle. Cancel safe.
    pub(crate) async fn progress(&mut self) -> usize {
        let Some(live) = self.live.as_mut().filter(|_| !self.waiting.is_empty() || self.unflushed) else {
            return std::future::pending().await;
        };
        let written = match self.waiting.front() {
            Some(chunk) => live.write(&chunk[self.taken..]).await,
            None => live.flush().await.map(|()| {
                self.unflushed = false;
                0
            }),
        };
        match (written, self.waiting.front()) {
            (Ok(_), None) => 0,
            (Ok(n), Some(chunk)) if n > 0 => {
                self.unflushed = true;
                self.taken += n;
                if self.taken == chunk.len() {
                    self.waiting.pop_front();
                    self.taken = 0;
                }
                n
            }
            _ => self.abandon(),
        }
    }

    /// Leaves the live reader out from now on. Returns how many bytes waited for it.
    pub(crate) fn abandon(&mut self) -> usize {
        let waited = self.waiting.iter().map(Vec::len).sum::<usize>() - self.taken;
        self.live = None;
        self.waiting.clear();
        self.taken = 0;
        self.unflushed = false;
        waited
    }

    /// Notes that no more comes.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stream as the result shows it.
    pub(crate) fn into_text(self) -> Text {
        Text::new(self.first, self.bytes, self.ended)
    }
}

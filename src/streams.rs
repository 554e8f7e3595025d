//! The job's streams on the terminal or pipe that mayfly was started with, and what ends the job from there.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::{
    io::AsyncWrite,
    signal::unix::{Signal, SignalKind, signal},
};
use worker::Canceller;

/// Standard output of mayfly itself. If it takes nothing more the job is cancelled: nobody would see its work.
pub(crate) struct Stdout {
    inner: tokio::io::Stdout,
    trouble: Arc<OnceLock<io::Error>>,
    canceller: Canceller,
}

impl Stdout {
    /// `trouble` is told why it takes nothing more.
    pub(crate) fn new(canceller: Canceller, trouble: Arc<OnceLock<io::Error>>) -> Self {
        Self { inner: tokio::io::stdout(), trouble, canceller }
    }

    fn watch<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        written.map_err(|error| {
            let kind = error.kind();
            // The first one is the reason; the others are its consequences.
            let _ = self.trouble.set(error);
            self.canceller.politely();
            kind.into()
        })
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(shut)
    }
}

/// The signals that ask mayfly to end.
pub(crate) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on they no longer kill mayfly.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        };
        kind.as_raw_value() as u8
    }

    /// Ends the job politely at the first one, which `first` is told, and at once at the second.
    pub(crate) async fn cancel(mut self, canceller: Canceller, first: Arc<OnceLock<u8>>) {
        let signal = self.next().await;
        let _ = first.set(signal);
        canceller.politely();
        self.next().await;
        canceller.at_once();
    }
}

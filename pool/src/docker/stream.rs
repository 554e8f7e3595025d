//! The agent's stream as the daemon hands it on: stdout and stderr in one connection, told apart by headers.
//!
//! The agent writes nothing but frames to its stdout. What comes on stderr is the runtime's, or a panic: kept for the
//! message of a sandbox that could not be made, up to a bound.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bollard::{container::LogOutput, errors::Error};
use futures_util::Stream;
use tokio::io::{AsyncRead, ReadBuf};

/// The most that is kept of what is complained, in bytes.
const LONGEST: usize = 4096;

/// What the container's processes said on stderr.
#[derive(Debug, Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<Vec<u8>>>);

/// The agent's stdout, out of both.
pub(super) struct Stdout<S> {
    output: S,
    /// What has arrived, and how much of it was read.
    piece: Option<LogOutput>,
    read: usize,
    complaints: Complaints,
}

impl Complaints {
    /// All of it on one line, if there is any.
    pub(super) fn said(&self) -> Option<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let line: String = lines.join("; ").chars().filter(|letter| !letter.is_control()).collect();
        (!line.is_empty()).then_some(line)
    }

    fn note(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = LONGEST.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl<S> Stdout<S> {
    pub(super) fn new(output: S, complaints: Complaints) -> Self {
        Self { output, piece: None, read: 0, complaints }
    }
}

impl<S: Stream<Item = Result<LogOutput, Error>> + Unpin> AsyncRead for Stdout<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = &this.piece {
                let rest = &piece.as_ref()[this.read..];
                let length = rest.len().min(to.remaining());
                to.put_slice(&rest[..length]);
                this.read += length;
                if this.read == piece.as_ref().len() {
                    this.piece = None;
                }
                if length > 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut this.output).poll_next(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(piece @ LogOutput::StdOut { .. })) => (this.piece, this.read) = (Some(piece), 0),
                Some(Ok(LogOutput::StdErr { message })) => this.complaints.note(&message),
                // A stream without headers is not what was asked for.
                Some(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Err(Error::IOError { err })) => return Poll::Ready(Err(err)),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn stdout(
        pieces: Vec<Result<LogOutput, Error>>,
    ) -> (Stdout<impl Stream<Item = Result<LogOutput, Error>> + Unpin>, Complaints) {
        let complaints = Complaints::default();
        (Stdout::new(stream::iter(pieces), complaints.clone()), complaints)
    }

    #[tokio::test]
    async fn stdout_comes_in_its_order_and_stderr_is_kept_apart() {
        let (mut read, complaints) = stdout(vec![
            Ok(LogOutput::StdOut { message: "ab".into() }),
            Ok(LogOutput::StdErr { message: "exec failed:\n\x1b[1mno such file\n".into() }),
            Ok(LogOutput::StdOut { message: "".into() }),
            Ok(LogOutput::StdOut { message: "cde".into() }),
        ]);
        let mut two = [0; 2];
        let mut all = String::new();
        while let Ok(length @ 1..) = read.read(&mut two).await {
            all.push_str(std::str::from_utf8(&two[..length]).unwrap());
        }
        assert_eq!(all, "abcde");
        assert_eq!(complaints.said().unwrap(), "exec failed:; [1mno such file");
    }

    #[tokio::test]
    async fn complaints_are_bounded() {
        let flood = (0..100).map(|_| Ok(LogOutput::StdErr { message: vec![b'x'; 1000].into() })).collect();
        let (mut read, complaints) = stdout(flood);
        assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(complaints.said().unwrap().len(), LONGEST);
    }

    #[tokio::test]
    async fn bytes_without_a_header_break_the_stream() {
        let (mut read, _) = stdout(vec![Ok(LogOutput::Console { message: "?".into() })]);
        assert_eq!(read.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

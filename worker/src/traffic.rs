//! What staging, running and collecting share: waiting on the channel, and how a sandbox is lost.

use std::{fmt::Write, future::poll_fn, pin::pin, task::Poll, time::Duration};

use agent::{
    codec::{Frame, StreamId},
    message::{Fault, ToHost},
};
use pool::{Channel, ChannelError};
use thiserror::Error;

/// The channel itself: signals, and the command's end.
pub(crate) const CHANNEL: StreamId = 0;
/// `Put` streams. One file at a time, so one number does.
pub(crate) const PUT_STREAM: StreamId = 1;
/// `Get` streams. One at a time as well.
pub(crate) const GET_STREAM: StreamId = 2;
/// The job's stdin; stdout and stderr are the two numbers after it.
pub(crate) const RUN_STREAM: StreamId = 16;

/// Why nothing that the sandbox says counts any more. Never the job's failure.
#[derive(Debug, Error)]
pub(crate) enum Lost {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the sandbox's agent gave up at the step {step:?} (errno {errno})")]
    Fault { step: String, errno: i32 },
    #[error("the sandbox's agent broke the protocol: {0}")]
    Breach(&'static str),
    #[error("the sandbox's agent did not answer within {0:?}: {1}")]
    Silent(Duration, &'static str),
    #[error("somebody on the host stopped or froze the sandbox's process")]
    Halted,
    #[error("{0} processes of the job survived SIGKILL")]
    Survivors(usize),
}

impl From<Fault> for Lost {
    fn from(fault: Fault) -> Self {
        // Whatever the agent calls the step, it stays one short line.
        let step = fault.step.chars().take(100).collect();
        Self::Fault { step, errno: fault.errno }
    }
}

/// Waits for the next frame, or (`None`) until `stream` may be sent on again: the channel settles credit in
/// silence, and a sender that waits for it would sleep on. Cancel safe, as `Channel::next` is.
pub(crate) async fn frame_or_credit(
    channel: &mut Channel,
    stream: StreamId,
) -> Result<Option<Frame<ToHost>>, ChannelError> {
    let stalled = channel.may_send(stream) == Some(0);
    frame_or(channel, |channel| stalled && channel.may_send(stream) != Some(0)).await
}

/// Waits for the next frame, or (`None`) until `changed` is so after frames were sent and credit was settled.
pub(crate) async fn frame_or(
    channel: &mut Channel,
    changed: impl Fn(&Channel) -> bool,
) -> Result<Option<Frame<ToHost>>, ChannelError> {
    poll_fn(|cx| {
        let frame = pin!(channel.next()).poll(cx);
        match frame {
            Poll::Ready(frame) => Poll::Ready(frame.map(Some)),
            Poll::Pending if changed(channel) => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Shows bytes from a sandbox to people: one line, and nothing that a terminal would obey.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || is_invisible(character) {
                let mut buffer = [0; 4];
                escape(&mut shown, character.encode_utf8(&mut buffer).as_bytes());
            } else {
                shown.push(character);
            }
        }
        escape(&mut shown, chunk.invalid());
    }
    shown
}

/// Characters that turn the direction of writing or take no room: they make one path look like another.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn escape(shown: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(shown, "\\x{byte:02x}").expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_shown_as_it_is() {
        assert_eq!(printable(b"/job/plain \xc3\xa9"), "/job/plain é");
        assert_eq!(printable(b"/a\x1b[2J\n\x7f"), "/a\\x1b[2J\\x0a\\x7f");
        assert_eq!(printable(b"/a\xff/\xc2\x9b"), "/a\\xff/\\xc2\\x9b");
        assert_eq!(printable("/a\u{202e}txt".as_bytes()), "/a\\xe2\\x80\\xaetxt");
    }
}

//! Length-prefixed frames: bytes in, messages out, and back. No input or output happens here.
//!
//! ```text
//! 0              4      5      6            8
//! +--------------+------+------+------------+------------------+
//! | length (LE)  | kind | zero | stream(LE) | payload (length) |
//! +--------------+------+------+------------+------------------+
//! ```
//!
//! Each end treats the other as hostile: a length above [`MAX_PAYLOAD`] is refused before a byte of it is
//! kept, an unknown kind ends the conversation, and a frame of the wrong direction does not decode.

use thiserror::Error;

/// Bytes before the payload of each frame.
pub const HEADER_LEN: usize = 8;

/// The largest payload that either end accepts, in bytes. A `Run` with a long environment is the largest frame.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// The largest piece of a stream that a sender puts into one `Data` frame, in bytes.
pub const MAX_CHUNK: usize = 64 * 1024;

/// Names one of the byte streams, or one request, that share the channel.
///
/// Stream 0 belongs to the channel itself. A `Run` on stream `s` owns `s` (stdin), `s + 1` (stdout) and
/// `s + 2` (stderr). The host picks the numbers below [`FIRST_AGENT_STREAM`]; streams that the agent opens
/// (tunnels) lie at and above it.
pub type StreamId = u16;

/// The first stream number that belongs to the agent.
pub const FIRST_AGENT_STREAM: StreamId = 0x8000;

/// One message and the stream that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<M> {
    /// The stream, or 0 for the channel itself.
    pub stream: StreamId,
    /// What is said.
    pub message: M,
}

/// A message of one direction: knows its number on the wire and how its payload is written and read.
pub trait Message: Sized {
    /// The number of this message on the wire.
    fn kind(&self) -> u8;
    /// Appends the payload to `out`.
    fn write_payload(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;
    /// Reads the payload of a frame whose header said `kind`.
    fn read_payload(kind: u8, payload: &[u8]) -> Result<Self, CodecError>;
}

/// Why bytes are not a frame. Each one ends the conversation: after it, the stream's framing is lost.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// The header announces more than [`MAX_PAYLOAD`], or a message would need more.
    #[error("frame of {0} bytes, above the limit of {MAX_PAYLOAD}")]
    TooLong(usize),
    /// The header's kind is not a message of this direction.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// The header's reserved byte is not zero.
    #[error("reserved header byte is {0:#04x}, not zero")]
    Reserved(u8),
    /// The payload does not decode as the message that its kind names.
    #[error("malformed payload in frame kind {0:#04x}")]
    Malformed(u8),
}

impl<M: Message> Frame<M> {
    /// Appends the frame's bytes to `out`, which keeps its old length if the message is too long.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(self.message.kind());
        out.push(0);
        out.extend_from_slice(&self.stream.to_le_bytes());
        let written = self.message.write_payload(out).and_then(|()| {
            let len = out.len() - start - HEADER_LEN;
            if len > MAX_PAYLOAD { Err(CodecError::TooLong(len)) } else { Ok(len as u32) }
        });
        match written {
            Ok(len) => out[start..start + 4].copy_from_slice(&len.to_le_bytes()),
            Err(_) => out.truncate(start),
        }
        written.map(|_| ())
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        self.encode_into(&mut out)?;
        Ok(out)
    }
}

/// Cuts a byte stream into frames. Feed it what arrives, in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the first byte that is not yet a frame stands. Kept so that many small frames cost one move.
    start: usize,
}

impl Decoder {
    /// Takes bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes arrive.
    pub fn next_frame<M: Message>(&mut self) -> Result<Option<Frame<M>>, CodecError> {
        let rest = &self.buffer[self.start..];
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [l0, l1, l2, l3, kind, reserved, s0, s1] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_PAYLOAD {
            return Err(CodecError::TooLong(len));
        }
        if reserved != 0 {
            return Err(CodecError::Reserved(reserved));
        }
        let Some(payload) = rest.get(HEADER_LEN..HEADER_LEN + len) else { return Ok(None) };
        let message = M::read_payload(kind, payload)?;
        self.start += HEADER_LEN + len;
        Ok(Some(Frame { stream: u16::from_le_bytes([s0, s1]), message }))
    }

    /// Bytes that are held but are not yet a whole frame.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}

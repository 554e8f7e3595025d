//! Credit-based flow control: a sender may have at most a window of unread bytes under way on each stream.
//!
//! The receiver grants again what its reader has taken, so bytes wait where they were made.

use thiserror::Error;

/// What a sender may send on a new stream before it hears of credit, in bytes.
pub const INITIAL_CREDIT: u32 = 256 * 1024;

/// What a sender may send on a new tunnel before it hears of credit, in bytes: there may be [`MAX_TUNNELS`] of them, and
/// each end holds what its readers do not take.
pub const TUNNEL_CREDIT: u32 = 16 * 1024;

/// Tunnels that may be open at once.
pub const MAX_TUNNELS: usize = 256;

/// The sender's side of one stream.
#[derive(Debug)]
pub struct SendWindow {
    credit: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { credit: INITIAL_CREDIT }
    }
}

/// The other end broke the rules of credit. The conversation is over.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlowError {
    /// More was sent than was granted.
    #[error("peer sent {sent} bytes with a credit of {credit}")]
    Overrun {
        /// Bytes in the frame.
        sent: usize,
        /// Bytes that were allowed.
        credit: u32,
    },
    /// The sum of the grants is absurd.
    #[error("peer granted credit beyond {}", u32::MAX)]
    Overflow,
}

impl SendWindow {
    /// That of a new tunnel.
    #[must_use]
    pub fn of_tunnel() -> Self {
        Self { credit: TUNNEL_CREDIT }
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.credit as usize
    }

    /// Notes `len` bytes as sent. The caller asked [`SendWindow::available`] first.
    pub fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.available());
        self.credit -= len as u32;
    }

    /// Takes a `Credit` frame.
    pub fn grant(&mut self, more: u32) -> Result<(), FlowError> {
        self.credit = self.credit.checked_add(more).ok_or(FlowError::Overflow)?;
        Ok(())
    }
}

/// The receiver's side of one stream.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// What may be under way or unread at most.
    size: u32,
    /// What the peer may still send.
    credit: u32,
    /// What the reader took and the peer was not yet told of.
    taken: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { size: INITIAL_CREDIT, credit: INITIAL_CREDIT, taken: 0 }
    }
}

impl ReceiveWindow {
    /// That of a new tunnel.
    #[must_use]
    pub fn of_tunnel() -> Self {
        Self { size: TUNNEL_CREDIT, credit: TUNNEL_CREDIT, taken: 0 }
    }

    /// What may be under way or unread at most, in bytes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Lets `more` bytes be under way. They are the grant to send.
    pub fn widen(&mut self, more: u32) {
        self.size += more;
        self.credit += more;
    }

    /// Notes a `Data` frame of `len` bytes, or refuses it as more than was granted.
    pub fn receive(&mut self, len: usize) -> Result<(), FlowError> {
        match u32::try_from(len).ok().and_then(|len| self.credit.checked_sub(len)) {
            Some(left) => {
                self.credit = left;
                Ok(())
            }
            None => Err(FlowError::Overrun { sent: len, credit: self.credit }),
        }
    }

    /// Notes that the reader took `len` bytes. Returns the grant to send, once it is worth a frame.
    #[must_use = "the grant must reach the peer, or the stream stalls"]
    pub fn release(&mut self, len: usize) -> Option<u32> {
        self.taken += len as u32;
        // Half a window: the sender never waits for a grant that is already due, and grants stay rare.
        if self.taken < self.size / 2 {
            return None;
        }
        self.credit += self.taken;
        Some(std::mem::take(&mut self.taken))
    }
}

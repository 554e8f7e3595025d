//! What a job's story needs of a sandbox. A lease gives it; so does a scripted one in a test.

use std::time::Duration;

use agent::message::{Signal, ToAgent};
use pool::{Channel, Lease, Usage};
use tokio::time::timeout;

use crate::traffic::{CHANNEL, Lost};

/// How often the host looks again for what should be gone, and how long it waits in between.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// A sandbox in the hands of one job.
pub(crate) trait Sandbox {
    /// The stream to its agent.
    fn channel(&mut self) -> &mut Channel;
    /// What the job has used, as the host counts it.
    fn usage(&self) -> Usage;
    /// How many of the job's processes the host sees; `None` where it cannot.
    fn survivors(&self) -> Option<usize>;
    /// Whether somebody on the host has stopped it.
    fn is_halted(&self) -> bool;
}

impl Sandbox for Lease {
    fn channel(&mut self) -> &mut Channel {
        Self::channel(self)
    }

    fn usage(&self) -> Usage {
        Self::usage(self)
    }

    fn survivors(&self) -> Option<usize> {
        Self::survivors(self)
    }

    fn is_halted(&self) -> bool {
        Self::is_halted(self)
    }
}

/// Makes sure that nothing of the job is left: the agent said so, and the host looks for itself.
pub(crate) async fn wait_until_alone(sandbox: &mut impl Sandbox) -> Result<(), Lost> {
    for _ in 0..LOOKS {
        match sandbox.survivors() {
            None | Some(0) => return Ok(()),
            Some(_) => sandbox.channel().send(CHANNEL, ToAgent::Signal(Signal::Kill))?,
        }
        // The channel carries the signal while somebody waits on it. What may still come is the end of an output.
        if let Ok(frame) = timeout(PAUSE, sandbox.channel().next()).await {
            frame?;
        }
    }
    match sandbox.survivors() {
        None | Some(0) => Ok(()),
        Some(left) => Err(Lost::Survivors(left)),
    }
}

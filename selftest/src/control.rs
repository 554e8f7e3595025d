//! The control: the same probes without protection, which must be open, or they say nothing.
//!
//! It is a process of its own, because it leaves the host's namespaces for good: it sees the host's files through an overlay
//! that keeps whatever is written, with the host's `/proc`, `/sys` and `/dev`, as root, in a network of its own where all that
//! a sandbox must not reach answers from loopback. So nothing of it stays, and nothing of it leaves the host.

mod child;
mod network;
mod scene;

use std::{io, path::Path, process::Stdio, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

pub use self::child::main;
use crate::{
    catalogue::{Probe, Way},
    ground::{CANARY, Clues},
    looks::Looks,
};

/// The only argument of a mayfly that is to be the control.
pub const CONTROL_ARG: &str = "control-of-selftest";

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the control is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    clues: Clues,
    /// Ids with the way that they are asked.
    probes: Vec<(String, Way)>,
}

impl Order {
    /// The probes that are asked in one of these ways.
    fn by(&self, ways: &[Way]) -> Vec<String> {
        self.probes.iter().filter(|(_, way)| ways.contains(way)).map(|(id, _)| id.clone()).collect()
    }
}

/// There is no control, so nothing is verified.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// It cannot be started.
    #[error("the control cannot be started")]
    Start(#[source] io::Error),
    /// It did not come to an end.
    #[error("the control did not end within {PATIENCE:?}")]
    Late,
    /// It said why not.
    #[error("the control failed: {0}")]
    Failed(String),
    /// It said something else.
    #[error("the control's answer cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// Asks the probes without protection.
pub(crate) async fn ask(program: &Path, clues: &Clues, probes: &[&Probe]) -> Result<Looks, ControlError> {
    let probes = probes.iter().map(|probe| (probe.id.to_owned(), probe.way)).collect();
    let order = Order { clues: clues.clone(), probes };
    let order = serde_json::to_vec(&order).map_err(|error| ControlError::Start(error.into()))?;
    let mut command = Command::new(program);
    command.arg(CONTROL_ARG).env_clear().env(CANARY, &clues.token).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(ControlError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&order).await.map_err(ControlError::Start)?;
    }
    let ended = timeout(PATIENCE, child.wait_with_output()).await.map_err(|_| ControlError::Late)?;
    let ended = ended.map_err(ControlError::Start)?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        return Err(ControlError::Failed(format!("{}: {said}", ended.status)));
    }
    serde_json::from_slice(&ended.stdout).map_err(ControlError::Answer)
}

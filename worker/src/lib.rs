//! One job's story: checkout → stage → run → collect → give back.
//!
//! [`Worker`] tells it. It is handed an [`Assignment`], takes one sandbox from the pool, and ends with a
//! [`JobResult`]. It knows no tier and no queue: everything that it does goes through the agent's channel.
//! What comes out of a sandbox is hostile here as everywhere.

mod assignment;
mod cancel;
mod collect;
mod job;
mod output;
#[cfg(test)]
mod peer;
mod progress;
mod report;
mod result;
mod run;
mod sandbox;
mod stage;
mod traffic;
mod tunnels;
mod units;
mod verdict;
mod worker;

pub use assignment::{Assignment, Content, Reader, StagedFile};
pub use cancel::{Cancelled, Canceller, cancellation};
pub use collect::{Arrival, ArtifactSink, Caps, Discard, literal_root};
pub use job::{Class, File, FileContent, Job, JobLimits, Trust};
pub use output::Live;
pub use progress::{Phase, Progress};
pub use result::{
    Artifact, ErrorReport, JobResult, ObservedBy, Outcome, Phases, SkippedArtifact, Text, UsageReport, causes,
};
pub use traffic::printable;
pub use units::Size;
pub use worker::{Company, Ended, Remains, Settings, Worker};

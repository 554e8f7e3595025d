//! Takes jobs in, decides what they may have, and hands them to workers.
//!
//! - [`admit()`]: a job as its author wrote it becomes an assignment, or a [`Refusal`] that says why not.
//! - [`Policy`]: what the jobs of one tenant may ask for.
//! - [`config`]: what an operator decides.
//! - [`Queue`] and [`Store`]: where jobs come from, and where their results go. The embedded ones serve a batch,
//!   [`redis`] several hosts.
//! - [`broker`]: what must be on RabbitMQ; [`AmqpQueue`] pulls jobs from there.
//! - [`Dispatcher`]: pulls, admits, runs, stores, retries.
//! - [`Batch`]: a file of jobs, run to its end on this machine.
//! - [`Service`]: one host of many, for as long as it runs.
//! - [`ArtifactStore`]: the files that jobs leave, for any host to fetch.
//! - [`control`]: how other processes ask a live one.
//! - [`live`]: what goes on, and why what waits does.
//! - [`metrics`] and [`web`]: what is counted, and where it is shown.
//! - [`traces`]: each job's way, for a collector.

mod admit;
mod artifacts;
mod batch;
mod board;
pub mod broker;
pub mod config;
#[cfg(test)]
mod contract;
pub mod control;
mod dispatch;
mod intake;
mod journal;
mod key;
pub mod live;
pub mod metrics;
mod outcomes;
mod policy;
mod queue;
mod results;
mod retry;
mod runner;
mod service;
mod stop;
mod store;
mod tally;
pub mod traces;
mod ward;
pub mod web;

pub use admit::{Origin, Refusal, admit, path as check_path};
use pool::failpoint;

pub use artifacts::{ArtifactError, ArtifactSettings, ArtifactStore, ArtifactsOfJob, Fetching, Place, Swept};
pub use batch::{Afar, Batch, BatchError, Plan, Running};
pub use board::{Board, EndedJob, PhaseNow, RunningJob};
pub use dispatch::{DispatchError, Dispatcher};
pub use intake::{Defaults, IntakeError};
pub use journal::JournalError;
pub use key::{BadKey, BodyDigest, JobKey};
pub use policy::{Policies, Policy};
pub use queue::{
    AmqpDelivery, AmqpOptions, AmqpQueue, AmqpTenant, Backlog, Counts, Keeping, Neighbours, NoJob, Pulled,
    Queue, QueueError, Requeue,
};
pub use results::ResultsError;
pub use retry::{INFRASTRUCTURE_TRIES, MAX_ATTEMPTS};
pub use runner::Runner;
pub use service::{Service, Shown};
pub use stop::{Stage, Stop, Stopper, stop};
pub use store::{Attempt, Begun, Cancelling, Ended, Finished, JobState, Store, StoreError, redis};
pub use tally::{PhaseTimes, Tally, shown};
pub use ward::{Resting, Tested};

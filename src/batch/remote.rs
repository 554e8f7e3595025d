//! `mayfly batch --remote`: the hosts of a service run the jobs, and this process sends them and writes their results.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use scheduler::{Afar, Batch, Stop, Stopper, broker};
use worker::ErrorReport;

use super::{Ran, progress, report};
use crate::{node::Places, services, submit};

/// Jobs that are with the broker at once. They cost nothing here, and keep many hosts busy.
pub(super) const AT_ONCE: usize = 256;
/// What a second signal means.
pub(super) const ENDED: &str = "results are waited for no longer; --resume fetches them";

/// Who runs the jobs.
pub(super) struct Service {
    pub(super) tenant: String,
    broker: broker::Settings,
}

impl Service {
    /// The one of the configuration.
    pub(super) fn of(tenant: Option<String>, places: &Places) -> Result<Self, ErrorReport> {
        let config = places.config()?;
        Ok(Self { tenant: submit::tenant(tenant, &config)?, broker: services::broker(&config)? })
    }

    /// Takes the batch on.
    pub(super) async fn take(self, batch: Batch) -> Result<Arc<Afar>, ErrorReport> {
        let taken = batch.afar(self.broker, self.tenant).await;
        taken.map(Arc::new).map_err(|error| report::of(&error))
    }
}

/// Has the jobs run, and shows how it goes.
pub(super) async fn work(
    running: Arc<Afar>,
    stopper: &Stopper,
    stop: &Stop,
    interrupted_by: &OnceLock<u8>,
) -> Ran {
    let (clock, total, left_before) = (Instant::now(), running.total(), running.left());
    let before = running.board().ended();
    let run = tokio::select! {
        run = running.run(stopper, stop) => run,
        never = progress::show(running.board(), total, left_before, stop.clone()) => match never {},
    };
    let took = clock.elapsed();
    let mut trouble: Vec<_> = run.err().into_iter().map(|error| report::of(&error)).collect();
    let (ended, tally) = (running.board().ended() - before, running.board().tally());
    trouble.extend(running.close().await.err().map(|error| report::of(&error)));
    let left = left_before - ended.min(left_before);
    let interrupted_by = interrupted_by.get().copied();
    Ran { total, left, tally, retries: 0, took, ended, interrupted_by, trouble }
}

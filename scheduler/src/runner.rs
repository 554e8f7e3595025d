//! What runs a job, as the dispatcher knows it.

use std::{future::Future, time::Duration};

use pool::{JobRef, KindStatus, Want};
use tokio::time::timeout;
use worker::{Assignment, Cancelled, Company, Discard, Ended, ErrorReport, Progress, Worker, causes};

/// How long a sandbox that is only tried may take.
const LONGEST_TRIAL: Duration = Duration::from_secs(60);

/// Runs jobs. The real one is a [`Worker`]; tests bring their own.
pub trait Runner: Send + Sync + 'static {
    /// Runs one job once, in a sandbox of its own, which is still to be ended.
    fn work(
        &self,
        job: &Assignment,
        progress: Progress,
        cancelled: Cancelled,
    ) -> impl Future<Output = Ended> + Send;

    /// Makes a sandbox and ends it, to see whether that can be done.
    fn try_one(&self, want: &Want) -> impl Future<Output = Result<(), ErrorReport>> + Send;

    /// Hears how many jobs of a kind are still to come.
    fn expect(&self, want: &Want, jobs: usize);

    /// How its sandboxes stand.
    fn standing(&self) -> Vec<KindStatus>;
}

impl Runner for Worker {
    async fn work(&self, job: &Assignment, progress: Progress, cancelled: Cancelled) -> Ended {
        let company = Company { progress, ..Company::default() };
        self.run(job, company, &mut Discard, cancelled).await
    }

    async fn try_one(&self, want: &Want) -> Result<(), ErrorReport> {
        let job = JobRef { id: "trial".to_owned(), tenant: "mayfly".to_owned(), attempt: 0 };
        let trial = async {
            let lease = self.pool().checkout(want, job).await.map_err(|error| causes(&error))?;
            lease.destroy().await.map_err(|error| causes(&error))
        };
        let tried = timeout(LONGEST_TRIAL, trial).await;
        let tried = tried.unwrap_or_else(|_| Err(format!("it took more than {LONGEST_TRIAL:?}")));
        let hint = "`mayfly doctor` says what is wrong with this host";
        tried.map_err(|why| ErrorReport::new("no sandbox could be made", why, hint))
    }

    fn expect(&self, want: &Want, jobs: usize) {
        // An image that is missing is told to its jobs.
        if let Err(error) = self.pool().expect(want, jobs) {
            tracing::debug!(%error, "nothing is made ahead");
        }
    }

    fn standing(&self) -> Vec<KindStatus> {
        self.pool().status()
    }
}

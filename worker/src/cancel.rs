//! Cancelling a job: once is polite, twice is at once.

use tokio::sync::watch;

/// How urgently a job is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// It may go on.
    None,
    /// SIGTERM, grace, SIGKILL, and its artifacts are kept.
    Politely,
    /// Nothing more is waited for.
    AtOnce,
}

/// Ends one job early.
#[derive(Debug, Clone)]
pub struct Canceller(watch::Sender<Urgency>);

/// Hears of it.
#[derive(Debug, Clone)]
pub struct Cancelled(watch::Receiver<Urgency>);

/// A canceller and the job's end of it.
#[must_use]
pub fn cancellation() -> (Canceller, Cancelled) {
    let (sender, receiver) = watch::channel(Urgency::None);
    (Canceller(sender), Cancelled(receiver))
}

impl Canceller {
    /// Asks the job to end: SIGTERM, grace, SIGKILL. Its artifacts are still kept.
    pub fn politely(&self) {
        self.0.send_if_modified(|now| {
            let first = *now == Urgency::None;
            if first {
                *now = Urgency::Politely;
            }
            first
        });
    }

    /// Ends the job without waiting for anything but the sandbox's end.
    pub fn at_once(&self) {
        self.0.send_replace(Urgency::AtOnce);
    }
}

impl Cancelled {
    /// Waits until the job is asked to end. Never returns if nobody can ask any more. Cancel safe.
    pub async fn asked(&mut self) {
        self.beyond(Urgency::None).await;
    }

    /// Waits until more is asked for than `known`. Never returns if nobody can ask any more. Cancel safe.
    pub(crate) async fn beyond(&mut self, known: Urgency) -> Urgency {
        // Copied out at once: the guard must not be held across the next wait, or no job could change threads.
        let heard = self.0.wait_for(|now| *now > known).await.map(|now| *now);
        match heard {
            Ok(urgency) => urgency,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asking_politely_never_softens_what_was_asked_before() {
        let (asking, mut job) = cancellation();
        asking.politely();
        assert_eq!(job.beyond(Urgency::None).await, Urgency::Politely);
        asking.at_once();
        asking.politely();
        assert_eq!(job.beyond(Urgency::Politely).await, Urgency::AtOnce);
    }
}

//! Ending a dispatcher from outside: first no new jobs, then no jobs.

use tokio::sync::watch;

/// How much is still done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Everything.
    Running,
    /// No job is started any more; those that run go on to their end.
    Draining,
    /// Those that run are cancelled.
    Aborting,
}

/// Asks for it.
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<Stage>);

/// Hears of it.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Stage>);

/// The two ends.
#[must_use]
pub fn stop() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(Stage::Running);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Goes one stage further, and says which that is.
    #[must_use = "whoever asked wants to know what happens now"]
    pub fn more(&self) -> Stage {
        self.0.send_modify(|stage| {
            *stage = match stage {
                Stage::Running => Stage::Draining,
                Stage::Draining | Stage::Aborting => Stage::Aborting,
            };
        });
        *self.0.borrow()
    }

    /// Takes no more jobs, unless even more was asked for.
    pub fn drain(&self) {
        self.0.send_if_modified(|stage| {
            let first = *stage == Stage::Running;
            if first {
                *stage = Stage::Draining;
            }
            first
        });
    }
}

impl Stop {
    /// The stage now.
    #[must_use]
    pub fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Waits for a stage, or one beyond it. Never returns if nobody can ask any more. Cancel safe.
    pub async fn reached(&mut self, stage: Stage) {
        if self.0.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

//! Processes that wait for a life. What QEMU does before it takes over a template is the same for each of its lives, and a
//! fifth of what a life takes to be clean: it is done for the next one while nobody waits for it.
//!
//! There is one for each kind of which lives follow each other. It is a sandbox's process like any other, in cgroups and
//! under ids of its own, serves one life, and goes when none has come for a while.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use super::{Started, template::Template};
use crate::{limits::Limits, workshop::MakeError};

/// How long one waits for a life to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of how many kinds one waits.
const MOST: usize = 4;

/// What a process is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Purpose {
    pub(super) name: String,
    pub(super) limits: Limits,
}

#[derive(Debug, Default)]
pub(super) struct Spares {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The one of which a life was begun last comes last.
    kinds: Vec<Kind>,
    starting: JoinSet<()>,
}

/// A kind of which a life has begun.
#[derive(Debug)]
struct Kind {
    purpose: Purpose,
    template: Arc<Template>,
    last_life: Instant,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// Another life is to come first.
    None,
    Starting,
    Waiting(Box<Started>),
}

impl Spares {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics between two halves of a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that waits for a life of this template, if one does and is well.
    pub(super) fn take(&self, purpose: &Purpose, template: &Arc<Template>) -> Option<Started> {
        let mut known = self.known();
        let kind = known.kinds.iter_mut().find(|kind| kind.is(purpose, template))?;
        match std::mem::replace(&mut kind.next, Next::None) {
            Next::Waiting(started) => Some(*started).filter(Started::is_well),
            other => {
                kind.next = other;
                None
            }
        }
    }

    /// A life has begun: where it was not the first, has a process started for the one after it.
    pub(super) fn follow<Start>(self: &Arc<Self>, purpose: Purpose, template: &Arc<Template>, start: Start)
    where
        Start: Future<Output = Result<Started, MakeError>> + Send + 'static,
    {
        let mut known = self.known();
        while known.starting.try_join_next().is_some() {}
        let Some(place) = known.kinds.iter().position(|kind| kind.is(&purpose, template)) else {
            // What was started for another template of the same name serves nobody any more.
            known.kinds.retain(|kind| kind.purpose != purpose);
            known.kinds.push(Kind::new(purpose, Arc::clone(template), Next::None));
            if known.kinds.len() > MOST {
                known.kinds.remove(0);
            }
            return;
        };
        let mut next = known.kinds.remove(place).next;
        if matches!(next, Next::None) {
            next = Next::Starting;
            let (spares, purpose, template) = (Arc::clone(self), purpose.clone(), Arc::clone(template));
            known.starting.spawn(async move { spares.keep(&purpose, &template, start.await) });
        }
        known.kinds.push(Kind::new(purpose, Arc::clone(template), next));
    }

    fn keep(&self, purpose: &Purpose, template: &Arc<Template>, started: Result<Started, MakeError>) {
        let mut known = self.known();
        let Some(kind) = known.kinds.iter_mut().find(|kind| kind.is(purpose, template)) else { return };
        kind.next = match started {
            Ok(started) => Next::Waiting(Box::new(started)),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(error, "no process can be started ahead: the next life starts its own");
                Next::None
            }
        };
    }

    /// Ends those for which no life has come.
    pub(super) fn sweep(&self) {
        self.known().kinds.retain(|kind| kind.last_life.elapsed() < PATIENCE);
    }

    /// Ends all, those that are being started too.
    pub(super) async fn close(&self) {
        let Known { kinds, mut starting } = std::mem::take(&mut *self.known());
        drop(kinds);
        starting.shutdown().await;
    }
}

impl Kind {
    fn new(purpose: Purpose, template: Arc<Template>, next: Next) -> Self {
        Self { purpose, template, last_life: Instant::now(), next }
    }

    fn is(&self, purpose: &Purpose, template: &Arc<Template>) -> bool {
        self.purpose == *purpose && Arc::ptr_eq(&self.template, template)
    }
}

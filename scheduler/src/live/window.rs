//! How others look at a live process: its numbers, the moment, one job, and what that writes.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt};
use pool::Tier;

use super::{
    job::{JobCard, story_of, tame},
    reasons,
    snapshot::{Snapshot, tame_job},
    text,
};
use crate::{
    control::Identity,
    dispatch::Dispatcher,
    key::JobKey,
    metrics::{Servers, View},
    queue::{Queue, Waiting},
    runner::Runner,
    stop::Stop,
    store::{JobState, Store, redis::Follow},
};

/// A moment is looked at once in this time, however many look.
const MOMENT: Duration = Duration::from_millis(900);

/// A live process, seen from outside. `None`: it has just ended.
pub trait Window: Send + Sync {
    /// What its numbers are made of.
    fn view(&self) -> Option<View>;

    /// All that it shows of itself, as JSON: at most a moment old.
    fn moment(&self) -> Option<Arc<str>>;

    /// The same, to be read.
    fn snapshot(&self) -> Option<Snapshot>;

    /// What is known of a job; `None`: nothing.
    fn job(&self, job: JobKey) -> BoxFuture<'static, Result<Option<JobCard>, String>>;

    /// Why a job waits that has not begun.
    fn waits_for(&self, job: &JobKey) -> BoxFuture<'static, String>;

    /// What a job writes, where that can be followed.
    fn follow(&self, job: &JobKey) -> Option<Follow>;
}

/// How it is looked through.
pub type Look = Arc<dyn Window>;

/// What a dispatcher of one form has, beside what all have.
pub(crate) struct Form<Q, S, R> {
    pub(crate) servers: fn(&Dispatcher<Q, S, R>) -> Option<Servers>,
    pub(crate) follow: fn(&Dispatcher<Q, S, R>, &JobKey) -> Option<Follow>,
    pub(crate) why: AskWhy<Q, S, R>,
}

/// Why a job waits, where somebody else knows that better than this process.
type Why = BoxFuture<'static, Result<String, String>>;

/// How that is asked: of which job, and how many of its tenant's may run on each host.
type AskWhy<Q, S, R> = fn(&Dispatcher<Q, S, R>, &JobKey, Option<u32>) -> Option<Why>;

/// A window on a dispatcher. It does not keep it from its end.
pub(crate) struct Pane<Q, S, R> {
    engine: Weak<Dispatcher<Q, S, R>>,
    form: Form<Q, S, R>,
    who: Identity,
    tiers: Vec<Tier>,
    /// Where the ledger is.
    data_dir: PathBuf,
    stop: Stop,
    since: Instant,
    moment: Mutex<Option<(Instant, Arc<str>)>>,
}

impl<Q: Queue, S: Store, R: Runner> Pane<Q, S, R> {
    pub(crate) fn new(
        engine: &Arc<Dispatcher<Q, S, R>>,
        form: Form<Q, S, R>,
        sight: &Sight,
        stop: &Stop,
    ) -> Self {
        let Sight { who, tiers, data_dir } = sight.clone();
        let (engine, stop) = (Arc::downgrade(engine), stop.clone());
        Self { engine, form, who, tiers, data_dir, stop, since: Instant::now(), moment: Mutex::default() }
    }
}

/// What a window shows that the dispatcher does not know.
#[derive(Debug, Clone)]
pub struct Sight {
    /// Who it is.
    pub who: Identity,
    /// The tiers of which jobs are run.
    pub tiers: Vec<Tier>,
    /// The node's data directory, for its ledger.
    pub data_dir: PathBuf,
}

impl<Q: Queue, S: Store, R: Runner> Window for Pane<Q, S, R> {
    fn view(&self) -> Option<View> {
        let engine = self.engine.upgrade()?;
        let servers = (self.form.servers)(&engine);
        Some(View { servers, ..View::of(&engine, &self.tiers, &self.stop) })
    }

    fn moment(&self) -> Option<Arc<str>> {
        let mut moment = self.moment.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, json)) = moment.as_ref().filter(|(at, _)| at.elapsed() < MOMENT) {
            return Some(Arc::clone(json));
        }
        let json: Arc<str> = serde_json::to_string(&self.snapshot()?).ok()?.into();
        *moment = Some((Instant::now(), Arc::clone(&json)));
        Some(json)
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let (view, engine) = (self.view()?, self.engine.upgrade()?);
        Some(Snapshot::of(view, engine.board(), self.who.clone(), self.since.elapsed()))
    }

    fn job(&self, job: JobKey) -> BoxFuture<'static, Result<Option<JobCard>, String>> {
        let (Some(view), Some(engine)) = (self.view(), self.engine.upgrade()) else {
            return async { Err("it has just ended".to_owned()) }.boxed();
        };
        let (data_dir, why) = (self.data_dir.clone(), self.waits_for(&job));
        async move {
            let failed = |error: crate::StoreError| text::line(&worker::causes(&error), 300);
            let Some(state) = engine.store().state(&job).await.map_err(failed)? else { return Ok(None) };
            let result = match state {
                JobState::Over { .. } => engine.store().result(&job).await.map_err(failed)?,
                _ => None,
            };
            drop(engine);
            let waiting_for = match state {
                JobState::Waiting { .. } => Some(text::line(&why.await, 300)),
                _ => None,
            };
            let running = view.running.into_iter().find(|it| it.job == job).map(tame_job);
            let of = job.clone();
            // Segments of a month: not on a thread that serves jobs.
            let told = tokio::task::spawn_blocking(move || story_of(&data_dir, &of)).await;
            let (story, story_trouble) = match told {
                Ok(Ok(story)) => (story, None),
                Ok(Err(why)) => (Vec::new(), Some(why)),
                Err(_) => (Vec::new(), Some("the ledger could not be read".to_owned())),
            };
            let result = result.map(|result| Box::new(tame(result)));
            Ok(Some(JobCard { job, state, running, waiting_for, result, story, story_trouble }))
        }
        .boxed()
    }

    fn waits_for(&self, job: &JobKey) -> BoxFuture<'static, String> {
        let (Some(view), Some(engine)) = (self.view(), self.engine.upgrade()) else {
            return async { "it has just ended".to_owned() }.boxed();
        };
        if let Some(trouble) = view.trouble().into_iter().next() {
            return async { trouble }.boxed();
        }
        let own = |lane: &&Waiting| lane.tenant.as_ref() == Some(&job.tenant);
        let most = view.waiting.iter().find(own).and_then(|lane| lane.most);
        let (asked, here) = ((self.form.why)(&engine, job, most), reasons::of_one(&job.tenant, &view));
        async move {
            match asked {
                Some(asked) => asked.await.unwrap_or(here),
                None => here,
            }
        }
        .boxed()
    }

    fn follow(&self, job: &JobKey) -> Option<Follow> {
        (self.form.follow)(&*self.engine.upgrade()?, job)
    }
}

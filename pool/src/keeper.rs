//! Keeps clean sandboxes waiting: hands them out, and makes what is missing.
//!
//! Handing out takes a lock and nothing else. Making happens in tasks of their own, started by one reconciling
//! loop that compares, at each change and each second, what is with what should be. The loop never edits
//! counts from memory of what it started: each task reports its own end.

mod slot;
mod taken;

use std::{
    cell::LazyCell,
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    task::{JoinHandle, JoinSet},
    time::{Instant, interval},
};

pub(crate) use self::{slot::Slot, taken::Taken};
use crate::{
    lease::Source,
    shelf::{Ahead, Counts, Held, Made, Shelf},
};

/// How often the loop looks even when nothing has changed.
const PERIOD: Duration = Duration::from_secs(1);

/// Makes and ends sandboxes. The pool's real one goes to the tiers; tests bring their own.
pub(crate) trait Maker: Sized + Send + Sync + 'static {
    /// What distinguishes one kind of sandbox from another.
    type Kind: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static;
    /// A clean sandbox.
    type Clean: fmt::Debug + Send + 'static;
    /// Why one could not be made.
    type Error: fmt::Debug + Send + 'static;

    /// Makes one and proves it clean.
    fn make(&self, kind: &Self::Kind) -> impl Future<Output = Result<Self::Clean, Self::Error>> + Send;
    /// Ends one that no job has seen. It keeps its place until it is gone.
    fn discard(&self, clean: Self::Clean, slot: Slot<Self>) -> impl Future<Output = ()> + Send;
    /// Whether one that waits is still good.
    fn is_fit(&self, clean: &mut Self::Clean) -> bool;
    /// Whether any of a kind may be made before a job asks for it.
    fn is_made_ahead(&self, kind: &Self::Kind) -> bool;
    /// How many may be made at once now, at most `most`: less on a host under pressure.
    fn making_now(&self, most: usize) -> usize;
}

/// How the pool is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Clean sandboxes of each kind that wait even when no job comes.
    pub idle_count: usize,
    /// How long after the last job more than `idle_count` may wait.
    pub idle_time: Duration,
    /// How long a clean sandbox may wait before it is replaced.
    pub ready_ttl: Duration,
    /// Sandboxes that may exist at once, those included that are leased, being ended or quarantined.
    pub max_instances: usize,
    /// Sandboxes that may be made at once.
    pub making_at_once: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_count: 0,
            idle_time: Duration::from_secs(60),
            ready_ttl: Duration::from_secs(3600),
            max_instances: 256,
            making_at_once: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}

/// How one kind of sandbox stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing<K> {
    pub(crate) kind: K,
    pub(crate) ready: usize,
    pub(crate) waiting: usize,
    pub(crate) counts: Counts,
    pub(crate) target: usize,
    pub(crate) horizon: Duration,
}

/// No sandbox for this job.
#[derive(Debug)]
pub(crate) enum Refused<E> {
    /// It could not be made.
    Making(E),
    /// The pool is closing.
    Closing,
}

type Waiter<M> = oneshot::Sender<Result<Taken<M>, <M as Maker>::Error>>;
type Shelves<M> = HashMap<<M as Maker>::Kind, Shelf<<M as Maker>::Clean, Waiter<M>>>;

/// Keeps sandboxes of all kinds.
#[derive(Debug)]
pub(crate) struct Keeper<M: Maker> {
    core: Arc<Core<M>>,
    reconciler: JoinHandle<()>,
}

struct Core<M: Maker> {
    maker: M,
    settings: Settings,
    shelves: Mutex<Shelves<M>>,
    /// What makes and what ends.
    tasks: Mutex<JoinSet<()>>,
    changed: Notify,
    closing: Notify,
}

impl<M: Maker> fmt::Debug for Core<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<M: Maker> Keeper<M> {
    pub(crate) fn start(maker: M, settings: Settings) -> Self {
        let core = Arc::new(Core {
            maker,
            settings,
            shelves: Mutex::new(HashMap::new()),
            tasks: Mutex::default(),
            changed: Notify::new(),
            closing: Notify::new(),
        });
        let reconciler = tokio::spawn(reconcile_forever(Arc::clone(&core)));
        Self { core, reconciler }
    }

    /// A clean sandbox: one that waits, or one made for this job, in the order of asking.
    pub(crate) async fn take(&self, kind: &M::Kind) -> Result<Taken<M>, Refused<M::Error>> {
        let (taken, unfit) = {
            let mut all = self.core.lock();
            let shelf = self.core.shelf(&mut all, kind);
            shelf.demand.asked(Instant::now());
            // Who came first waits first, even if one has just become ready.
            let (taken, unfit) = if shelf.waiting() == 0 {
                shelf.take(|clean| self.core.maker.is_fit(clean))
            } else {
                (None, vec![])
            };
            let unfit = self.core.ending(kind, unfit);
            let taken = taken.ok_or_else(|| {
                let (waiter, told) = oneshot::channel();
                shelf.wait(waiter);
                told
            });
            (taken, unfit)
        };
        self.core.changed.notify_one();
        self.core.discard_all(unfit);
        match taken {
            Ok(clean) => Ok(self.core.taken(kind, clean, Source::Warm)),
            Err(told) => told.await.map_err(|_| Refused::Closing)?.map_err(Refused::Making),
        }
    }

    /// Says how many jobs of a kind are still to come, so that as many are made and no more.
    pub(crate) fn expect(&self, kind: &M::Kind, jobs: usize) {
        self.core.shelf(&mut self.core.lock(), kind).demand.expect(jobs, Instant::now());
        self.core.changed.notify_one();
    }

    /// Lets this many of a kind wait even when no job comes.
    pub(crate) fn keep(&self, kind: &M::Kind, idle_count: usize) {
        self.core.shelf(&mut self.core.lock(), kind).keep(idle_count);
        self.core.changed.notify_one();
    }

    /// How each kind stands now.
    pub(crate) fn standings(&self) -> Vec<Standing<M::Kind>> {
        let now = Instant::now();
        let idle_time = self.core.settings.idle_time;
        let shelves = self.core.lock();
        shelves
            .iter()
            .map(|(kind, shelf)| Standing {
                kind: kind.clone(),
                ready: shelf.ready(),
                waiting: shelf.waiting(),
                counts: shelf.counts(),
                target: shelf.target(now, idle_time),
                horizon: shelf.horizon(),
            })
            .collect()
    }

    /// Stops making, ends what waits, and waits until all that was being made or ended is gone too.
    pub(crate) async fn close(self) {
        self.core.closing.notify_one();
        if let Err(error) = self.reconciler.await {
            tracing::error!(%error, "the pool's reconciling loop failed");
        }
    }
}

impl<M: Maker> Core<M> {
    fn lock(&self) -> MutexGuard<'_, Shelves<M>> {
        // Nothing panics between two halves of a change.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shelf of a kind, put up if need be.
    fn shelf<'a>(&self, shelves: &'a mut Shelves<M>, kind: &M::Kind) -> &'a mut Shelf<M::Clean, Waiter<M>> {
        shelves.entry(kind.clone()).or_insert_with(|| {
            let ahead = self.maker.is_made_ahead(kind);
            Shelf::new(if ahead { Ahead::AtLeast(self.settings.idle_count) } else { Ahead::Never })
        })
    }

    fn taken(self: &Arc<Self>, kind: &M::Kind, clean: M::Clean, source: Source) -> Taken<M> {
        Taken::new(clean, source, self.slot(kind, Held::Leased))
    }

    fn slot(self: &Arc<Self>, kind: &M::Kind, held: Held) -> Slot<M> {
        Slot { core: Arc::clone(self), kind: kind.clone(), held, quarantine: false }
    }

    /// Those that a shelf has given up, each with its place.
    fn ending(self: &Arc<Self>, kind: &M::Kind, cleans: Vec<M::Clean>) -> Vec<(M::Clean, Slot<M>)> {
        cleans.into_iter().map(|clean| (clean, self.slot(kind, Held::Ending))).collect()
    }

    fn discard_all(self: &Arc<Self>, given_up: Vec<(M::Clean, Slot<M>)>) {
        for (clean, slot) in given_up {
            let core = Arc::clone(self);
            self.spawn(async move { core.maker.discard(clean, slot).await });
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits until every task has ended and holds nothing of the pool any more.
    async fn join(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            if tasks.is_empty() {
                return;
            }
            tasks.join_all().await;
        }
    }

    /// Hands a clean sandbox to who waits for it, or shelves it.
    fn deliver(self: &Arc<Self>, kind: &M::Kind, clean: M::Clean, took: Option<Duration>) {
        let mut clean = clean;
        let mut took = took;
        // Of whom went away: given up when the sandbox has another.
        let mut place = None;
        loop {
            let outcome = {
                let mut all = self.lock();
                let shelf = self.shelf(&mut all, kind);
                match took.take() {
                    Some(took) => shelf.made(clean, Instant::now(), took),
                    None => shelf.shelve(clean, Instant::now()),
                }
            };
            drop(place.take());
            let Made::Give(waiter, given) = outcome else { return };
            match waiter.send(Ok(self.taken(kind, given, Source::Cold))) {
                Ok(()) => return,
                // The job went away while it waited. No byte of it reached the sandbox, so the next may have it.
                Err(back) => {
                    let Ok((back, _, slot)) = back.map(Taken::into_parts) else { return };
                    clean = back;
                    place = Some(slot);
                }
            }
        }
    }

    /// Makes one sandbox and reports how that ended.
    async fn make_one(self: Arc<Self>, kind: M::Kind) {
        let started = Instant::now();
        match self.maker.make(&kind).await {
            Ok(clean) => self.deliver(&kind, clean, Some(started.elapsed())),
            Err(error) => {
                let (known, waiter) = match self.lock().get_mut(&kind) {
                    Some(shelf) => (shelf.is_failing(), shelf.failed(Instant::now())),
                    None => (false, None),
                };
                // Once until one can be made again: it is tried for as long as it is wanted.
                if known {
                    tracing::debug!(?kind, ?error, "still cannot make a sandbox");
                } else {
                    tracing::warn!(?kind, ?error, "cannot make a sandbox");
                }
                if let Some(waiter) = waiter {
                    // If the job went away there is nobody to tell.
                    let _ = waiter.send(Err(error));
                }
            }
        }
        self.changed.notify_one();
    }

    /// One look at all shelves: what to start, what to end.
    fn reconcile(self: &Arc<Self>) {
        let now = Instant::now();
        let Settings { idle_time, ready_ttl, max_instances, making_at_once, .. } = self.settings;
        let mut discarded = Vec::new();
        let mut started = Vec::new();
        {
            let mut shelves = self.lock();
            for (kind, shelf) in &mut *shelves {
                let keep = shelf.ceiling(now, idle_time);
                let surplus = shelf.surplus(now, ready_ttl, keep, |clean| self.maker.is_fit(clean));
                discarded.extend(self.ending(kind, surplus));
            }
            shelves.retain(|_, shelf| {
                // What the caller expects is remembered even while nothing is there.
                !shelf.is_idle() || !shelf.demand.is_stale(now, idle_time) || shelf.target(now, idle_time) > 0
            });

            let sum = |count: fn(Counts) -> usize| shelves.values().map(|shelf| count(shelf.counts())).sum();
            let (making, ending): (usize, usize) = (sum(|counts| counts.making), sum(|counts| counts.ending));
            // Only asked when there is something to make: the kernel adds it all up for each who asks.
            let places = LazyCell::new(|| self.maker.making_now(making_at_once));
            let mut room = max_instances.saturating_sub(shelves.values().map(Shelf::total).sum());
            // Who waits comes first; idle sandboxes of other kinds make room for him.
            let waiting: usize = shelves.values().map(|shelf| shelf.waiting().min(1)).sum();
            if room == 0
                && waiting > 0
                && making + ending == 0
                && let Some((kind, surplus)) = evict(&mut shelves, now)
            {
                discarded.extend(self.ending(&kind, surplus));
            }
            // A job that waits never waits behind refill work: it has as many places again of its own.
            for (serving, share) in [(true, 2), (false, 1)] {
                for (kind, shelf) in shelves.iter_mut() {
                    let target = if serving { 0 } else { shelf.target(now, idle_time) };
                    let wanted = shelf.wanted(target, now).min(room);
                    if wanted == 0 {
                        continue;
                    }
                    let free = (share * *places).saturating_sub(making + started.len());
                    for _ in 0..wanted.min(free) {
                        shelf.making();
                        started.push(kind.clone());
                        room -= 1;
                    }
                }
            }
        }
        self.discard_all(discarded);
        for kind in started {
            self.spawn(Arc::clone(self).make_one(kind));
        }
    }

    /// Whether nothing is there any more but what jobs have.
    fn is_quiet(&self) -> bool {
        let of_jobs = |counts: Counts| counts.leased + counts.quarantined;
        self.lock().values().all(|shelf| shelf.total() == of_jobs(shelf.counts()))
    }
}

/// Takes one idle sandbox out of the fullest shelf.
fn evict<K: Clone, S, W>(shelves: &mut HashMap<K, Shelf<S, W>>, now: Instant) -> Option<(K, Vec<S>)> {
    let idle = shelves.iter_mut().filter(|(_, shelf)| shelf.waiting() == 0 && shelf.ready() > 0);
    let (kind, shelf) = idle.max_by_key(|(_, shelf)| shelf.ready())?;
    Some((kind.clone(), shelf.surplus(now, Duration::MAX, shelf.ready() - 1, |_| true)))
}

async fn reconcile_forever<M: Maker>(core: Arc<Core<M>>) {
    let mut period = interval(PERIOD);
    loop {
        tokio::select! {
            () = core.closing.notified() => break,
            () = core.changed.notified() => {}
            _ = period.tick() => {}
        }
        core.reconcile();
    }
    loop {
        // Registered before the look, so that a making that ends in between is not missed.
        let changed = core.changed.notified();
        let (idle, waiters) = {
            let mut shelves = core.lock();
            let (mut idle, mut waiters) = (Vec::new(), 0);
            for (kind, shelf) in &mut *shelves {
                let (cleans, dropped) = shelf.clear();
                idle.extend(core.ending(kind, cleans));
                waiters += dropped.len();
            }
            (idle, waiters)
        };
        if waiters > 0 {
            tracing::warn!(waiters, "the pool closed while jobs waited for a sandbox");
        }
        core.discard_all(idle);
        core.join().await;
        if core.is_quiet() {
            return;
        }
        changed.await;
    }
}

#[cfg(test)]
#[path = "keeper/model.rs"]
mod model;

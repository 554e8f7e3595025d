//! Drives the keeper against a reference model, with a tier that fails, dies and dawdles as told.
//!
//! The tier is scripted: each making waits until the test ends it. After each step the model, which knows
//! every sandbox that was ever made, says what must hold: nothing is given twice, nothing is lost, capacity
//! is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Keeper, Maker, Refused, Settings, Slot, Taken};

const MAX_INSTANCES: usize = 6;

/// A sandbox of the scripted tier: its number says all.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Number(usize);

#[derive(Debug, Default)]
struct Script {
    next: AtomicUsize,
    makings: Mutex<Vec<oneshot::Sender<bool>>>,
    dead: Mutex<BTreeSet<usize>>,
    discarded: Mutex<Vec<usize>>,
    /// The places of those of them that are not gone yet.
    ending: Mutex<Vec<Slot<Arc<Script>>>>,
}

impl Maker for Arc<Script> {
    type Kind = u8;
    type Clean = Number;
    type Error = &'static str;

    async fn make(&self, _kind: &u8) -> Result<Number, &'static str> {
        let (end, told) = oneshot::channel();
        self.makings.lock().unwrap().push(end);
        match told.await {
            Ok(true) => Ok(Number(self.next.fetch_add(1, Ordering::Relaxed))),
            _ => Err("the script says no"),
        }
    }

    async fn discard(&self, clean: Number, slot: Slot<Self>) {
        self.discarded.lock().unwrap().push(clean.0);
        self.ending.lock().unwrap().push(slot);
    }

    fn is_fit(&self, clean: &mut Number) -> bool {
        !self.dead.lock().unwrap().contains(&clean.0)
    }

    fn is_made_ahead(&self, _: &Self::Kind) -> bool {
        true
    }

    fn making_now(&self, most: usize) -> usize {
        most
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A job of a kind asks for a sandbox.
    Ask(u8),
    /// The oldest making ends, well or not.
    EndMaking(bool),
    /// A job that waits goes away.
    Abandon(usize),
    /// The oldest making ends well, and so many steps of others later the job that waited longest goes away.
    AbandonLate(usize),
    /// A leased sandbox is destroyed, or cannot be.
    EndLease(usize, bool),
    /// The oldest of the discarded is destroyed, or cannot be.
    EndDiscarded(bool),
    /// A sandbox dies while it waits.
    Die(usize),
    /// Time passes.
    Wait(u64),
    /// The caller says how many jobs of a kind will come.
    Expect(u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2u8).prop_map(Step::Ask),
        5 => prop::bool::weighted(0.8).prop_map(Step::EndMaking),
        1 => (0..8usize).prop_map(Step::Abandon),
        1 => (0..5usize).prop_map(Step::AbandonLate),
        3 => ((0..8usize), prop::bool::weighted(0.9)).prop_map(|(which, ended)| Step::EndLease(which, ended)),
        2 => prop::bool::weighted(0.9).prop_map(Step::EndDiscarded),
        1 => (0..30usize).prop_map(Step::Die),
        2 => (1..5000u64).prop_map(Step::Wait),
        1 => ((0..2u8), (0..5usize)).prop_map(|(kind, jobs)| Step::Expect(kind, jobs)),
    ]
}

type Asked = JoinHandle<Result<Taken<Arc<Script>>, Refused<&'static str>>>;

/// What the test knows of every sandbox.
struct World {
    script: Arc<Script>,
    keeper: Arc<Keeper<Arc<Script>>>,
    waiting: Vec<Asked>,
    leased: Vec<(Number, Slot<Arc<Script>>)>,
    given: BTreeMap<Number, usize>,
    quarantined: usize,
}

impl World {
    fn new() -> Self {
        let script = Arc::new(Script::default());
        let settings = Settings {
            idle_count: 1,
            idle_time: Duration::from_secs(2),
            ready_ttl: Duration::from_secs(20),
            max_instances: MAX_INSTANCES,
            making_at_once: 2,
        };
        let keeper = Arc::new(Keeper::start(Arc::clone(&script), settings));
        Self {
            script,
            keeper,
            waiting: Vec::new(),
            leased: Vec::new(),
            given: BTreeMap::new(),
            quarantined: 0,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Ask(kind) => {
                let keeper = Arc::clone(&self.keeper);
                self.waiting.push(tokio::spawn(async move { keeper.take(&kind).await }));
            }
            Step::EndMaking(well) => {
                let mut makings = self.script.makings.lock().unwrap();
                if !makings.is_empty() {
                    let _ = makings.remove(0).send(well);
                }
            }
            Step::Abandon(which) => {
                if which < self.waiting.len() {
                    self.waiting.remove(which).abort();
                }
            }
            Step::AbandonLate(later) => {
                let making = self.script.makings.lock().unwrap().pop();
                if let Some(making) = making {
                    let _ = making.send(true);
                }
                for _ in 0..later {
                    tokio::task::yield_now().await;
                }
                if !self.waiting.is_empty() {
                    self.waiting.remove(0).abort();
                }
            }
            Step::EndLease(which, ended) => {
                if which < self.leased.len() {
                    let (_, slot) = self.leased.remove(which);
                    self.end(slot, ended);
                }
            }
            Step::EndDiscarded(ended) => {
                if let Some(slot) = self.oldest_discarded() {
                    self.end(slot, ended);
                }
            }
            Step::Die(which) => {
                self.script.dead.lock().unwrap().insert(which);
            }
            Step::Wait(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
            Step::Expect(kind, jobs) => self.keeper.expect(&kind, jobs),
        }
        self.settle().await;
    }

    fn end(&mut self, slot: Slot<Arc<Script>>, ended: bool) {
        if ended {
            drop(slot);
        } else {
            self.quarantined += 1;
            slot.quarantine();
        }
    }

    fn oldest_discarded(&self) -> Option<Slot<Arc<Script>>> {
        let mut ending = self.script.ending.lock().unwrap();
        (!ending.is_empty()).then(|| ending.remove(0))
    }

    /// Lets every task run until nothing more happens by itself.
    async fn settle(&mut self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let mut still = Vec::new();
        for asked in self.waiting.drain(..) {
            if !asked.is_finished() {
                still.push(asked);
                continue;
            }
            if let Ok(Ok(taken)) = asked.await {
                let (clean, _, slot) = taken.into_parts();
                *self.given.entry(clean).or_default() += 1;
                self.leased.push((clean, slot));
            }
        }
        self.waiting = still;
    }

    fn check(&self) {
        for (number, times) in &self.given {
            assert_eq!(*times, 1, "sandbox {number:?} was given {times} times");
            assert!(
                !self.script.discarded.lock().unwrap().contains(&number.0),
                "sandbox {number:?} was given and discarded"
            );
        }
        let standings = self.keeper.standings();
        let sum = |count: fn(&super::Standing<u8>) -> usize| standings.iter().map(count).sum::<usize>();
        assert_eq!(sum(|s| s.counts.leased), self.leased.len(), "leased");
        assert_eq!(sum(|s| s.counts.quarantined), self.quarantined, "quarantined");
        assert_eq!(sum(|s| s.counts.making), self.script.makings.lock().unwrap().len(), "making");
        assert_eq!(sum(|s| s.counts.ending), self.script.ending.lock().unwrap().len(), "ending");
        let gone_or_not = sum(|s| s.counts.leased + s.counts.ending + s.counts.quarantined);
        let total = sum(|s| s.ready + s.counts.making) + gone_or_not;
        assert!(total <= MAX_INSTANCES, "{total} of {MAX_INSTANCES}");
        let made = self.script.next.load(Ordering::Relaxed);
        let discarded = self.script.discarded.lock().unwrap().len();
        assert_eq!(made, sum(|s| s.ready) + self.given.len() + discarded, "every sandbox is somewhere, once");
    }

    /// Everything ends: what was made was given or discarded, and nothing is being made.
    async fn close(mut self) {
        for asked in self.waiting.drain(..) {
            asked.abort();
        }
        self.settle().await;
        self.leased.clear();
        let script = Arc::clone(&self.script);
        let keeper = Arc::into_inner(self.keeper).expect("all askers are gone");
        let closing = tokio::spawn(keeper.close());
        while !closing.is_finished() {
            for making in script.makings.lock().unwrap().drain(..) {
                let _ = making.send(true);
            }
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            let ending = std::mem::take(&mut *script.ending.lock().unwrap());
            assert!(ending.is_empty() || !closing.is_finished(), "it waits for what is being ended");
        }
        closing.await.unwrap();
        let made = script.next.load(Ordering::Relaxed);
        assert_eq!(
            made,
            self.given.len() + script.discarded.lock().unwrap().len(),
            "nothing leaks at the end"
        );
    }
}

fn in_paused_time(story: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story);
}

fn run(steps: Vec<Step>) {
    in_paused_time(async {
        let mut world = World::new();
        for step in steps {
            world.take(step).await;
            world.check();
        }
        world.close().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_twice_lost_or_above_capacity(steps in prop::collection::vec(step(), 1..80)) {
        run(steps);
    }
}

#[test]
fn a_job_that_waits_is_served_before_the_shelf_is_filled_and_in_the_order_of_asking() {
    in_paused_time(async {
        let mut world = World::new();
        for _ in 0..2 {
            world.take(Step::Ask(0)).await;
        }
        world.take(Step::EndMaking(true)).await;
        assert_eq!(world.leased.len(), 1, "the first sandbox goes to a job");
        assert!(!world.waiting[0].is_finished(), "the second job waits on");
        world.take(Step::EndMaking(true)).await;
        assert_eq!(world.leased.len(), 2);
        world.close().await;
    });
}

#[test]
fn a_failed_making_tells_the_job_that_waits_longest_and_pauses_the_next() {
    in_paused_time(async {
        let mut world = World::new();
        world.take(Step::Ask(0)).await;
        for _ in 0..4 {
            world.take(Step::EndMaking(false)).await;
        }
        assert!(world.waiting.is_empty(), "the job was told");
        assert!(world.script.makings.lock().unwrap().is_empty(), "nothing is made during the pause");
        world.take(Step::Wait(60_000)).await;
        world.close().await;
    });
}

#[test]
fn a_job_that_finds_no_room_has_one_idle_sandbox_of_another_kind_ended_and_waits_until_it_is_gone() {
    in_paused_time(async {
        let mut world = World::new();
        world.keeper.keep(&0, MAX_INSTANCES);
        world.settle().await;
        for _ in 0..MAX_INSTANCES {
            world.take(Step::EndMaking(true)).await;
        }
        let discarded = |world: &World| world.script.discarded.lock().unwrap().len();
        assert_eq!(discarded(&world), 0);
        world.take(Step::Ask(1)).await;
        world.take(Step::Wait(1500)).await;
        assert_eq!(discarded(&world), 1, "one is enough");
        assert!(world.script.makings.lock().unwrap().is_empty(), "it is not gone yet");
        world.take(Step::EndDiscarded(true)).await;
        world.take(Step::EndMaking(true)).await;
        assert_eq!(world.leased.len(), 1);
        world.check();
        world.close().await;
    });
}

#[test]
fn a_sandbox_that_no_job_saw_and_that_cannot_be_ended_keeps_its_place() {
    in_paused_time(async {
        let mut world = World::new();
        world.take(Step::Ask(0)).await;
        // One for the job, one that waits.
        world.take(Step::EndMaking(true)).await;
        world.take(Step::EndMaking(true)).await;
        world.take(Step::Die(1)).await;
        world.take(Step::Wait(1500)).await;
        world.take(Step::EndDiscarded(false)).await;
        assert_eq!(world.quarantined, 1, "it was given up");
        world.check();
        world.close().await;
    });
}

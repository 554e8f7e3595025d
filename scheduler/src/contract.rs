//! What every queue and every store must do, as tests over any of them. Each implementation brings a bed: how it is
//! made, filled, and opened again as after a crash.

pub(crate) mod shared;

use std::{future::Future, time::Duration};

use tokio::time::timeout;
use worker::{ErrorReport, JobResult, Outcome};

use crate::{
    key::{BodyDigest, JobKey},
    queue::{Pulled, Queue, Requeue},
    store::{Attempt, Begun, Cancelling, Finished, JobState, Store},
};

/// Long enough for any queue on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to see that nothing happens.
const NOTHING: Duration = Duration::from_millis(100);

/// Where a queue is tested.
pub(crate) trait QueueBed {
    type Queue: Queue;
    /// A queue with these jobs, in this order, and no more to come: it ends with the last.
    fn with(&mut self, ids: &[&str]) -> impl Future<Output = Self::Queue>;
    /// The same queue after its process died.
    fn reopen(&mut self, queue: Self::Queue) -> impl Future<Output = Self::Queue>;
}

/// Where a store is tested.
pub(crate) trait StoreBed {
    type Store: Store;
    /// A store that knows these jobs.
    fn with(&mut self, ids: &[&str]) -> impl Future<Output = Self::Store>;
    /// The same store after its process died.
    fn reopen(&mut self, store: Self::Store) -> impl Future<Output = Self::Store>;
}

async fn pull<Q: Queue>(queue: &Q) -> Option<Pulled<Q::Delivery>> {
    timeout(PATIENCE, queue.pull()).await.expect("a pull that can be answered is answered").unwrap()
}

async fn pull_one<Q: Queue>(queue: &Q, id: &str) -> Q::Delivery {
    let pulled = pull(queue).await.expect("there is a job");
    assert_eq!(pulled.key.id, id);
    pulled.delivery
}

/// The whole contract of a queue.
pub(crate) async fn queue(bed: &mut impl QueueBed) {
    jobs_come_in_order_and_end(bed).await;
    what_is_not_acknowledged_comes_again_after_a_crash(bed).await;
    what_goes_back_comes_again(bed).await;
    who_pulls_waits_for_what_may_come_back(bed).await;
    the_backlog_counts_what_was_not_delivered(bed).await;
}

async fn jobs_come_in_order_and_end(bed: &mut impl QueueBed) {
    let queue = bed.with(&["a", "b", "c"]).await;
    for id in ["a", "b", "c"] {
        let delivery = pull_one(&queue, id).await;
        queue.ack(delivery).await.unwrap();
    }
    assert!(pull(&queue).await.is_none(), "the queue ends");
}

async fn what_is_not_acknowledged_comes_again_after_a_crash(bed: &mut impl QueueBed) {
    let queue = bed.with(&["a", "b", "c"]).await;
    let done = pull_one(&queue, "a").await;
    let _lost = pull_one(&queue, "b").await;
    queue.ack(done).await.unwrap();
    let queue = bed.reopen(queue).await;
    for id in ["b", "c"] {
        let delivery = pull_one(&queue, id).await;
        queue.ack(delivery).await.unwrap();
    }
    assert!(pull(&queue).await.is_none());
}

async fn what_goes_back_comes_again(bed: &mut impl QueueBed) {
    let queue = bed.with(&["a", "b"]).await;
    let back = pull_one(&queue, "a").await;
    queue.requeue(back, Requeue::Stopping).await.unwrap();
    let mut ids = Vec::new();
    while let Some(Pulled { delivery, key, .. }) = pull(&queue).await {
        ids.push(key.id);
        queue.ack(delivery).await.unwrap();
    }
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
}

async fn who_pulls_waits_for_what_may_come_back(bed: &mut impl QueueBed) {
    let queue = bed.with(&["a"]).await;
    let held = pull_one(&queue, "a").await;
    assert!(
        timeout(NOTHING, queue.pull()).await.is_err(),
        "the job may come back, so nobody says that it is over"
    );
    let (again, ()) = tokio::join!(pull(&queue), async {
        queue.requeue(held, Requeue::Later(Duration::from_millis(10))).await.unwrap();
    });
    let held = again.expect("it came back").delivery;
    let (over, ()) = tokio::join!(pull(&queue), async { queue.ack(held).await.unwrap() });
    assert!(over.is_none());
}

async fn the_backlog_counts_what_was_not_delivered(bed: &mut impl QueueBed) {
    let queue = bed.with(&["a", "b", "c"]).await;
    assert_eq!(queue.backlog().jobs, 3);
    let first = pull_one(&queue, "a").await;
    assert_eq!(queue.backlog().jobs, 2);
    queue.requeue(first, Requeue::Stopping).await.unwrap();
    assert_eq!(queue.backlog().jobs, 3);
}

fn key(id: &str) -> JobKey {
    JobKey::new("local", id)
}

fn body(id: &str) -> BodyDigest {
    BodyDigest::of(id.as_bytes())
}

fn result(id: &str, outcome: Outcome) -> JobResult {
    JobResult::never_started(id, "local", outcome, ErrorReport::new("what", "why", "what to do"))
}

async fn begin(store: &impl Store, id: &str) -> Attempt {
    match store.begin(&key(id), &body(id)).await.unwrap() {
        Begun::Attempt(attempt) => attempt,
        other => panic!("{id}: {other:?}"),
    }
}

/// The whole contract of a store.
pub(crate) async fn store(bed: &mut impl StoreBed) {
    a_job_has_one_result_for_ever(bed).await;
    only_the_newest_attempt_can_end_a_job(bed).await;
    a_start_survives_a_crash(bed).await;
    a_start_that_is_taken_back_does_not_count(bed).await;
    a_cancelled_job_is_told_so_when_it_begins(bed).await;
    the_state_says_where_a_job_stands(bed).await;
}

async fn a_job_has_one_result_for_ever(bed: &mut impl StoreBed) {
    let store = bed.with(&["a"]).await;
    let attempt = begin(&store, "a").await;
    let first = result("a", Outcome::Failed);
    assert_eq!(store.finish(attempt, &first).await.unwrap(), Finished::Stored);
    assert_eq!(store.begin(&key("a"), &body("a")).await.unwrap(), Begun::Over);
    let store = bed.reopen(store).await;
    assert_eq!(store.begin(&key("a"), &body("a")).await.unwrap(), Begun::Over);
    assert_eq!(store.result(&key("a")).await.unwrap(), Some(first));
}

async fn only_the_newest_attempt_can_end_a_job(bed: &mut impl StoreBed) {
    let store = bed.with(&["a"]).await;
    let old = begin(&store, "a").await;
    let store = bed.reopen(store).await;
    let new = begin(&store, "a").await;
    assert!(new.epoch > old.epoch && new.number == 2 && new.interrupted, "{new:?}");
    assert_eq!(store.finish(old, &result("a", Outcome::Failed)).await.unwrap(), Finished::Stale);
    assert_eq!(store.result(&key("a")).await.unwrap(), None);
    assert_eq!(store.finish(new, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
    assert_eq!(store.result(&key("a")).await.unwrap().unwrap().outcome, Outcome::Succeeded);
}

async fn a_start_survives_a_crash(bed: &mut impl StoreBed) {
    let store = bed.with(&["a", "b"]).await;
    let former = begin(&store, "a").await;
    assert!(!former.interrupted && former.number == 1);
    let store = bed.reopen(store).await;
    assert_eq!(store.unfinished(10).await.unwrap(), [key("a")]);
    let attempt = begin(&store, "a").await;
    assert!(attempt.interrupted && attempt.number == 2 && attempt.epoch > former.epoch, "{attempt:?}");
    assert_eq!(store.finish(former, &result("a", Outcome::Failed)).await.unwrap(), Finished::Stale);
    let fresh = begin(&store, "b").await;
    assert!(!fresh.interrupted && fresh.number == 1, "{fresh:?}");
    assert_eq!(store.finish(attempt, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
}

async fn a_start_that_is_taken_back_does_not_count(bed: &mut impl StoreBed) {
    let store = bed.with(&["a"]).await;
    let attempt = begin(&store, "a").await;
    store.release(attempt).await.unwrap();
    let attempt = begin(&store, "a").await;
    assert!(!attempt.interrupted && attempt.number == 1, "{attempt:?}");
    store.release(attempt).await.unwrap();
    let store = bed.reopen(store).await;
    assert_eq!(store.unfinished(10).await.unwrap(), []);
    let attempt = begin(&store, "a").await;
    assert!(!attempt.interrupted && attempt.number == 1, "{attempt:?}");
    // An earlier attempt that may have run is not undone with the later one.
    let store = bed.reopen(store).await;
    let second = begin(&store, "a").await;
    store.release(second).await.unwrap();
    let store = bed.reopen(store).await;
    let attempt = begin(&store, "a").await;
    assert!(attempt.interrupted && attempt.number == 2, "{attempt:?}");
}

async fn a_cancelled_job_is_told_so_when_it_begins(bed: &mut impl StoreBed) {
    let store = bed.with(&["a", "b"]).await;
    assert_eq!(store.cancel(&key("a")).await.unwrap(), Cancelling::Noted);
    let store = bed.reopen(store).await;
    let attempt = begin(&store, "a").await;
    assert!(attempt.cancelled && !attempt.interrupted && attempt.number == 1, "{attempt:?}");
    assert_eq!(store.finish(attempt, &result("a", Outcome::Cancelled)).await.unwrap(), Finished::Stored);
    assert_eq!(store.cancel(&key("a")).await.unwrap(), Cancelling::Over);
    assert!(!begin(&store, "b").await.cancelled);
}

async fn the_state_says_where_a_job_stands(bed: &mut impl StoreBed) {
    let store = bed.with(&["a", "b"]).await;
    assert_eq!(store.state(&key("no such job")).await.unwrap(), None);
    assert_eq!(store.state(&key("a")).await.unwrap(), Some(JobState::Waiting { cancelled: false }));
    let attempt = begin(&store, "a").await;
    assert_eq!(store.state(&key("a")).await.unwrap(), Some(JobState::Begun { attempt: 1 }));
    store.finish(attempt, &result("a", Outcome::TimedOut)).await.unwrap();
    assert_eq!(store.state(&key("a")).await.unwrap(), Some(JobState::Over { outcome: Outcome::TimedOut }));
    store.cancel(&key("b")).await.unwrap();
    assert_eq!(store.state(&key("b")).await.unwrap(), Some(JobState::Waiting { cancelled: true }));
}

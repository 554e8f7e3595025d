//! What every store that several hosts share must do, beyond what every store does. The bed brings hosts that can die
//! and a server that can die, forget, and lose answers.

use std::{
    collections::HashSet,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Barrier, time::sleep};
use worker::Outcome;

use super::{begin, body, key, result};
use crate::{
    key::BodyDigest,
    store::{Attempt, Begun, Cancelling, Finished, JobState, Store},
};

/// Long enough for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A lease that never runs out while a test runs.
const LONG: Duration = Duration::from_secs(600);
/// One that runs out soon.
const SHORT: Duration = Duration::from_millis(400);
/// How often two hosts race for one job.
const RACES: usize = 200;

/// How the server comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comeback {
    /// After an orderly end.
    Stopped,
    /// After `kill -9`.
    Killed,
    /// After `kill -9`, and all since [`SharedBed::mark`] was never on disk.
    Forgetful,
}

/// Where a shared store is tested.
pub(crate) trait SharedBed {
    type Store: Store + Clone;
    /// An empty store, whose hosts' leases last so long.
    fn fresh(&mut self, lease: Duration) -> impl Future<Output = ()>;
    /// One more host.
    fn host(&mut self) -> impl Future<Output = Self::Store>;
    /// A host behind a wire of its own.
    fn wired_host(&mut self) -> impl Future<Output = Self::Store>;
    /// From now on every answer on the wire is lost, or none is. How many were so far.
    fn lose_answers(&mut self, losing: bool) -> usize;
    /// The host dies; nobody is told.
    fn die(&mut self, store: Self::Store) -> impl Future<Output = ()>;
    /// The host died and was started again.
    fn restart(&mut self, store: Self::Store) -> impl Future<Output = Self::Store>;
    /// A moment to which a forgetful server falls back.
    fn mark(&mut self);
    /// The server goes.
    fn server_ends(&mut self, how: Comeback);
    /// It is back.
    fn server_returns(&mut self);
}

/// The whole contract of a shared store.
pub(crate) async fn store(bed: &mut impl SharedBed) {
    a_job_that_another_has_is_busy(bed).await;
    a_dead_hosts_job_is_taken_over_when_its_lease_is_over(bed).await;
    a_host_that_was_started_again_has_its_jobs_at_once(bed).await;
    what_a_dead_host_says_late_changes_nothing(bed).await;
    an_id_belongs_to_the_first_body(bed).await;
    a_cancellation_comes_from_any_host(bed).await;
    one_of_two_gets_the_job(bed).await;
    answers_that_are_lost_change_nothing(bed).await;
    a_call_waits_for_the_server(bed).await;
    leases_outlive_a_server_that_was_away(bed).await;
    what_was_answered_outlives_the_server(bed).await;
    a_forgotten_start_ends_once(bed).await;
    a_forgotten_result_is_stored_again(bed).await;
    a_forgotten_result_wins_over_a_later_start(bed).await;
    a_forgotten_release_is_said_again(bed).await;
    a_forgotten_takeover_still_wins(bed).await;
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Begins a job as soon as nobody else has it.
async fn begin_when_free(store: &impl Store, id: &str) -> Attempt {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.begin(&key(id), &body(id)).await.unwrap() {
            Begun::Attempt(attempt) => return attempt,
            Begun::Busy(again) => {
                assert!(Instant::now() < deadline, "{id} is busy for {PATIENCE:?}");
                sleep(again.min(Duration::from_millis(100))).await;
            }
            other => panic!("{id}: {other:?}"),
        }
    }
}

async fn is_busy(store: &impl Store, id: &str) -> bool {
    matches!(store.begin(&key(id), &body(id)).await.unwrap(), Begun::Busy(_))
}

async fn outcome(store: &impl Store, id: &str) -> Option<Outcome> {
    store.result(&key(id)).await.unwrap().map(|result| result.outcome)
}

async fn a_job_that_another_has_is_busy(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let (a, b) = (bed.host().await, bed.host().await);
    let attempt = begin(&a, "a").await;
    assert!(is_busy(&b, "a").await);
    assert!(is_busy(&a, "a").await, "the same message may have come twice to one host");
    assert_eq!(b.state(&key("a")).await.unwrap(), Some(JobState::Begun { attempt: 1 }));
    assert_eq!(a.finish(attempt, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
    assert_eq!(b.begin(&key("a"), &body("a")).await.unwrap(), Begun::Over);
    // And what is given back is free for everybody.
    let attempt = begin(&a, "b").await;
    a.release(attempt).await.unwrap();
    let attempt = begin(&b, "b").await;
    assert!(!attempt.interrupted && attempt.number == 1, "{attempt:?}");
}

async fn a_dead_hosts_job_is_taken_over_when_its_lease_is_over(bed: &mut impl SharedBed) {
    bed.fresh(SHORT).await;
    let (a, b) = (bed.host().await, bed.host().await);
    let old = begin(&a, "a").await;
    let ghost = a.clone();
    bed.die(a).await;
    let new = begin_when_free(&b, "a").await;
    assert!(new.interrupted && new.number == 2 && new.epoch > old.epoch, "{new:?}");
    assert_eq!(ghost.finish(old, &result("a", Outcome::Failed)).await.unwrap(), Finished::Stale);
    assert_eq!(b.finish(new, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
    assert_eq!(outcome(&b, "a").await, Some(Outcome::Succeeded));
}

async fn a_host_that_was_started_again_has_its_jobs_at_once(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.host().await;
    begin(&a, "a").await;
    let a = bed.restart(a).await;
    let attempt = begin(&a, "a").await;
    assert!(attempt.interrupted && attempt.number == 2, "{attempt:?}");
}

async fn what_a_dead_host_says_late_changes_nothing(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.host().await;
    let old = begin(&a, "a").await;
    let ghost = a.clone();
    let b = bed.restart(a).await;
    let new = begin(&b, "a").await;
    ghost.release(old).await.unwrap();
    assert_eq!(b.state(&key("a")).await.unwrap(), Some(JobState::Begun { attempt: 2 }));
    assert!(is_busy(&b, "a").await);
    assert_eq!(b.finish(new, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
}

async fn an_id_belongs_to_the_first_body(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let (a, b) = (bed.host().await, bed.host().await);
    let other = BodyDigest::of(b"another body");
    let attempt = begin(&a, "a").await;
    assert_eq!(b.begin(&key("a"), &other).await.unwrap(), Begun::Taken);
    a.finish(attempt, &result("a", Outcome::Succeeded)).await.unwrap();
    assert_eq!(b.begin(&key("a"), &other).await.unwrap(), Begun::Taken);
    assert_eq!(b.begin(&key("a"), &body("a")).await.unwrap(), Begun::Over);
}

async fn a_cancellation_comes_from_any_host(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let (a, b) = (bed.host().await, bed.host().await);
    assert_eq!(b.cancel(&key("waits")).await.unwrap(), Cancelling::Noted);
    assert_eq!(a.state(&key("waits")).await.unwrap(), Some(JobState::Waiting { cancelled: true }));
    let attempt = begin(&a, "waits").await;
    assert!(attempt.cancelled, "{attempt:?}");
    assert_eq!(a.finish(attempt, &result("waits", Outcome::Cancelled)).await.unwrap(), Finished::Stored);
    assert_eq!(b.cancel(&key("waits")).await.unwrap(), Cancelling::Over);
}

async fn one_of_two_gets_the_job(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let hosts = [bed.host().await, bed.host().await];
    for race in 0..RACES {
        let id = format!("race-{race}");
        let start = Arc::new(Barrier::new(2));
        let racers = hosts.clone().map(|store| {
            let (start, id) = (Arc::clone(&start), id.clone());
            tokio::spawn(async move {
                start.wait().await;
                let begun = store.begin(&key(&id), &body(&id)).await.unwrap();
                (store, begun)
            })
        });
        let mut winners = 0;
        for racer in racers {
            let (store, begun) = racer.await.unwrap();
            match begun {
                Begun::Attempt(attempt) => {
                    winners += 1;
                    let ended = store.finish(attempt, &result(&id, Outcome::Succeeded)).await.unwrap();
                    assert_eq!(ended, Finished::Stored);
                }
                Begun::Busy(_) | Begun::Over => {}
                Begun::Taken => panic!("{id}"),
            }
        }
        assert_eq!(winners, 1, "{id}");
    }
}

/// Each call loses its first answers; each is asked again until one arrives, and happens once.
async fn answers_that_are_lost_change_nothing(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let (a, b) = (bed.wired_host().await, bed.host().await);
    begin(&a, "warm").await;
    let attempt = deafly(bed, begin(&a, "a")).await;
    assert!(!attempt.interrupted && attempt.number == 1, "asked twice, begun once: {attempt:?}");
    assert!(is_busy(&b, "a").await);
    deafly(bed, a.release(attempt)).await.unwrap();
    assert_eq!(b.state(&key("a")).await.unwrap(), Some(JobState::Waiting { cancelled: false }));
    let attempt = deafly(bed, begin(&a, "a")).await;
    assert!(!attempt.interrupted && attempt.number == 1, "released once: {attempt:?}");
    let ended = deafly(bed, a.finish(attempt, &result("a", Outcome::Succeeded))).await.unwrap();
    assert_eq!(ended, Finished::Stored, "whoever asks again hears that it was stored");
    assert_eq!(outcome(&b, "a").await, Some(Outcome::Succeeded));
    assert_eq!(deafly(bed, a.cancel(&key("b"))).await.unwrap(), Cancelling::Noted);
}

/// Carries out a call whose first two answers are lost.
async fn deafly<T>(bed: &mut impl SharedBed, call: impl Future<Output = T>) -> T {
    let before = bed.lose_answers(true);
    tokio::pin!(call);
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::select! {
            _ = &mut call => panic!("it was answered although every answer is lost"),
            () = sleep(Duration::from_millis(5)) => {}
        }
        if bed.lose_answers(true) >= before + 2 {
            break;
        }
        assert!(Instant::now() < deadline, "no answer was lost");
    }
    bed.lose_answers(false);
    tokio::time::timeout(PATIENCE, call).await.expect("an answer arrives")
}

async fn a_call_waits_for_the_server(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.host().await;
    let first = begin(&a, "first").await;
    for how in [Comeback::Stopped, Comeback::Killed] {
        bed.server_ends(how);
        let id = format!("{how:?}");
        let waiting = {
            let (a, id) = (a.clone(), id.clone());
            tokio::spawn(async move { begin(&a, &id).await })
        };
        sleep(Duration::from_millis(200)).await;
        assert!(!waiting.is_finished(), "there is nobody who could have answered");
        bed.server_returns();
        let attempt = waiting.await.unwrap();
        assert_eq!(a.finish(attempt, &result(&id, Outcome::Failed)).await.unwrap(), Finished::Stored);
    }
    assert_eq!(a.finish(first, &result("first", Outcome::Failed)).await.unwrap(), Finished::Stored);
}

/// The hosts could not renew their leases while nobody was there to hear them. That is no death.
async fn leases_outlive_a_server_that_was_away(bed: &mut impl SharedBed) {
    let lease = Duration::from_secs(4);
    bed.fresh(lease).await;
    let a = bed.host().await;
    let attempt = begin(&a, "a").await;
    bed.server_ends(Comeback::Stopped);
    sleep(lease + Duration::from_secs(1)).await;
    bed.server_returns();
    // Whoever comes first may be somebody else.
    let b = bed.host().await;
    assert!(is_busy(&b, "a").await);
    assert_eq!(a.finish(attempt, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
}

async fn what_was_answered_outlives_the_server(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let (a, b) = (bed.host().await, bed.host().await);
    let mut answered = HashSet::new();
    for number in 0..20 {
        let id = format!("job-{number}");
        let attempt = begin(&a, &id).await;
        a.finish(attempt, &result(&id, Outcome::Succeeded)).await.unwrap();
        answered.insert(id);
    }
    let open = begin(&a, "open").await;
    bed.server_ends(Comeback::Killed);
    bed.server_returns();
    for id in &answered {
        assert_eq!(outcome(&b, id).await, Some(Outcome::Succeeded), "{id}");
    }
    assert!(is_busy(&b, "open").await);
    assert_eq!(a.finish(open, &result("open", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
}

/// The server comes back without what it answered since the mark.
fn forget(bed: &mut impl SharedBed) {
    bed.server_ends(Comeback::Forgetful);
    bed.server_returns();
}

async fn a_forgotten_start_ends_once(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let (a, b) = (bed.host().await, bed.host().await);
    bed.mark();
    let attempt = begin(&a, "a").await;
    let lost = begin(&a, "lost").await;
    forget(bed);
    // Its owner speaks to the server first, so the other host finds the job taken.
    a.state(&key("a")).await.unwrap();
    assert!(is_busy(&b, "a").await);
    assert_eq!(a.finish(attempt, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
    assert_eq!(b.begin(&key("a"), &body("a")).await.unwrap(), Begun::Over);
    assert_eq!(
        b.begin(&key("a"), &BodyDigest::of(b"other")).await.unwrap(),
        Begun::Taken,
        "the body was remembered too"
    );
    // The owner dies before it can say anything: then the job has never begun, as far as anybody knows.
    bed.server_ends(Comeback::Forgetful);
    let ghost = a.clone();
    bed.die(a).await;
    bed.server_returns();
    let again = begin(&b, "lost").await;
    assert!(again.epoch > lost.epoch, "an epoch is not given out twice");
    assert_eq!(b.finish(again, &result("lost", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
    assert_eq!(ghost.finish(lost, &result("lost", Outcome::Failed)).await.unwrap(), Finished::Stale);
    assert_eq!(outcome(&b, "lost").await, Some(Outcome::Succeeded));
}

async fn a_forgotten_result_is_stored_again(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.host().await;
    let begun_before = begin(&a, "early").await;
    bed.mark();
    a.finish(begun_before, &result("early", Outcome::Failed)).await.unwrap();
    let attempt = begin(&a, "late").await;
    a.finish(attempt, &result("late", Outcome::TimedOut)).await.unwrap();
    forget(bed);
    let b = bed.host().await;
    for (id, ended) in [("early", Outcome::Failed), ("late", Outcome::TimedOut)] {
        until("the result is there again", || async { outcome(&b, id).await == Some(ended) }).await;
        assert_eq!(b.begin(&key(id), &body(id)).await.unwrap(), Begun::Over);
    }
    assert_eq!(b.unfinished(10).await.unwrap(), []);
}

/// Its owner may have told the world. Of the two, it is the later attempt that is stale.
async fn a_forgotten_result_wins_over_a_later_start(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.wired_host().await;
    bed.mark();
    let attempt = begin(&a, "a").await;
    a.finish(attempt, &result("a", Outcome::Succeeded)).await.unwrap();
    // The owner cannot be heard for a while, and another host gets the same message.
    bed.lose_answers(true);
    bed.server_ends(Comeback::Forgetful);
    let b = bed.host().await;
    bed.server_returns();
    let later = b.begin(&key("a"), &body("a")).await.unwrap();
    bed.lose_answers(false);
    until("the first result is there again", || async { outcome(&b, "a").await == Some(Outcome::Succeeded) })
        .await;
    match later {
        Begun::Attempt(later) => {
            assert_eq!(b.finish(later, &result("a", Outcome::Failed)).await.unwrap(), Finished::Stale);
        }
        // What the owner says may arrive although what it is answered does not.
        Begun::Over => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(outcome(&b, "a").await, Some(Outcome::Succeeded));
}

async fn a_forgotten_release_is_said_again(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.host().await;
    let attempt = begin(&a, "a").await;
    bed.mark();
    a.release(attempt).await.unwrap();
    forget(bed);
    let b = bed.host().await;
    until("nobody has the job", || async {
        b.state(&key("a")).await.unwrap() == Some(JobState::Waiting { cancelled: false })
    })
    .await;
    let attempt = begin(&b, "a").await;
    assert!(!attempt.interrupted && attempt.number == 1, "{attempt:?}");
}

async fn a_forgotten_takeover_still_wins(bed: &mut impl SharedBed) {
    bed.fresh(LONG).await;
    let a = bed.host().await;
    let old = begin(&a, "a").await;
    let ghost = a.clone();
    let b = bed.restart(a).await;
    bed.mark();
    let new = begin(&b, "a").await;
    forget(bed);
    b.state(&key("a")).await.unwrap();
    assert_eq!(ghost.finish(old, &result("a", Outcome::Failed)).await.unwrap(), Finished::Stale);
    assert_eq!(b.finish(new, &result("a", Outcome::Succeeded)).await.unwrap(), Finished::Stored);
}

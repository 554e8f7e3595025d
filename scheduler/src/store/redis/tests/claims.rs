//! Long jobs.

use std::time::Duration;

use super::bed::{Bed, until};
use crate::{
    key::JobKey,
    store::redis::{Claim, Claiming, RedisStore, RedisStoreError},
};

/// Whose jobs they are, and of which tier.
const LANE: &str = "mayfly.jobs.local.chroot.normal";
const LONG: Duration = Duration::from_secs(600);

fn key(id: &str) -> JobKey {
    JobKey::new("local", id)
}

async fn claim(store: &RedisStore, id: &str) -> Claim {
    match store.claim(&key(id), LANE, format!("record of {id}").into_bytes()).await.unwrap() {
        Claiming::Claimed(claim) => claim,
        Claiming::Held => panic!("{id} is held"),
    }
}

#[tokio::test]
async fn a_claim_passes_on_when_its_owner_dies_and_to_one_host_only() {
    let Some(mut bed) = Bed::start("a_claim_passes_on_when_its_owner_dies_and_to_one_host_only") else {
        return;
    };
    bed.begin_anew(LONG);
    let (a, b, c) = (bed.one_more(), bed.one_more(), bed.one_more());
    let mut former = Vec::new();
    for number in 0..20 {
        former.push(claim(&a, &format!("job-{number}")).await);
    }
    assert_eq!(b.take_expired(LANE, 100).await.unwrap(), [], "their owner lives");
    assert_eq!(b.claim(&key("job-0"), LANE, Vec::new()).await.unwrap(), Claiming::Held);
    let ghost = a.clone();
    let dead = Bed::silence(a).await;
    b.bury(&dead).await.unwrap();
    assert_eq!(b.orphans().await.unwrap(), [(LANE.to_owned(), 20)]);
    assert_eq!(b.take_expired("another", 3).await.unwrap(), [], "of this lane only");
    assert_eq!(b.take_expired(LANE, 3).await.unwrap().len(), 3, "no more than was asked for");
    let (of_b, of_c) = tokio::join!(b.take_expired(LANE, 100), c.take_expired(LANE, 100));
    let (of_b, of_c) = (of_b.unwrap(), of_c.unwrap());
    assert_eq!(of_b.len() + of_c.len(), 17);
    let one = of_b.iter().chain(&of_c).next().unwrap();
    assert_eq!(one.record, format!("record of {}", one.job.id).into_bytes());
    let old = former.iter().find(|old| old.job == one.job).unwrap();
    assert!(one.epoch > old.epoch);
    assert!(!ghost.forget(old).await.unwrap(), "it is another's by now");
    assert!(b.forget(one).await.unwrap());
    assert!(b.forget(one).await.unwrap(), "asked again after a lost answer");
}

#[tokio::test]
async fn a_claim_outlives_its_lease_and_the_server() {
    let Some(mut bed) = Bed::start("a_claim_outlives_its_lease_and_the_server") else { return };
    bed.begin_anew(Duration::from_millis(500));
    let (a, b) = (bed.one_more(), bed.one_more());
    let held = claim(&a, "job").await;
    bed.server.kill().unwrap();
    bed.server.start_again().unwrap();
    Bed::silence(a).await;
    let mut taken = Vec::new();
    until("its lease is over", async || {
        taken = b.take_expired(LANE, 10).await.unwrap();
        !taken.is_empty()
    })
    .await;
    assert_eq!((taken.len(), &taken[0].record), (1, &held.record));
    assert!(b.forget(&taken[0]).await.unwrap());
    assert_eq!(b.take_expired(LANE, 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_claim_that_is_handed_back_is_anybodys_after_a_while() {
    let Some(mut bed) = Bed::start("a_claim_that_is_handed_back_is_anybodys_after_a_while") else { return };
    bed.begin_anew(LONG);
    let (a, b) = (bed.one_more(), bed.one_more());
    let held = claim(&a, "job").await;
    assert!(a.hand_back(&held, Duration::from_secs(3600)).await.unwrap());
    assert_eq!(b.take_expired(LANE, 10).await.unwrap(), []);
    assert!(a.hand_back(&held, Duration::ZERO).await.unwrap());
    let taken = b.take_expired(LANE, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert!(!a.hand_back(&held, Duration::ZERO).await.unwrap(), "it is another's by now");
}

#[tokio::test]
async fn a_claim_that_its_owner_lost_sight_of_is_handed_back() {
    let Some(mut bed) = Bed::start("a_claim_that_its_owner_lost_sight_of_is_handed_back") else { return };
    bed.begin_anew(Duration::from_secs(1));
    let (a, b) = (bed.one_more(), bed.one_more());
    let held = claim(&a, "job").await;
    a.shared.held.unclaimed(&held.job, held.epoch);
    until("it comes to the other", async || !b.take_expired(LANE, 10).await.unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_redis_that_may_forget_takes_no_claim() {
    let test = "a_redis_that_may_forget_takes_no_claim";
    let Some(mut bed) = Bed::start_with(test, &[("appendfsync", "everysec")]) else { return };
    bed.begin_anew(LONG);
    match bed.one_more().claim(&key("job"), LANE, Vec::new()).await {
        Err(RedisStoreError::Forgetful(why)) => assert!(why.contains("appendfsync"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_claim_without_owner_passes_to_the_same_message_and_to_no_other() {
    let test = "a_claim_without_owner_passes_to_the_same_message_and_to_no_other";
    let Some(mut bed) = Bed::start(test) else { return };
    bed.begin_anew(LONG);
    let (a, b) = (bed.one_more(), bed.one_more());
    let held = claim(&a, "job").await;
    let dead = Bed::silence(a).await;
    b.bury(&dead).await.unwrap();
    let other = b.claim(&key("job"), LANE, b"of somebody who waits elsewhere".to_vec()).await.unwrap();
    assert_eq!(other, Claiming::Held);
    assert!(claim(&b, "job").await.epoch > held.epoch);
    assert_eq!(b.orphans().await.unwrap(), []);
}

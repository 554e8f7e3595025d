//! Hosts, cancellations, counts, what Redis may not do.

use std::time::Duration;

use pool::Tier;
use servers::Proxy;
use tokio::time::timeout;
use worker::{ErrorReport, JobResult, Outcome};

use super::bed::{Bed, until};
use crate::{
    key::{BodyDigest, JobKey},
    store::{
        Attempt, Begun, Cancelling, Finished, JobState, Store,
        redis::{Durability, Health, HostFacts, RedisAddress, RedisSettings, RedisStore, RedisStoreError},
    },
};

const LONG: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);

fn key(id: &str) -> JobKey {
    JobKey::new("local", id)
}

async fn begin(store: &RedisStore, job: &JobKey) -> Attempt {
    match store.begin(job, &BodyDigest::of(b"")).await.unwrap() {
        Begun::Attempt(attempt) => attempt,
        other => panic!("{job}: {other:?}"),
    }
}

fn result(id: &str) -> JobResult {
    JobResult::never_started(id, "local", Outcome::Failed, ErrorReport::new("what", "why", "what to do"))
}

#[tokio::test]
async fn hosts_are_listed_with_what_they_say_and_whether_they_live() {
    let Some(mut bed) = Bed::start("hosts_are_listed_with_what_they_say_and_whether_they_live") else {
        return;
    };
    bed.begin_anew(Duration::from_millis(500));
    let (a, b) = (bed.one_more(), bed.one_more());
    a.set_facts(HostFacts {
        host: "a".to_owned(),
        tiers: vec!["chroot".to_owned()],
        slots: 2,
        ..HostFacts::default()
    });
    begin(&a, &key("job")).await;
    until("both are there and one runs a job", async || {
        let hosts = b.hosts().await.unwrap();
        hosts.len() == 2 && hosts[0].facts.host == "a" && hosts[0].facts.running == 1
    })
    .await;
    assert_eq!(b.hosts().await.unwrap()[0].facts.tiers, ["chroot"]);
    assert_eq!(b.running().await.unwrap(), [("local".to_owned(), 1)]);
    Bed::silence(a).await;
    until("the one is dead and its job does not count", async || {
        let hosts = b.hosts().await.unwrap();
        let dead = hosts.iter().all(|host| host.facts.host != "a" || host.alive_for.is_none());
        dead && b.running().await.unwrap().is_empty()
    })
    .await;
    assert!(b.hosts().await.unwrap().iter().any(|host| host.alive_for.is_some()));
    until("it is forgotten", async || b.hosts().await.unwrap().len() == 1).await;
    b.close().await;
    let onlooker = RedisStore::look_on(bed.settings()).unwrap();
    assert_eq!(onlooker.hosts().await.unwrap(), [], "who leaves is not listed");
}

#[tokio::test]
async fn running_jobs_are_counted_for_each_tenant() {
    let Some(mut bed) = Bed::start("running_jobs_are_counted_for_each_tenant") else { return };
    bed.begin_anew(LONG);
    let (a, b) = (bed.one_more(), bed.one_more());
    let (one, two) = (JobKey::new("x", "1"), JobKey::new("x", "2"));
    let first = begin(&a, &one).await;
    let second = begin(&b, &two).await;
    begin(&b, &JobKey::new("y", "1")).await;
    let counts = async || {
        let mut counts = a.running().await.unwrap();
        counts.sort();
        counts.into_iter().map(|(tenant, count)| format!("{tenant}={count}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(counts().await, "x=2 y=1");
    b.release(second).await.unwrap();
    assert_eq!(counts().await, "x=1 y=1");
    a.finish(first, &result("1")).await.unwrap();
    assert_eq!(counts().await, "y=1");
    let dead = Bed::silence(b).await;
    a.bury(&dead).await.unwrap();
    assert_eq!(counts().await, "");
}

#[tokio::test]
async fn whoever_runs_a_job_hears_that_it_is_cancelled() {
    let Some(mut bed) = Bed::start("whoever_runs_a_job_hears_that_it_is_cancelled") else { return };
    // The message alone: no heartbeat comes in time.
    bed.begin_anew(LONG);
    let (a, b) = (bed.one_more(), RedisStore::look_on(bed.settings()).unwrap());
    let mut heard = a.cancellations();
    let attempt = begin(&a, &key("quick")).await;
    let mut subscribers = redis::cmd("PUBSUB");
    subscribers.arg("NUMSUB").arg(&a.shared.keys.channel);
    until("it listens", async || {
        let (_, count): (String, u64) = b.shared.commands.ask(&subscribers).await.unwrap();
        count == 1
    })
    .await;
    assert_eq!(b.cancel(&key("quick")).await.unwrap(), Cancelling::Noted);
    assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap(), Some(key("quick")));
    assert_eq!(a.finish(attempt, &result("quick")).await.unwrap(), Finished::Stored);
}

#[tokio::test]
async fn a_cancellation_whose_message_is_lost_is_heard_all_the_same() {
    let Some(mut bed) = Bed::start("a_cancellation_whose_message_is_lost_is_heard_all_the_same") else {
        return;
    };
    bed.begin_anew(Duration::from_secs(2));
    let (a, b) = (bed.one_more(), RedisStore::look_on(bed.settings()).unwrap());
    begin(&a, &key("job")).await;
    assert_eq!(b.cancel(&key("job")).await.unwrap(), Cancelling::Noted);
    // Whoever listens only now has missed the message.
    until("the message has been sent", async || {
        b.state(&key("job")).await.unwrap() == Some(JobState::Begun { attempt: 1 })
    })
    .await;
    let mut heard = a.cancellations();
    assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap(), Some(key("job")));
    assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap(), Some(key("job")), "until it has its result");
}

#[tokio::test]
async fn an_attempt_that_its_owner_does_not_know_is_given_up() {
    let Some(mut bed) = Bed::start("an_attempt_that_its_owner_does_not_know_is_given_up") else { return };
    bed.begin_anew(Duration::from_secs(1));
    let (a, b) = (bed.one_more(), bed.one_more());
    let attempt = begin(&a, &key("job")).await;
    assert!(matches!(b.begin(&key("job"), &BodyDigest::of(b"")).await.unwrap(), Begun::Busy(_)));
    // As after a question whose asker was gone before its answer came.
    a.shared.held.dropped(&attempt.job, attempt.epoch);
    until("somebody else gets it while the owner lives", async || {
        matches!(b.begin(&key("job"), &BodyDigest::of(b"")).await.unwrap(), Begun::Attempt(_))
    })
    .await;
}

#[tokio::test]
async fn an_attempt_newer_than_any_that_redis_knows_gives_the_job_its_result() {
    let test = "an_attempt_newer_than_any_that_redis_knows_gives_the_job_its_result";
    let Some(mut bed) = Bed::start(test) else { return };
    bed.begin_anew(LONG);
    let store = bed.one_more();
    for (id, ask) in [("forgotten", "DEL"), ("fallen back", "HSET")] {
        let job = key(&id.replace(' ', "-"));
        let attempt = begin(&store, &job).await;
        let mut fall = redis::cmd(ask);
        fall.arg(store.shared.keys.job(&job));
        if ask == "HSET" {
            fall.arg("epoch").arg(attempt.epoch - 1).arg("owner").arg("somebody");
        }
        store.shared.commands.ask::<u64>(&fall).await.unwrap();
        assert_eq!(store.finish(attempt, &result(&job.id)).await.unwrap(), Finished::Stored, "{id}");
        assert_eq!(store.begin(&job, &BodyDigest::of(b"")).await.unwrap(), Begun::Over, "{id}");
        assert_eq!(store.begin(&job, &BodyDigest::of(b"other")).await.unwrap(), Begun::Taken, "{id}");
    }
}

#[tokio::test]
async fn a_job_is_known_from_when_it_was_sent() {
    let Some(mut bed) = Bed::start("a_job_is_known_from_when_it_was_sent") else { return };
    bed.begin_anew(LONG);
    let (host, producer) = (bed.one_more(), RedisStore::look_on(bed.settings()).unwrap());
    assert!(producer.submitted(&key("job"), None).await.unwrap());
    assert!(!producer.submitted(&key("job"), None).await.unwrap(), "its id is known already");
    assert_eq!(producer.state(&key("job")).await.unwrap(), Some(JobState::Waiting { cancelled: false }));
    begin(&host, &key("job")).await;
    assert_eq!(producer.state(&key("job")).await.unwrap(), Some(JobState::Begun { attempt: 1 }));
    assert_eq!(producer.state(&JobKey::new("other", "job")).await.unwrap(), None);
    let refused = producer.begin(&key("x"), &BodyDigest::of(b"")).await.unwrap_err();
    assert!(worker::causes(&refused).contains("look on"), "{refused:?}");
}

#[tokio::test]
async fn results_expire_before_outcomes_do() {
    let Some(mut bed) = Bed::start("results_expire_before_outcomes_do") else { return };
    bed.begin_anew(LONG);
    let settings = RedisSettings { results_for: Duration::from_millis(300), ..bed.settings() };
    let store = RedisStore::open(settings, "instance", HostFacts::default()).unwrap();
    let attempt = begin(&store, &key("job")).await;
    store.finish(attempt, &result("job")).await.unwrap();
    until("the result is gone", async || store.result(&key("job")).await.unwrap().is_none()).await;
    assert_eq!(store.state(&key("job")).await.unwrap(), Some(JobState::Over { outcome: Outcome::Failed }));
    assert_eq!(store.begin(&key("job"), &BodyDigest::of(b"")).await.unwrap(), Begun::Over);
}

#[tokio::test]
async fn a_job_that_nobody_came_for_is_forgotten_in_its_time() {
    let Some(mut bed) = Bed::start("a_job_that_nobody_came_for_is_forgotten_in_its_time") else { return };
    bed.begin_anew(LONG);
    let settings = RedisSettings { outcomes_for: Duration::from_millis(300), ..bed.settings() };
    let store = RedisStore::open(settings, "instance", HostFacts::default()).unwrap();
    begin(&store, &key("job")).await;
    until("it is forgotten", async || store.unfinished(10).await.unwrap().is_empty()).await;
    assert_eq!(store.running().await.unwrap(), []);
    assert_eq!(store.state(&key("job")).await.unwrap(), None);
}

#[tokio::test]
async fn a_redis_that_swallows_everything_is_left_and_found_again() {
    let Some(mut bed) = Bed::start("a_redis_that_swallows_everything_is_left_and_found_again") else {
        return;
    };
    bed.begin_anew(LONG);
    let proxy = Proxy::start(bed.server.port()).unwrap();
    let address = RedisAddress::new(format!("redis://127.0.0.1:{}", proxy.port()));
    let settings = RedisSettings { address, patience: Duration::from_millis(300), ..bed.settings() };
    let store = RedisStore::open(settings, "wired", HostFacts::default()).unwrap();
    let attempt = begin(&store, &key("job")).await;
    proxy.stall(true);
    let mut health = store.health();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.finish(attempt, &result("job")).await.unwrap() })
    };
    let down = timeout(PATIENCE, health.wait_for(|health| matches!(health, Health::Down { .. })));
    assert!(down.await.is_ok(), "it is said that nothing is answered");
    assert!(!waiting.is_finished());
    // What was swallowed arrives late; the connection that it came by has been left by then.
    proxy.stall(false);
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap(), Finished::Stored);
    timeout(PATIENCE, health.wait_for(|health| matches!(health, Health::Connected))).await.unwrap().unwrap();
    proxy.slice(Some(1));
    proxy.cut();
    let attempt = begin(&store, &key("sliced")).await;
    assert_eq!(store.finish(attempt, &result("sliced")).await.unwrap(), Finished::Stored);
}

#[tokio::test]
async fn a_redis_without_memory_is_waited_for() {
    let Some(mut bed) = Bed::start("a_redis_without_memory_is_waited_for") else { return };
    bed.begin_anew(LONG);
    let store = bed.one_more();
    let attempt = begin(&store, &key("job")).await;
    let limit = async |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        store.shared.commands.ask::<()>(&set).await.unwrap();
    };
    limit("1").await;
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.finish(attempt, &result("job")).await.unwrap() })
    };
    let mut health = store.health();
    let full = timeout(
        PATIENCE,
        health.wait_for(|health| match health {
            Health::Down { reason, .. } => reason.contains("OOM"),
            _ => false,
        }),
    );
    assert!(full.await.is_ok(), "the reason is said");
    assert!(!waiting.is_finished(), "no result is dropped");
    limit("0").await;
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap(), Finished::Stored);
}

#[tokio::test]
async fn a_store_that_is_closed_waits_no_longer() {
    let Some(mut bed) = Bed::start("a_store_that_is_closed_waits_no_longer") else { return };
    bed.begin_anew(LONG);
    let store = bed.one_more();
    begin(&store, &key("job")).await;
    bed.server.stop().unwrap();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.state(&key("job")).await })
    };
    let mut health = store.health();
    timeout(PATIENCE, health.wait_for(|health| matches!(health, Health::Down { .. })))
        .await
        .unwrap()
        .unwrap();
    store.close().await;
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().is_err());
    assert!(matches!(store.check().await, Err(RedisStoreError::Away { .. })));
}

#[tokio::test]
async fn a_password_is_asked_for_and_never_shown() {
    let Some(mut bed) =
        Bed::start_with("a_password_is_asked_for_and_never_shown", &[("requirepass", "s3cret")])
    else {
        return;
    };
    bed.begin_anew(LONG);
    let open = |password: Option<&str>| {
        let mut settings = bed.settings();
        settings.address.password = password.map(str::to_owned);
        RedisStore::look_on(settings).unwrap()
    };
    assert!(open(Some("s3cret")).check().await.is_ok());
    for wrong in [None, Some("wr0ng")] {
        let refused = open(wrong).check().await.unwrap_err();
        let said = format!("{refused:?} {}", worker::causes(&refused));
        assert!(said.contains("127.0.0.1") && !said.contains("wr0ng"), "{said}");
    }
}

#[tokio::test]
async fn a_redis_says_whether_it_keeps_what_it_answers() {
    let Some(mut bed) = Bed::start("a_redis_says_whether_it_keeps_what_it_answers") else { return };
    bed.begin_anew(LONG);
    let store = RedisStore::look_on(bed.settings()).unwrap();
    assert!(store.check().await.unwrap().split('.').count() >= 2);
    assert_eq!(store.check_durability().await.unwrap(), Durability::Kept);
    for (name, value, good) in [
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("appendonly", "no", "yes"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
    ] {
        let set = async |value: &str| {
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg(name).arg(value);
            store.shared.commands.ask::<()>(&set).await.unwrap();
        };
        set(value).await;
        match store.check_durability().await.unwrap() {
            Durability::Forgetful(why) => assert!(why.contains(name) && why.contains(good), "{why}"),
            other => panic!("{name}: {other:?}"),
        }
        set(good).await;
    }
    let mut forbid = redis::cmd("ACL");
    forbid.arg("SETUSER").arg("default").arg("-config");
    store.shared.commands.ask::<()>(&forbid).await.unwrap();
    assert!(matches!(store.check_durability().await.unwrap(), Durability::Unknown(_)));
}

#[tokio::test]
async fn a_lease_is_renewed_whatever_becomes_of_the_commands() {
    let Some(mut bed) = Bed::start("a_lease_is_renewed_whatever_becomes_of_the_commands") else { return };
    let lease = Duration::from_millis(500);
    bed.begin_anew(lease);
    let (a, b) = (bed.one_more(), bed.one_more());
    let attempt = begin(&a, &key("job")).await;
    let stuck = a.shared.commands.hold_up().await;
    let clock = std::time::Instant::now();
    while clock.elapsed() < 4 * lease {
        assert!(matches!(b.begin(&key("job"), &BodyDigest::of(b"")).await.unwrap(), Begun::Busy(_)));
        tokio::time::sleep(lease / 10).await;
    }
    drop(stuck);
    assert_eq!(a.finish(attempt, &result("job")).await.unwrap(), Finished::Stored);
}

#[tokio::test]
async fn what_one_host_is_enough_for_is_done_by_one_at_a_time() {
    let Some(mut bed) = Bed::start("what_one_host_is_enough_for_is_done_by_one_at_a_time") else { return };
    bed.begin_anew(LONG);
    let (a, b) = (bed.one_more(), bed.one_more());
    let short = Duration::from_millis(100);
    assert!(a.turn("it", short).await.unwrap());
    assert!(b.turn("something else", LONG).await.unwrap());
    assert!(!b.turn("something else", LONG).await.unwrap());
    until("the time of the first is over", async || b.turn("it", LONG).await.unwrap()).await;
    assert!(!a.turn("it", LONG).await.unwrap());
}

#[tokio::test]
async fn a_tier_is_offered_by_hosts_that_live_and_do_not_rest() {
    let Some(mut bed) = Bed::start("a_tier_is_offered_by_hosts_that_live_and_do_not_rest") else { return };
    bed.begin_anew(Duration::from_millis(500));
    let (a, b) = (bed.one_more(), bed.one_more());
    let facts = |tiers: &[Tier]| HostFacts {
        tiers: tiers.iter().map(ToString::to_string).collect(),
        ..HostFacts::default()
    };
    a.set_facts(facts(&[Tier::Chroot, Tier::Vm]));
    b.set_facts(facts(&[Tier::Chroot]));
    until("both are heard", async || b.offered().await.unwrap() == [Tier::Chroot, Tier::Vm]).await;
    a.set_resting(&[Tier::Vm]);
    until("one tier rests", async || b.offered().await.unwrap() == [Tier::Chroot]).await;
    a.set_resting(&[]);
    until("it is offered again", async || b.offered().await.unwrap() == [Tier::Chroot, Tier::Vm]).await;
    Bed::silence(a).await;
    until("its host is dead", async || b.offered().await.unwrap() == [Tier::Chroot]).await;
}

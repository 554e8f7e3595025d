//! Brokers that stop, die, and block; connections that are cut and stall.

use std::time::Duration;

use servers::Proxy;
use tokio::time::timeout;
use worker::Outcome;

use super::bed::{
    Bed, EPOCH, PATIENCE, eventually, finish, on_both, on_both_alone, pull_one, result, settings, submit,
};
use crate::{
    broker::ReplyBy,
    queue::{Queue, QueueError, Requeue, amqp::AmqpQueue},
};

/// Long enough to see that nothing happens.
const NOTHING: Duration = Duration::from_millis(300);

/// The epochs of the two connections, each of which counts its own.
fn epochs(queue: &AmqpQueue) -> [u64; 2] {
    let health = queue.health();
    let health = health.borrow();
    [health.intake.epoch, health.outlet.epoch]
}

async fn until_connected_since(queue: &AmqpQueue, former: [u64; 2]) {
    let mut health = queue.health();
    let both = health.wait_for(|health| {
        let links = [&health.intake, &health.outlet];
        links.iter().zip(former).all(|(link, former)| link.connected && link.epoch > former)
    });
    let connected = timeout(PATIENCE, both).await.is_ok();
    assert!(connected, "it does not connect again: {:?}", queue.health().borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_a_former_connection_is_never_sent() {
    on_both("cut", async |bed| {
        let proxy = Proxy::start(bed.broker.port()).unwrap();
        let through = settings(&bed.broker, proxy.port(), bed.vhost());
        let queue = bed.queue_with(&through, bed.options.clone()).await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "a").await;
        let old = pull_one(&queue).await;
        let waits = pull_one(&queue);
        proxy.cut();
        let again = waits.await;
        assert_eq!(again.key.id, "a", "the broker gives it out again");
        // The old one has the same tag in its channel as the new one in its own.
        queue.answer(&old.delivery, &result(&old, Outcome::Failed), EPOCH).await.unwrap();
        let stale = queue.ack(old.delivery).await;
        assert!(matches!(&stale, Err(QueueError::Stale(key)) if key.id == "a"), "{stale:?}");
        bed.until_depth("mayfly.jobs.acme.docker.normal", 0).await;
        finish(&queue, again, Outcome::Failed).await;
        let counts = queue.counts();
        assert_eq!((counts.results, counts.stale), (1, 1), "the result was told once: {counts:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_stalls_is_given_up_and_made_again() {
    on_both("stall", async |bed| {
        let proxy = Proxy::start(bed.broker.port()).unwrap();
        let mut through = settings(&bed.broker, proxy.port(), bed.vhost());
        through.heartbeat = Duration::from_secs(1);
        through.answer_within = Duration::from_secs(2);
        through.connect_within = Duration::from_secs(2);
        let queue = bed.queue_with(&through, bed.options.clone()).await;
        proxy.stall(true);
        let mut health = queue.health();
        let lost = health.wait_for(|health| !health.intake.connected);
        let reason = timeout(PATIENCE, lost).await.expect("it is noticed").unwrap().intake.reason.clone();
        assert!(reason.is_some(), "and the reason is said");
        proxy.stall(false);
        proxy.slice(Some(7));
        submit(&bed.producer("acme", ReplyBy::Nothing).await, "a").await;
        finish(&queue, pull_one(&queue).await, Outcome::Failed).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_job_is_pulled_again_when_its_time_comes_and_lost_with_its_connection() {
    on_both("later", async |bed| {
        let proxy = Proxy::start(bed.broker.port()).unwrap();
        let through = settings(&bed.broker, proxy.port(), bed.vhost());
        let queue = bed.queue_with(&through, bed.options.clone()).await;
        submit(&bed.producer("acme", ReplyBy::Nothing).await, "a").await;
        let pulled = pull_one(&queue).await;
        queue.requeue(pulled.delivery, Requeue::Later(Duration::from_millis(1))).await.unwrap();
        let pulled = pull_one(&queue).await;
        queue.requeue(pulled.delivery, Requeue::Later(Duration::from_secs(3600))).await.unwrap();
        assert!(timeout(NOTHING, queue.pull()).await.is_err(), "it is not yet its time");
        proxy.cut();
        finish(&queue, pull_one(&queue).await, Outcome::Failed).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_held_longer_than_the_broker_allows_takes_no_other_with_it() {
    on_both_alone("timeout", async |bed| {
        bed.broker.eval("application:set_env(rabbit, consumer_timeout, 3000).").unwrap();
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "long").await;
        let long = pull_one(&queue).await;
        let again = pull_one(&queue).await;
        assert_eq!(again.key.id, "long", "the broker took it back");
        assert!(matches!(queue.ack(long.delivery).await, Err(QueueError::Stale(_))));
        queue.ack(again.delivery).await.unwrap();
        assert_eq!(queue.health().borrow().intake.epoch, 1, "the connection stayed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_or_dies_loses_no_job_and_doubles_no_acknowledged_one() {
    on_both_alone("restart", async |bed| {
        let queue = bed.queue().await;
        for (round, kill) in [("stop", false), ("kill", true)] {
            let producer = bed.producer("acme", ReplyBy::Nothing).await;
            for id in ["done", "held", "waits"] {
                submit(&producer, &format!("{round}-{id}")).await;
            }
            let done = pull_one(&queue).await;
            assert_eq!(done.key.id, format!("{round}-done"));
            finish(&queue, done, Outcome::Failed).await;
            let held = pull_one(&queue).await;
            let former = epochs(&queue);
            if kill {
                // An acknowledgement is not answered; this one is to be on disk.
                bed.until_depth("mayfly.jobs.acme.docker.normal", 1).await;
                bed.broker.kill().unwrap();
            } else {
                bed.broker.stop().unwrap();
            }
            bed.broker.start_again().unwrap();
            until_connected_since(&queue, former).await;
            assert!(matches!(queue.ack(held.delivery).await, Err(QueueError::Stale(_))));
            let mut left = Vec::new();
            for _ in 0..2 {
                let pulled = pull_one(&queue).await;
                left.push(pulled.key.id.clone());
                finish(&queue, pulled, Outcome::Failed).await;
            }
            left.sort();
            assert_eq!(left, [format!("{round}-held"), format!("{round}-waits")]);
        }
        bed.until_depth("mayfly.jobs.acme.docker.normal", 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_an_alarm_blocks_results_wait_and_nothing_new_is_pulled() {
    on_both_alone("alarm", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "a").await;
        submit(&producer, "b").await;
        let first = pull_one(&queue).await;
        bed.broker.alarm(true).unwrap();
        alarm_is(&bed, true).await;
        let told = result(&first, Outcome::Failed);
        let answer = queue.answer(&first.delivery, &told, EPOCH);
        let mut answer = Box::pin(answer);
        assert!(timeout(NOTHING, &mut answer).await.is_err(), "the broker takes nothing");
        let mut health = queue.health();
        let blocked = health.wait_for(|health| health.outlet.blocked.is_some());
        timeout(PATIENCE, blocked).await.expect("the alarm is shown").unwrap();
        assert!(timeout(NOTHING, queue.pull()).await.is_err(), "what could not be told is not begun");
        bed.broker.alarm(false).unwrap();
        timeout(PATIENCE, answer).await.expect("it goes on").unwrap();
        queue.ack(first.delivery).await.unwrap();
        assert_eq!(pull_one(&queue).await.key.id, "b");
        assert!(queue.health().borrow().outlet.blocked.is_none());
    })
    .await;
}

async fn alarm_is(bed: &Bed, on: bool) {
    eventually("the alarm", async || {
        let alarms = bed.broker.eval("length(rabbit_alarm:get_alarms()).").unwrap();
        ((alarms != "0") == on).then_some(())
    })
    .await;
}

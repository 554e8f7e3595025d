//! Whose job is next, with a real backlog.

use pool::Tier;
use worker::Outcome;

use super::bed::{finish, job, on_both, pull_one, submit};
use crate::{
    broker::{ReplyBy, Submission},
    queue::{Queue, Requeue},
};

/// Jobs of a flood that go before the one job of another tenant, at most.
const BOUND: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_five_thousand_keeps_one_job_of_another_waiting_for_a_few_pulls_only() {
    on_both("flood", async |bed| {
        let flooder = bed.producer("acme", ReplyBy::Nothing).await;
        let many = (0..5000).map(|number| {
            let flooder = &flooder;
            async move { submit(flooder, &format!("flood-{number}")).await }
        });
        for some in many {
            some.await;
        }
        let queue = bed.queue().await;
        assert_eq!(queue.backlog().jobs, 5000);
        for _ in 0..20 {
            let pulled = pull_one(&queue).await;
            assert_eq!(pulled.key.tenant, "acme");
            queue.ack(pulled.delivery).await.unwrap();
        }
        submit(&bed.producer("other", ReplyBy::Nothing).await, "single").await;
        // It is heard of by the bell, whose oldest rings are thrown away, or by looking.
        super::bed::eventually("the single job is known", async || {
            queue
                .waiting()
                .iter()
                .any(|lane| lane.tenant.as_deref() == Some("other") && lane.jobs > 0)
                .then_some(())
        })
        .await;
        let mut before = 0;
        loop {
            let pulled = pull_one(&queue).await;
            let single = pulled.key.tenant == "other";
            finish(&queue, pulled, Outcome::Failed).await;
            if single {
                break;
            }
            before += 1;
        }
        assert!(before <= BOUND, "{before} went before it");
        assert!(queue.backlog().jobs > 4900, "{:?}", queue.backlog());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_runs_more_at_once_than_it_may_and_high_goes_first() {
    on_both("caps", async |mut bed| {
        bed.options.tenants[0].max_running = Some(1);
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "normal").await;
        producer.submit(Submission { key: "docker.high".into(), ..job("high") }).await.unwrap();
        let queue = bed.queue().await;
        let first = pull_one(&queue).await;
        assert_eq!(first.key.id, "high");
        submit(&bed.producer("other", ReplyBy::Nothing).await, "theirs").await;
        let second = pull_one(&queue).await;
        assert_eq!(second.key.id, "theirs", "the cap is reached");
        // One that is put back counts no more.
        let (third, ()) = tokio::join!(pull_one(&queue), async {
            queue
                .requeue(first.delivery, Requeue::Later(std::time::Duration::from_secs(3600)))
                .await
                .unwrap();
        });
        assert_eq!(third.key.id, "normal");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_touches_only_the_queues_of_tiers_that_it_offers() {
    on_both("tiers", async |mut bed| {
        bed.options.tiers = vec![Tier::Chroot];
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "docker").await;
        producer.submit(Submission { key: "trusted".into(), ..job("chroot") }).await.unwrap();
        let pulled = pull_one(&queue).await;
        assert_eq!((pulled.key.id.as_str(), pulled.tier), ("chroot", Some(Tier::Chroot)));
        bed.until_depth("mayfly.jobs.acme.docker.normal", 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_held_that_nobody_asked_for() {
    on_both("held", async |bed| {
        let queue = bed.queue().await;
        for tenant in ["acme", "other"] {
            let producer = bed.producer(tenant, ReplyBy::Nothing).await;
            for id in ["a", "b", "c"] {
                submit(&producer, id).await;
            }
        }
        let one = pull_one(&queue).await;
        // Who gives up leaves nothing in nobody's hands.
        for _ in 0..20 {
            let gave_up = tokio::time::timeout(std::time::Duration::from_micros(200), queue.pull()).await;
            if let Ok(pulled) = gave_up {
                queue.requeue(pulled.unwrap().unwrap().delivery, Requeue::Stopping).await.unwrap();
            }
        }
        let lane = |tenant: &str| format!("mayfly.jobs.{tenant}.docker.normal");
        let (of_one, of_other) = if one.key.tenant == "acme" { (2, 3) } else { (3, 2) };
        bed.until_depth(&lane("acme"), of_one).await;
        bed.until_depth(&lane("other"), of_other).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_host_hears_each_job_that_comes() {
    on_both("bell", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        for number in 1..=3 {
            let id = format!("job-{number}");
            let (pulled, _) = tokio::join!(pull_one(&queue), submit(&producer, &id));
            queue.ack(pulled.delivery).await.unwrap();
            super::bed::eventually("it rang", async || (queue.counts().rings == number).then_some(())).await;
            // Whoever waits again lets it ring again.
            assert!(tokio::time::timeout(std::time::Duration::from_millis(50), queue.pull()).await.is_err());
        }
    })
    .await;
}

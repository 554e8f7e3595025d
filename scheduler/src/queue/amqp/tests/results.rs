//! Where results go.

use lapin::{BasicProperties, options::ExchangeDeleteOptions};
use pool::Tier;
use tokio::time::timeout;
use worker::Outcome;

use super::bed::{EPOCH, PATIENCE, answer_to, finish, job, on_both, pull_one, result, submit};
use crate::{
    broker::{Lane, ReplyBy, Submission, declare, names::RESULTS, properties::header},
    queue::{Queue, Requeue},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_goes_to_whoever_listens_and_says_what_it_is() {
    on_both("results", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "unheard").await;
        finish(&queue, pull_one(&queue).await, Outcome::Failed).await;
        assert_eq!(queue.counts().results_unrouted, 1, "that nobody listens is no error");
        let mut listener = bed.listen().await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let traced = Submission { traceparent: Some(trace.to_owned()), ..job("heard") };
        producer.submit(traced).await.unwrap();
        let pulled = pull_one(&queue).await;
        assert_eq!(pulled.tier, Some(Tier::Docker));
        // A crash between the two repeats the first.
        let told = result(&pulled, Outcome::TimedOut);
        queue.answer(&pulled.delivery, &told, EPOCH).await.unwrap();
        queue.answer(&pulled.delivery, &told, EPOCH).await.unwrap();
        queue.ack(pulled.delivery).await.unwrap();
        for _ in 0..2 {
            let (key, properties, heard) = listener.next().await;
            assert_eq!(key, "acme.timed_out");
            assert_eq!(heard, told);
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), format!("heard:{EPOCH}"));
            assert_eq!(*properties.delivery_mode(), Some(2));
            assert_eq!(header(&properties, "mayfly-tenant"), Some("acme"));
            assert_eq!(header(&properties, "mayfly-outcome"), Some("timed_out"));
            assert_eq!(header(&properties, "traceparent"), Some(trace));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_too_large_goes_without_its_output() {
    on_both("large", async |mut bed| {
        bed.options.largest_result = 10_000;
        let queue = bed.queue().await;
        let mut listener = bed.listen().await;
        submit(&bed.producer("acme", ReplyBy::Nothing).await, "a").await;
        let pulled = pull_one(&queue).await;
        let mut large = result(&pulled, Outcome::Failed);
        large.stdout.text = "x".repeat(20_000);
        large.stdout.bytes = 20_000;
        queue.answer(&pulled.delivery, &large, EPOCH).await.unwrap();
        queue.ack(pulled.delivery).await.unwrap();
        let (_, _, heard) = listener.next().await;
        assert_eq!(heard.outcome, Outcome::Failed);
        assert!(heard.stdout.truncated && heard.stdout.text.is_empty() && heard.stdout.bytes == 20_000);
        assert!(heard.notes.iter().any(|note| note.contains("too large")));
        assert_eq!(queue.counts().results_cut, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_needs_a_stronger_tier_goes_there_as_it_is() {
    on_both("elsewhere", async |bed| {
        let queue = bed.queue().await;
        let vm = Lane { tenant: "acme".into(), tier: Tier::Vm, high: true }.queue();
        let producer = bed.producer("acme", ReplyBy::Direct).await;
        let sent = Submission {
            key: "docker.high".to_owned(),
            expires: Some(std::time::Duration::from_secs(3600)),
            ..job("moves")
        };
        producer.submit(sent).await.unwrap();
        let pulled = pull_one(&queue).await;
        let was = pulled.delivery.message.properties.clone();
        queue.requeue(pulled.delivery, Requeue::Elsewhere(Tier::Vm)).await.unwrap();
        bed.until_depth(&vm, 1).await;
        let mut options = bed.options.clone();
        options.tiers = vec![Tier::Vm];
        let there = bed.queue_with(&bed.settings, options).await;
        let moved = pull_one(&there).await;
        assert_eq!(moved.key.id, "moves");
        assert_eq!(moved.tier, Some(Tier::Vm));
        let is = &moved.delivery.message.properties;
        assert_eq!(is.reply_to(), was.reply_to());
        assert_eq!(is.correlation_id(), was.correlation_id());
        let left: u64 = is.expiration().as_ref().unwrap().as_str().parse().unwrap();
        assert!((1..=3_600_000).contains(&left), "its deadline stays: {left}");
        finish(&there, moved, Outcome::Failed).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_went_is_not_sent_again_with_a_result_that_did_not() {
    on_both("once", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Direct).await;
        let submitted = submit(&producer, "a").await;
        let pulled = pull_one(&queue).await;
        let told = result(&pulled, Outcome::Failed);
        let connected = bed.connect().await;
        let options = ExchangeDeleteOptions::default();
        connected.channel().await.unwrap().exchange_delete(RESULTS.into(), options).await.unwrap();
        let answer = queue.answer(&pulled.delivery, &told, EPOCH);
        let again = async {
            assert_eq!(answer_to(submitted).await.result.unwrap().outcome, Outcome::Failed);
            let mut health = queue.health();
            let tries = timeout(PATIENCE, health.wait_for(|health| health.outlet.epoch > 3));
            assert!(tries.await.is_ok(), "it does not try again: {:?}", queue.health().borrow());
            declare(&connected, &bed.options.topology()).await.unwrap();
        };
        let (answered, ()) = tokio::join!(answer, again);
        answered.unwrap();
        queue.ack(pulled.delivery).await.unwrap();
        let counts = queue.counts();
        assert_eq!((counts.replies, counts.replies_lost, counts.results), (1, 0, 1), "{counts:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_goes_to_no_other_tenant_and_to_no_queue_of_ours() {
    on_both("foreign", async |bed| {
        let queue = bed.queue().await;
        for (id, reply_to) in [
            ("a", "mayfly.reply.other.x"),
            ("b", "mayfly.jobs.other.docker.normal"),
            ("c", "mayfly.dead"),
            // These break the connection of whoever replies, if the broker is asked to.
            ("d", "amq.rabbitmq.reply-to.forged"),
            ("e", "amq.rabbitmq.reply-to.g1h2AAhyZXBseUAxAAAAAA==.AAAA"),
            // This is one by its form, and of a node that there is not: the broker breaks its connection over it.
            (
                "f",
                "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxNDg1MTAxMgAABZEAAAAAawRXOw==.HIgJPliWcDLWOMve8b9qhw==",
            ),
            ("g", "mayfly.reply.acme.gone"),
        ] {
            let properties =
                BasicProperties::default().with_message_id(id.into()).with_reply_to(reply_to.into());
            // The broker itself refuses some of them from whoever sends; this is as if it did not.
            let body = job(id).body;
            let lane = "mayfly.jobs.acme.docker.normal";
            bed.publish("", lane, &body, properties).await;
            let pulled = pull_one(&queue).await;
            assert_eq!(pulled.key.id, id);
            finish(&queue, pulled, Outcome::Failed).await;
        }
        let counts = queue.counts();
        assert_eq!((counts.results, counts.replies_refused), (7, 5), "{counts:?}");
        // Whether one that nobody hears is a lost one, brokers tell or do not.
        assert_eq!(counts.replies + counts.replies_lost, 2, "{counts:?}");
        let health = queue.health().borrow().clone();
        assert_eq!((health.intake.epoch, health.outlet.epoch), (1, 1), "it cost no connection: {health:?}");
    })
    .await;
}

//! What comes that should not.

use lapin::BasicProperties;
use worker::Outcome;

use super::bed::{answer_to, finish, job, on_both, pull_one, submit};
use crate::broker::{ReplyBy, Submission};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_means_nothing_is_answered_to_its_tenant() {
    on_both("unroutable", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Direct).await;
        let submitted = producer.submit(Submission { key: "moon".to_owned(), ..job("lost") }).await.unwrap();
        let pulled = pull_one(&queue).await;
        assert_eq!(pulled.key.to_string(), "acme/lost");
        let why = pulled.job.as_ref().unwrap_err().report.why.clone();
        assert!(why.contains("\"moon\""), "{why}");
        finish(&queue, pulled, Outcome::Rejected).await;
        assert_eq!(answer_to(submitted).await.result.unwrap().outcome, Outcome::Rejected);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_expires_in_the_queue_still_gets_a_result() {
    on_both("expired", async |bed| {
        let queue = bed.queue().await;
        queue.pause(true);
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        let soon = Some(std::time::Duration::from_millis(1));
        producer.submit(Submission { expires: soon, ..job("late") }).await.unwrap();
        bed.until_depth("mayfly.returned", 1).await;
        queue.pause(false);
        let pulled = pull_one(&queue).await;
        assert_eq!(pulled.key.to_string(), "acme/late");
        let no_job = pulled.job.as_ref().unwrap_err();
        assert_eq!(no_job.outcome, Outcome::Rejected);
        assert!(no_job.report.why.contains("deadline passed"), "{no_job:?}");
        finish(&queue, pulled, Outcome::Rejected).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_history_does_not_move_a_job_to_another_tenant() {
    use crate::broker::properties::with_header;
    use lapin::types::{AMQPValue, FieldTable};
    on_both("forged", async |bed| {
        let queue = bed.queue().await;
        queue.pause(true);
        let mut death = FieldTable::default();
        for (name, value) in [
            ("queue", "mayfly.jobs.other.docker.normal"),
            ("reason", "delivery_limit"),
            ("exchange", "mayfly.submit.other"),
        ] {
            death.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let forged = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
        let properties = with_header(BasicProperties::default(), "x-death", forged)
            .with_message_id("a".into())
            .with_expiration("1".into());
        bed.publish("mayfly.submit.acme", "docker", &job("a").body, properties).await;
        bed.until_depth("mayfly.returned", 1).await;
        queue.pause(false);
        let pulled = pull_one(&queue).await;
        assert_eq!(pulled.key.to_string(), "acme/a");
        finish(&queue, pulled, Outcome::Rejected).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_fifty_mebibytes_is_refused_and_harms_nobody() {
    on_both("huge", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        let huge = Submission { body: vec![b' '; 50 << 20], ..job("huge") };
        match producer.submit(huge).await {
            // 3.10 takes it; it is refused here.
            Ok(_) => {
                let pulled = pull_one(&queue).await;
                let why = pulled.job.as_ref().unwrap_err().report.why.clone();
                assert!(why.contains("is the most"), "{why}");
                finish(&queue, pulled, Outcome::Rejected).await;
            }
            // 4.0 takes no message of this size.
            Err(error) => assert!(worker::causes(&error).contains("PRECONDITION_FAILED"), "{error:?}"),
        }
        submit(&bed.producer("acme", ReplyBy::Nothing).await, "next").await;
        assert_eq!(pull_one(&queue).await.key.id, "next");
    })
    .await;
}

//! Dead letters.

use worker::{JobResult, Outcome};

use super::bed::{EPOCH, finish, on_both, pull_one, result, submit};
use crate::{
    broker::{BrokerError, DeadLetters, ReplyBy, topology::DELIVERIES},
    key::JobKey,
    queue::{Queue, Requeue},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_lies_among_the_dead_letters_and_can_be_sent_again() {
    on_both("dead", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        for id in ["a", "b", "c"] {
            submit(&producer, id).await;
            finish(&queue, pull_one(&queue).await, Outcome::InfraError).await;
        }
        let dead = DeadLetters::connect(&bed.settings).await.unwrap();
        let keys = async || -> Vec<String> {
            dead.list(10).await.unwrap().into_iter().map(|dead| dead.key.id).collect()
        };
        assert_eq!(keys().await, ["a", "b", "c"]);
        bed.until_depth("mayfly.dead", 3).await;
        assert_eq!(keys().await, ["a", "b", "c"], "looking takes nothing");
        bed.until_depth("mayfly.dead", 3).await;
        let key = JobKey::new("acme", "b");
        let shown = dead.show(&key).await.unwrap();
        assert_eq!((shown.outcome.as_str(), shown.why.as_str()), ("infra_error", "why"));
        assert_eq!(shown.queue, "mayfly.jobs.acme.docker.normal");
        bed.until_depth("mayfly.dead", 3).await;
        dead.replay(&key, "b-again").await.unwrap();
        let again = pull_one(&queue).await;
        assert_eq!(again.key.to_string(), "acme/b-again");
        assert!(again.job.is_ok());
        finish(&queue, again, Outcome::Failed).await;
        bed.until_depth("mayfly.dead", 2).await;
        assert!(matches!(dead.replay(&key, "x").await, Err(BrokerError::NoSuchJob(_))));
        bed.until_depth("mayfly.dead", 2).await;
        dead.purge(&JobKey::new("acme", "a")).await.unwrap();
        bed.until_depth("mayfly.dead", 1).await;
        assert_eq!(dead.purge_all().await.unwrap(), 1);
        assert_eq!(dead.count().await.unwrap(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_no_host_survives_ends_by_the_brokers_own_limit() {
    on_both("limit", async |bed| {
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        submit(&producer, "poison").await;
        let mut taken = 0;
        let given_up = loop {
            let pulled = pull_one(&queue).await;
            match &pulled.job {
                // To the broker it is the same as a host that dies, and it is there again at once.
                Ok(_) => queue.requeue(pulled.delivery, Requeue::Stopping).await.unwrap(),
                Err(_) => break pulled,
            }
            taken += 1;
            assert!(taken <= DELIVERIES + 1, "the broker gives it out for ever");
        };
        assert!(taken > 20, "attempts are counted by us: {taken}");
        assert_eq!(given_up.key.to_string(), "acme/poison");
        let no_job = given_up.job.as_ref().unwrap_err();
        assert_eq!(no_job.outcome, Outcome::SandboxLost);
        let lost = JobResult { error: Some(no_job.report.clone()), ..result(&given_up, no_job.outcome) };
        queue.answer(&given_up.delivery, &lost, EPOCH).await.unwrap();
        queue.ack(given_up.delivery).await.unwrap();
        let dead = DeadLetters::connect(&bed.settings).await.unwrap();
        let shown = dead.show(&JobKey::new("acme", "poison")).await.unwrap();
        assert!(shown.why.contains("again and again"), "{}", shown.why);
        assert_eq!(shown.queue, "mayfly.jobs.acme.docker.normal");
    })
    .await;
}

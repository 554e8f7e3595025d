use servers::{RabbitMq, Version, skipped};

use super::bed::{Bed, Host, submit, tenants};
use crate::{
    broker::ReplyBy,
    contract::{self, QueueBed},
    queue::amqp::AmqpQueue,
};

struct Contract {
    broker: &'static RabbitMq,
    made: u32,
    bed: Option<Bed>,
}

impl QueueBed for Contract {
    type Queue = AmqpQueue;

    async fn with(&mut self, ids: &[&str]) -> AmqpQueue {
        self.made += 1;
        let mut bed =
            Bed::new(&format!("contract-{}", self.made), Host::Shared(self.broker), tenants(&["acme"])).await;
        bed.options.until_empty = true;
        let producer = bed.producer("acme", ReplyBy::Nothing).await;
        for id in ids {
            submit(&producer, id).await;
        }
        let queue = bed.queue().await;
        self.bed = Some(bed);
        queue
    }

    async fn reopen(&mut self, queue: AmqpQueue) -> AmqpQueue {
        drop(queue);
        let bed = self.bed.as_ref().unwrap();
        // The broker notices the end of a connection a little later.
        bed.until_depth("mayfly.jobs.acme.docker.normal", 2).await;
        bed.queue().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_keeps_its_contract_on_both_versions() {
    for version in Version::ALL {
        match RabbitMq::shared(version) {
            Ok(broker) => contract::queue(&mut Contract { broker, made: 0, bed: None }).await,
            Err(why) => skipped("the_queue_keeps_its_contract", why),
        }
    }
}

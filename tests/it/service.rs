//! The service form from outside: real brokers, a real store, hosts that serve, and what producers see.

mod batch;
mod bench;
mod brokers;
mod claims;
mod egress;
mod faults;
mod inputs;
mod jobs;
mod kills;
mod live;
mod logs;
mod machines;
mod metrics;
mod producers;
mod settings;
mod share;
mod strays;
mod traces;
mod unable;

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use scheduler::broker::ReplyBy;
use serde_json::json;

use crate::harness::{Cluster, script};

/// The same test on each version of the broker.
macro_rules! on_every_broker {
    ($($name:ident)+) => {
        $(mod $name {
            #[test]
            fn on_debian_12() {
                super::$name(concat!(module_path!(), "::on_debian_12"), servers::Version::Debian12);
            }
            #[test]
            fn on_version_4() {
                super::$name(concat!(module_path!(), "::on_version_4"), servers::Version::V4);
            }
        })+
    };
}
use on_every_broker;

/// Sends so many jobs that may run again, numbered from `first`. Says what they are called.
fn send_many(cluster: &Cluster, first: usize, count: usize, text: &str) -> Vec<String> {
    let producer = cluster.producer(ReplyBy::Nothing);
    let job = script(text, &json!({ "idempotent": true, "max_attempts": 20 }));
    let ids = (first..first + count).map(|number| format!("job-{number}"));
    ids.inspect(|id| drop(cluster.send(&producer, id, job.as_str()))).collect()
}

/// Sends so many without waiting for each, as whoever floods does.
fn flood(cluster: &Cluster, count: usize, job: &str) {
    cluster.wait(async {
        let (_connection, channel) = cluster.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let exchange = format!("mayfly.submit.{}", cluster.tenant);
        let mut last = None;
        for number in 0..count {
            let id = format!("flood-{number}");
            let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
            let (exchange, options) = (exchange.as_str().into(), BasicPublishOptions::default());
            let publish =
                channel.basic_publish(exchange, "trusted".into(), options, job.as_bytes(), properties);
            last = Some(publish.await.unwrap());
        }
        assert!(last.expect("there are some").await.unwrap().is_ack());
    });
}

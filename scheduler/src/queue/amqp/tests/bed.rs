//! Where the queue is tested: a virtual host of a real broker, set up for a few tenants.

use std::{ops::Deref, time::Duration};

use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pool::Tier;
use servers::{RabbitMq, Version, skipped};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use worker::{ErrorReport, JobResult, Outcome};

use crate::{
    broker::{
        Answered, Connected, Credential, Producer, ReplyBy, Settings, Submission, Submitted, connect,
        declare, depths,
    },
    queue::{
        Pulled, Queue,
        amqp::{AmqpDelivery, AmqpOptions, AmqpQueue, AmqpTenant},
    },
};

/// Long enough for anything on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker, which ends with the bed unless all tests share it.
pub(super) enum Host {
    Shared(&'static RabbitMq),
    Own(Box<RabbitMq>),
}

impl Deref for Host {
    type Target = RabbitMq;

    fn deref(&self) -> &RabbitMq {
        match self {
            Self::Shared(broker) => broker,
            Self::Own(broker) => broker,
        }
    }
}

/// Of the attempts whose results are told.
pub(super) const EPOCH: u64 = 1_700_000_000_000_001;

pub(super) struct Bed {
    pub(super) broker: Host,
    pub(super) settings: Settings,
    pub(super) options: AmqpOptions,
    vhost: String,
}

impl Drop for Bed {
    fn drop(&mut self) {
        // The broker goes with the process; this keeps it small until then.
        let _ = self.broker.delete_vhost(&self.vhost);
    }
}

/// Runs a test on the brokers of both versions that all tests share.
pub(super) async fn on_both(test: &str, body: impl AsyncFn(Bed)) {
    for version in Version::ALL {
        match RabbitMq::shared(version) {
            Ok(broker) => body(Bed::new(test, Host::Shared(broker), tenants(&["acme", "other"])).await).await,
            Err(why) => skipped(test, why),
        }
    }
}

/// Runs a test on brokers of its own, which it may ill-treat.
pub(super) async fn on_both_alone(test: &str, body: impl AsyncFn(Bed)) {
    for version in Version::ALL {
        match RabbitMq::start(version) {
            Ok(broker) => {
                let broker = Host::Own(Box::new(broker));
                body(Bed::new(test, broker, tenants(&["acme", "other"])).await).await;
            }
            Err(error) => skipped(test, &error.to_string()),
        }
    }
}

/// Tenants of equal rights whose jobs may run anywhere.
pub(super) fn tenants(names: &[&str]) -> Vec<AmqpTenant> {
    let tenant = |name: &&str| AmqpTenant {
        name: (*name).to_owned(),
        floor: Tier::Chroot,
        weight: 1,
        max_running: None,
    };
    names.iter().map(tenant).collect()
}

impl Bed {
    pub(super) async fn new(test: &str, broker: Host, tenants: Vec<AmqpTenant>) -> Self {
        broker.add_vhost(test).unwrap();
        let settings = settings(&broker, broker.port(), test);
        let options = AmqpOptions::new(tenants, vec![Tier::Chroot, Tier::Docker]);
        let bed = Self { broker, settings, options, vhost: test.to_owned() };
        declare(&bed.connect().await, &bed.options.topology()).await.unwrap();
        bed
    }

    pub(super) fn vhost(&self) -> &str {
        &self.vhost
    }

    pub(super) async fn connect(&self) -> Connected {
        connect(&self.settings, "test").await.unwrap()
    }

    pub(super) async fn queue(&self) -> AmqpQueue {
        self.queue_with(&self.settings, self.options.clone()).await
    }

    pub(super) async fn queue_with(&self, settings: &Settings, options: AmqpOptions) -> AmqpQueue {
        let queue = AmqpQueue::open(settings, options, None);
        let ready = timeout(PATIENCE, queue.ready()).await;
        assert!(ready.is_ok(), "not ready: {:?}", queue.health().borrow());
        queue
    }

    pub(super) async fn producer(&self, tenant: &str, replies: ReplyBy) -> Producer {
        Producer::connect(&self.settings, tenant, replies).await.unwrap()
    }

    /// Waits until so many messages wait in a queue.
    pub(super) async fn until_depth(&self, queue: &str, depth: u64) {
        let connected = self.connect().await;
        let queues = [queue.to_owned()];
        eventually(&format!("{depth} messages in {queue}"), async || {
            (depths(&connected, &queues).await.unwrap() == [depth]).then_some(())
        })
        .await;
    }

    /// Publishes whatever is asked, as the user with all rights.
    pub(super) async fn publish(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
        let connected = self.connect().await;
        let channel = connected.confirming().await.unwrap();
        let options = BasicPublishOptions::default();
        let publish =
            channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
        assert!(publish.await.unwrap().is_ack());
    }

    /// Hears all results.
    pub(super) async fn listen(&self) -> Listener {
        let connected = self.connect().await;
        let channel = connected.channel().await.unwrap();
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let (name, none) = (queue.name().clone(), FieldTable::default);
        let bind = channel.queue_bind(
            name.clone(),
            "mayfly.results".into(),
            "#".into(),
            QueueBindOptions::default(),
            none(),
        );
        bind.await.unwrap();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(name, "results".into(), options, none()).await.unwrap();
        Listener { consumer, _connected: connected }
    }
}

pub(super) struct Listener {
    consumer: lapin::Consumer,
    _connected: Connected,
}

impl Listener {
    /// The next result: its routing key, its properties, itself.
    pub(super) async fn next(&mut self) -> (String, BasicProperties, JobResult) {
        let next = timeout(PATIENCE, self.consumer.next()).await.expect("a result comes");
        let delivery = next.unwrap().unwrap();
        let result = serde_json::from_slice(&delivery.data).unwrap();
        (delivery.routing_key.to_string(), delivery.properties, result)
    }
}

/// Settings for the user with all rights, at a port.
pub(super) fn settings(broker: &RabbitMq, port: u16, vhost: &str) -> Settings {
    let (user, password) = broker.admin();
    let url = format!("amqp://{user}@127.0.0.1:{port}/{vhost}");
    Settings::new(&url, &Credential::new(password)).unwrap()
}

pub(super) fn job(id: &str) -> Submission {
    Submission {
        body: br#"{"schema_version":1,"image":"base","command":["true"]}"#.to_vec(),
        key: "docker".to_owned(),
        id: Some(id.to_owned()),
        expires: None,
        traceparent: None,
    }
}

pub(super) async fn submit(producer: &Producer, id: &str) -> Submitted {
    producer.submit(job(id)).await.unwrap()
}

pub(super) async fn pull(queue: &AmqpQueue) -> Option<Pulled<AmqpDelivery>> {
    let pulled = timeout(PATIENCE, queue.pull()).await;
    assert!(pulled.is_ok(), "nothing was pulled: {:?} {:?}", queue.health().borrow(), queue.counts());
    pulled.unwrap().unwrap()
}

pub(super) async fn pull_one(queue: &AmqpQueue) -> Pulled<AmqpDelivery> {
    pull(queue).await.expect("there is a job")
}

pub(super) fn result(pulled: &Pulled<AmqpDelivery>, outcome: Outcome) -> JobResult {
    let report = ErrorReport::new("what", "why", "what to do");
    JobResult::never_started(&pulled.key.id, &pulled.key.tenant, outcome, report)
}

pub(super) async fn answer_to(submitted: Submitted) -> Answered {
    timeout(PATIENCE, submitted.result()).await.expect("an answer comes").unwrap()
}

/// Answers and acknowledges.
pub(super) async fn finish(queue: &AmqpQueue, pulled: Pulled<AmqpDelivery>, outcome: Outcome) {
    let result = result(&pulled, outcome);
    queue.answer(&pulled.delivery, &result, EPOCH).await.unwrap();
    queue.ack(pulled.delivery).await.unwrap();
}

/// Looks until there is something to see.
pub(super) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("did not happen: {what}"))
}

//! The dead letters: looked at, sent again, thrown away. A crash at any point loses none; at worst one is there twice.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{
    BasicProperties, Confirmation,
    message::Delivery,
    options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueuePurgeOptions},
};

use super::{
    connect::{Connected, connect},
    declare::depth,
    error::BrokerError,
    names::{BELL, DEAD, Lane},
    properties::{header, with_text},
    settings::Settings,
};
use crate::{
    key::{JobKey, is_name},
    traces::TraceParent,
};

/// The dead letters of a broker.
pub struct DeadLetters {
    connected: Connected,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadJob {
    /// Which job.
    pub key: JobKey,
    /// The queue that it came by.
    pub queue: String,
    /// How it ended.
    pub outcome: String,
    /// At which attempt.
    pub attempt: String,
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// When.
    pub died: Option<SystemTime>,
    /// The job, as it was sent.
    pub body: Vec<u8>,
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the dead letters")
    }
}

impl DeadLetters {
    /// Connects to the broker.
    pub async fn connect(settings: &Settings) -> Result<Self, BrokerError> {
        Ok(Self { connected: connect(settings, "dead letters").await? })
    }

    /// How many there are.
    pub async fn count(&self) -> Result<u64, BrokerError> {
        let channel = self.connected.channel().await?;
        self.connected.in_time("counting the dead letters", depth(&channel, DEAD)).await
    }

    /// The oldest ones, `most` at most.
    pub async fn list(&self, most: usize) -> Result<Vec<DeadJob>, BrokerError> {
        let mut dead = Vec::new();
        self.walk(async |_, delivery| {
            dead.push(read(&delivery));
            Ok(dead.len() < most)
        })
        .await?;
        Ok(dead)
    }

    /// One of them.
    pub async fn show(&self, key: &JobKey) -> Result<DeadJob, BrokerError> {
        let mut found = None;
        self.walk(async |_, delivery| {
            let dead = read(&delivery);
            if dead.key == *key {
                found = Some(dead);
            }
            Ok(found.is_none())
        })
        .await?;
        found.ok_or_else(|| BrokerError::NoSuchJob(key.to_string()))
    }

    /// Sends one again, to the queue that it came by. It needs another id: the old one has its result. All copies of it
    /// go from the dead letters, when the broker has it there.
    pub async fn replay(&self, key: &JobKey, as_id: &str) -> Result<(), BrokerError> {
        if !is_name(as_id) {
            return Err(BrokerError::Name(as_id.to_owned()));
        }
        let mut sent = false;
        self.walk(async |this, delivery| {
            let dead = read(&delivery);
            if dead.key == *key {
                if !sent {
                    this.send_again(&dead, &delivery, as_id).await?;
                    sent = true;
                }
                this.throw_away(delivery).await?;
            }
            Ok(true)
        })
        .await?;
        if sent { Ok(()) } else { Err(BrokerError::NoSuchJob(key.to_string())) }
    }

    /// Throws one away, all copies of it.
    pub async fn purge(&self, key: &JobKey) -> Result<(), BrokerError> {
        let mut purged = false;
        self.walk(async |this, delivery| {
            if read(&delivery).key == *key {
                this.throw_away(delivery).await?;
                purged = true;
            }
            Ok(true)
        })
        .await?;
        if purged { Ok(()) } else { Err(BrokerError::NoSuchJob(key.to_string())) }
    }

    /// Throws all away, and says how many.
    pub async fn purge_all(&self) -> Result<u64, BrokerError> {
        let channel = self.connected.channel().await?;
        let purge = channel.queue_purge(DEAD.into(), QueuePurgeOptions::default());
        self.connected.in_time("purging the dead letters", purge).await.map(u64::from)
    }

    /// Takes each in hand, oldest first, until `visit` has seen enough. What is not acknowledged goes back when the
    /// channel closes, in this order.
    async fn walk(
        &self,
        mut visit: impl AsyncFnMut(&Self, Delivery) -> Result<bool, BrokerError>,
    ) -> Result<(), BrokerError> {
        let channel = self.connected.channel().await?;
        // Those that come meanwhile are for the next time.
        let mut left = self.connected.in_time("counting the dead letters", depth(&channel, DEAD)).await?;
        let mut going = Ok(true);
        while left > 0 && matches!(going, Ok(true)) {
            let get = channel.basic_get(DEAD.into(), BasicGetOptions::default());
            let Some(got) = self.connected.in_time("reading the dead letters", get).await? else { break };
            going = visit(self, got.delivery).await;
            left -= 1;
        }
        let close = channel.close(200, "done".into());
        let closed = self.connected.in_time("putting the dead letters back", close).await;
        going.and(closed)
    }

    async fn throw_away(&self, delivery: Delivery) -> Result<(), BrokerError> {
        let ack = delivery.acker.ack(BasicAckOptions::default());
        if self.connected.in_time("taking a dead letter out", ack).await? {
            Ok(())
        } else {
            Err(BrokerError::Ended)
        }
    }

    async fn send_again(&self, dead: &DeadJob, delivery: &Delivery, as_id: &str) -> Result<(), BrokerError> {
        let refused =
            |why: &str| BrokerError::NotTaken { what: format!("the job {}", dead.key), why: why.to_owned() };
        if Lane::of_queue(&dead.queue).is_none() {
            return Err(refused("it came by no tenant's queue"));
        }
        let mut properties = BasicProperties::default()
            .with_message_id(as_id.into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        if let Some(trace) = header(&delivery.properties, "traceparent")
            .and_then(|parent| TraceParent::read(parent, header(&delivery.properties, "tracestate")))
        {
            properties = with_text(properties, "traceparent", &trace.header());
        }
        let body = renamed(&dead.body, as_id);
        let channel = self.connected.confirming().await?;
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let queue = dead.queue.as_str();
        let publish = async {
            channel.basic_publish("".into(), queue.into(), mandatory, &body, properties).await?.await
        };
        match self.connected.in_time("sending a job again", publish).await? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(_)) => return Err(refused("its queue is gone; `mayfly setup` makes it")),
            Confirmation::Nack(_) | Confirmation::NotRequested => return Err(refused("its queue is full")),
        }
        let ring = channel.basic_publish(
            BELL.into(),
            queue.into(),
            BasicPublishOptions::default(),
            b"",
            BasicProperties::default(),
        );
        // It is found without it, a little later.
        let _ = self.connected.in_time("ringing the bell", async { ring.await?.await }).await;
        Ok(())
    }
}

/// The job with another id, if it has one in itself.
fn renamed(body: &[u8], id: &str) -> Vec<u8> {
    let Ok(mut job) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body) else {
        return body.to_vec();
    };
    match job.get_mut("id") {
        Some(own) => {
            *own = id.into();
            serde_json::to_vec(&job).unwrap_or_else(|_| body.to_vec())
        }
        None => body.to_vec(),
    }
}

fn read(delivery: &Delivery) -> DeadJob {
    let text = |name| header(&delivery.properties, name).unwrap_or_default().to_owned();
    let id = delivery.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    DeadJob {
        key: JobKey::new(text("mayfly-tenant"), id),
        queue: text("mayfly-queue"),
        outcome: text("mayfly-outcome"),
        attempt: text("mayfly-attempt"),
        what: text("mayfly-what"),
        why: text("mayfly-why"),
        died: delivery.properties.timestamp().and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at))),
        body: delivery.data.clone(),
    }
}

//! Sends jobs as a tenant, and waits for their results.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{
    BasicProperties, Channel, Confirmation, Consumer,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde::Deserialize;
use tokio::{
    sync::{Mutex, oneshot},
    task::JoinHandle,
};
use tokio_stream::StreamExt;
use worker::{Class, Job, JobResult};

use super::{
    connect::{Connected, connect},
    error::BrokerError,
    names::{reply_queue, submit_exchange},
    properties::{short, with_header, with_text},
    settings::Settings,
    topology::table,
};
use crate::{
    key::{BodyDigest, is_name},
    queue::amqp::{SENT, unique},
};

/// A reply queue that nobody listens to goes away after this time.
const REPLIES_EXPIRE: Duration = Duration::from_secs(60 * 60);

/// Where results are awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyBy {
    /// Nowhere: they are not.
    Nothing,
    /// On this connection. The fastest way; what comes while it is broken is lost, and can be asked for elsewhere.
    Direct,
    /// In a queue of the tenant's own.
    Queue,
}

/// A job to send.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The job, as JSON.
    pub body: Vec<u8>,
    /// A tier or a word of trust, with `.high` behind it for the high class.
    pub key: String,
    /// What it is called. If missing, what it calls itself; else it is called by its body.
    pub id: Option<String>,
    /// How long it may wait.
    pub expires: Option<Duration>,
    /// The trace that it belongs to, as W3C writes it.
    pub traceparent: Option<String>,
}

/// The routing key of a job: the stronger word that it says, and its class.
#[must_use]
pub fn routing_key(job: &Job) -> String {
    let word = match (job.tier, job.trust) {
        (Some(tier), _) => tier.to_string(),
        (None, Some(trust)) => trust.name().to_owned(),
        (None, None) => "untrusted".to_owned(),
    };
    match job.priority {
        Class::High => format!("{word}.high"),
        Class::Normal => word,
    }
}

/// A job that the broker has taken.
#[derive(Debug)]
pub struct Submitted {
    /// What it is called.
    pub id: String,
    answer: Option<oneshot::Receiver<Answered>>,
}

/// A result that came.
#[derive(Debug)]
pub struct Answered {
    /// The result.
    pub result: Result<JobResult, String>,
    /// What the message is called: the same if it comes twice.
    pub message_id: Option<String>,
}

/// A tenant's connection to the broker.
pub struct Producer {
    connected: Connected,
    tenant: String,
    /// One message at a time: only so is it certain which one the broker sent back.
    channel: Mutex<Channel>,
    reply_to: Option<String>,
    waiting: Waiting,
    reader: Option<JoinHandle<()>>,
}

type Waiting = Arc<StdMutex<HashMap<String, oneshot::Sender<Answered>>>>;

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "producer of {}", self.tenant)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

impl Submitted {
    /// Waits for the result. [`BrokerError::Ended`] if it cannot come by this way any more.
    pub async fn result(self) -> Result<Answered, BrokerError> {
        match self.answer {
            Some(answer) => answer.await.map_err(|_| BrokerError::Ended),
            None => Err(BrokerError::Ended),
        }
    }
}

impl Producer {
    /// Connects as a tenant's user.
    pub async fn connect(settings: &Settings, tenant: &str, replies: ReplyBy) -> Result<Self, BrokerError> {
        if !is_name(tenant) {
            return Err(BrokerError::Name(tenant.to_owned()));
        }
        let connected = connect(settings, "producer").await?;
        let channel = connected.confirming().await?;
        let reply_to = match replies {
            ReplyBy::Nothing => None,
            ReplyBy::Direct => Some("amq.rabbitmq.reply-to".to_owned()),
            ReplyBy::Queue => Some(own_queue(&channel, tenant).await?),
        };
        let waiting = Waiting::default();
        let reader = match &reply_to {
            Some(queue) => Some(read_replies(&channel, queue, &waiting).await?),
            None => None,
        };
        let channel = Mutex::new(channel);
        Ok(Self { connected, tenant: tenant.to_owned(), channel, reply_to, waiting, reader })
    }

    /// Sends a job. When this returns the broker has it on disk.
    pub async fn submit(&self, job: Submission) -> Result<Submitted, BrokerError> {
        let id = job.id.or_else(|| own_id(&job.body));
        let id = id.unwrap_or_else(|| BodyDigest::of(&job.body).to_string().replace(':', "-"));
        if !is_name(&id) {
            return Err(BrokerError::Name(id));
        }
        let correlation = unique()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_correlation_id(correlation.as_str().into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_timestamp(now.as_secs())
            .with_app_id("mayfly".into());
        properties = with_header(properties, SENT, AMQPValue::LongLongInt(now.as_millis() as i64));
        if let Some(expires) = job.expires {
            properties = properties.with_expiration(expires.as_millis().to_string().into());
        }
        if let Some(trace) = &job.traceparent {
            properties = with_text(properties, "traceparent", trace);
        }
        let mut answer = None;
        if let Some(reply_to) = &self.reply_to {
            properties = properties.with_reply_to(reply_to.as_str().into());
            let (tell, told) = oneshot::channel();
            lock(&self.waiting).insert(correlation.clone(), tell);
            answer = Some(told);
        }
        let sent = self.send(&id, job.key, &job.body, properties).await;
        if sent.is_err() {
            lock(&self.waiting).remove(&correlation);
        }
        sent.map(|()| Submitted { id, answer })
    }

    async fn send(
        &self,
        id: &str,
        key: String,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        let key = short(key.clone()).ok_or(BrokerError::Name(key))?;
        let exchange =
            short(submit_exchange(&self.tenant)).ok_or_else(|| BrokerError::Name(self.tenant.clone()))?;
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let channel = self.channel.lock().await;
        let publish =
            async { channel.basic_publish(exchange, key, mandatory, body, properties).await?.await };
        let why = match self.connected.in_time("sending a job", publish).await? {
            Confirmation::Ack(None) => return Ok(()),
            Confirmation::Ack(Some(_)) => "nothing is bound there; `mayfly setup` makes it",
            Confirmation::Nack(_) | Confirmation::NotRequested => "the queue is full",
        };
        Err(BrokerError::NotTaken { what: format!("the job {id}"), why: why.to_owned() })
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Answered>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a job calls itself.
fn own_id(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        id: Option<String>,
    }
    serde_json::from_slice::<Named>(body).ok()?.id
}

async fn own_queue(channel: &Channel, tenant: &str) -> Result<String, BrokerError> {
    let name = reply_queue(tenant, &unique()?);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let expires = table([("x-expires", AMQPValue::LongInt(REPLIES_EXPIRE.as_millis() as i32))]);
    let declared = channel.queue_declare(name.as_str().into(), options, expires).await;
    declared.map_err(BrokerError::on(format!("declare {name}")))?;
    Ok(name)
}

async fn read_replies(
    channel: &Channel,
    queue: &str,
    waiting: &Waiting,
) -> Result<JoinHandle<()>, BrokerError> {
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(queue.into(), "replies".into(), options, FieldTable::default());
    let mut replies: Consumer = consume.await.map_err(BrokerError::on(format!("consume {queue}")))?;
    let waiting = Arc::clone(waiting);
    Ok(tokio::spawn(async move {
        while let Some(Ok(reply)) = replies.next().await {
            let correlation = reply.properties.correlation_id().as_ref();
            let who = correlation.and_then(|correlation| lock(&waiting).remove(correlation.as_str()));
            let answered = Answered {
                result: serde_json::from_slice(&reply.data).map_err(|error| error.to_string()),
                message_id: reply.properties.message_id().as_ref().map(ToString::to_string),
            };
            if let Some(who) = who {
                // Whoever does not wait any more has had enough.
                let _ = who.send(answered);
            }
        }
        // Nothing comes any more: who waits is told by the end of their channel.
        lock(&waiting).clear();
    }))
}

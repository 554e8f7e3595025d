//! The connection by which results go.

use std::{
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{BasicProperties, Channel, Confirmation, options::BasicPublishOptions, types::AMQPValue};
use tokio::{sync::Mutex, time::timeout};
use worker::causes;

use super::{
    decode::{DEADLINE, deadline},
    delivery::AmqpDelivery,
    state::State,
};
use crate::broker::{
    BrokerError, Connected, Settings,
    link::{Link, Open, Session},
    names::BELL,
    properties::with_header,
};

/// What a session of the outlet has.
pub(crate) struct Outlet {
    results: Channel,
    /// One message at a time: the client tells of what was sent back by order alone, and for these it counts whose it was.
    moves: Mutex<Channel>,
    /// Where a reply goes is said by whoever sent the job, so it must not hold up results.
    replies: Mutex<Channel>,
    rings: Channel,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outlet")
    }
}

/// Where a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    /// To a queue.
    Somewhere,
    /// Nobody is bound there.
    Nowhere,
    /// The queue takes no more.
    Refused,
}

/// A message that is to go.
pub(super) struct Outgoing<'a> {
    pub(super) exchange: &'a str,
    pub(super) key: &'a str,
    pub(super) body: &'a [u8],
    pub(super) properties: BasicProperties,
}

pub(super) fn link(settings: Settings, state: &Arc<State>) -> Link<Outlet> {
    let health = state.health.clone();
    let tell = Arc::new(move |link| health.send_modify(|health| health.outlet = link));
    Link::start(settings, "outlet", Opener, tell)
}

struct Opener;

impl Open<Outlet> for Opener {
    async fn open(&self, connected: &Connected, _: u64) -> Result<Outlet, BrokerError> {
        Ok(Outlet {
            results: connected.confirming().await?,
            moves: Mutex::new(connected.confirming().await?),
            replies: Mutex::new(connected.confirming().await?),
            rings: connected.channel().await?,
        })
    }
}

impl Session<Outlet> {
    /// Tells idle hosts that there is a job in a queue. Nobody has to hear it, and nobody waits for it for long.
    pub(super) async fn ring(&self, queue: &str) {
        let (options, nothing) = (BasicPublishOptions::default(), BasicProperties::default());
        let ring = self.parts.rings.basic_publish(BELL.into(), queue.into(), options, b"", nothing);
        let rung = tokio::select! {
            rung = self.connected.in_time("ringing the bell", ring) => rung.map(drop),
            () = self.ended() => Err(BrokerError::Ended),
        };
        if let Err(error) = rung {
            tracing::debug!(%error, "the bell could not be rung");
        }
    }

    /// Publishes a result, confirmed.
    pub(super) async fn publish(&self, message: &Outgoing<'_>) -> Result<Went, BrokerError> {
        self.send(&self.parts.results, message).await
    }

    /// Publishes what must not be lost on its way, confirmed.
    pub(super) async fn publish_alone(&self, message: &Outgoing<'_>) -> Result<Went, BrokerError> {
        self.send(&*self.parts.moves.lock().await, message).await
    }

    /// Publishes to a queue that a stranger named. `Err` harms nothing but this reply.
    pub(super) async fn reply(&self, message: &Outgoing<'_>) -> Result<Went, BrokerError> {
        let mut channel = self.parts.replies.lock().await;
        if !channel.status().connected() {
            *channel = self.connected.confirming().await?;
        }
        self.send(&channel, message).await
    }

    async fn send(&self, channel: &Channel, message: &Outgoing<'_>) -> Result<Went, BrokerError> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = message.properties.clone();
        let publish = async {
            let (exchange, key) = (message.exchange.into(), message.key.into());
            channel.basic_publish(exchange, key, options, message.body, properties).await?.await
        };
        let mut publish = std::pin::pin!(publish);
        loop {
            let confirmed = tokio::select! {
                confirmed = timeout(self.connected.answer_within, &mut publish) => confirmed,
                () = self.ended() => return Err(BrokerError::Ended),
            };
            return match confirmed {
                Ok(Ok(Confirmation::Ack(None))) => Ok(Went::Somewhere),
                Ok(Ok(Confirmation::Ack(Some(_)))) => Ok(Went::Nowhere),
                Ok(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => Ok(Went::Refused),
                Ok(Err(error)) => Err(BrokerError::Request { doing: "publish".to_owned(), error }),
                // The broker has an alarm on, and says so: it will take it when that is over.
                Err(_) if self.blocked() => continue,
                Err(_) => {
                    Err(BrokerError::TooLong { doing: "publishing", within: self.connected.answer_within })
                }
            };
        }
    }
}

/// Sends a job on to another queue, as it is. Its deadline stays.
pub(super) async fn send_on(
    link: &Link<Outlet>,
    delivery: &AmqpDelivery,
    queue: &str,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut properties = delivery.message.properties.clone();
    if let Some(deadline) = deadline(&properties) {
        properties = with_header(properties, DEADLINE, AMQPValue::LongLongInt(deadline));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let left = i128::from(deadline) - now as i128;
        properties = properties.with_expiration(left.max(0).to_string().into());
    }
    let body = &delivery.message.body;
    let message = Outgoing { exchange: "", key: queue, body, properties: properties.with_delivery_mode(2) };
    loop {
        let session = tokio::select! {
            session = link.session() => session,
            () = delivery.session_ended() => return Ok(()),
        };
        match session.publish_alone(&message).await {
            Ok(Went::Somewhere) => return Ok(()),
            Ok(went) => {
                let why = if went == Went::Nowhere {
                    "it is not there; `mayfly setup` makes it"
                } else {
                    "it is full"
                };
                let what = format!("the job {} for {queue}", delivery.key());
                return Err(BrokerError::NotTaken { what, why: why.to_owned() }.into());
            }
            Err(error) => session.fail(causes(&error)),
        }
    }
}

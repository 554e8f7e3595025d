//! The connection by which jobs come.

use std::sync::{Arc, Mutex, PoisonError};

use lapin::{
    Channel, Consumer,
    message::BasicGetMessage,
    options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::state::State;
use crate::broker::{
    BrokerError, Connected, Settings, Topology, check,
    link::{Link, Open, Session},
    names::BELL,
    topology::table,
};

/// Rings that are kept while nobody listens. When it is full, all lanes are looked at instead.
pub(super) const RINGS: u32 = 16;

/// What a session of the intake has.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Channels that no delivery uses.
    free: Mutex<Vec<Channel>>,
    pub(super) bell: Bell,
    /// For looking how much waits.
    pub(super) looking: Channel,
}

/// A queue of this host's own, into which every new job is copied; when it is full, the oldest copy goes. While nobody
/// listens it holds no more than that, so its cost does not grow with what waits.
#[derive(Debug)]
pub(super) struct Bell {
    pub(super) queue: String,
    pub(super) channel: Channel,
    pub(super) rings: Mutex<Option<Consumer>>,
}

pub(super) fn link(settings: Settings, topology: Topology, state: &Arc<State>) -> Link<Intake> {
    let health = state.health.clone();
    let tell = Arc::new(move |link| health.send_modify(|health| health.intake = link));
    Link::start(settings, "intake", Opener { topology }, tell)
}

struct Opener {
    topology: Topology,
}

impl Open<Intake> for Opener {
    async fn open(&self, connected: &Connected, _: u64) -> Result<Intake, BrokerError> {
        check(connected, &self.topology).await?;
        let bell = Bell::hang(connected).await?;
        Ok(Intake { free: Mutex::default(), bell, looking: connected.channel().await? })
    }
}

impl Bell {
    async fn hang(connected: &Connected) -> Result<Self, BrokerError> {
        let on = BrokerError::on;
        let channel = connected.channel().await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = format!("{BELL}.{}", unique()?);
        let small = table([("x-max-length", AMQPValue::LongInt(RINGS as i32))]);
        let none = FieldTable::default;
        channel.queue_declare(queue.as_str().into(), options, small).await.map_err(on("declare the bell"))?;
        let bind = channel.queue_bind(
            queue.as_str().into(),
            BELL.into(),
            "".into(),
            QueueBindOptions::default(),
            none(),
        );
        bind.await.map_err(on("bind the bell"))?;
        // One at a time: the next comes when this host has nothing to do.
        channel.basic_qos(1, BasicQosOptions::default()).await.map_err(on("limit the bell"))?;
        let consume = channel.basic_consume(
            queue.as_str().into(),
            "bell".into(),
            BasicConsumeOptions::default(),
            none(),
        );
        let rings = consume.await.map_err(on("hear the bell"))?;
        Ok(Self { queue, channel, rings: Mutex::new(Some(rings)) })
    }
}

/// A name that nobody else takes.
pub(crate) fn unique() -> Result<String, BrokerError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| BrokerError::Name(error.to_string()))?;
    Ok(random.iter().fold(String::new(), |name, byte| name + &format!("{byte:02x}")))
}

impl Session<Intake> {
    /// Whether the broker was told. A client that loses its connection meanwhile may never say so.
    pub(super) async fn told(&self, telling: impl Future<Output = lapin::Result<bool>>) -> bool {
        tokio::select! {
            told = self.connected.limited(telling) => matches!(told, Ok(true)),
            () = self.ended() => false,
        }
    }
}

impl Intake {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel on which nothing is out.
    pub(super) fn reuse(&self, channel: Channel) {
        if channel.status().connected() {
            self.free().push(channel);
        }
    }
}

/// Gets one message from a queue, and the channel that is now its own.
pub(super) async fn get(
    session: &Session<Intake>,
    queue: &str,
) -> Result<Option<(Channel, BasicGetMessage)>, BrokerError> {
    let free = session.parts.free().pop();
    let channel = match free {
        Some(channel) => channel,
        None => session.connected.channel().await?,
    };
    let get = channel.basic_get(queue.into(), BasicGetOptions::default());
    let got = session.connected.in_time("getting a job", get).await?;
    if let Some(message) = got {
        return Ok(Some((channel, message)));
    }
    session.parts.reuse(channel);
    Ok(None)
}

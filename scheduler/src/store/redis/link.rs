//! One connection to Redis that comes back, and commands that are said again until they are answered.
//!
//! The connection manager of the redis crate is not used: it keeps a connection on which an answer timed out, so one
//! that the network swallowed would be waited for again and again; and it comes back without a word, while here
//! something must be said first ([`Greet`]). Every command may run twice: whoever sends one makes sure that this
//! does no harm.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{
    sync::{Mutex, watch},
    time::sleep,
};

use super::RedisStoreError;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Far below any lease: whoever waits for Redis must be back before its lease is over.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How Redis stands, as seen from here.
#[derive(Debug, Clone)]
pub enum Health {
    /// Nothing has been asked yet.
    Unknown,
    /// It answers.
    Connected,
    /// It does not. Everything that needs it waits.
    Down {
        /// Since when.
        since: Instant,
        /// Why, as last seen.
        reason: String,
    },
}

/// What all links of one store share: how Redis stands, and whether the store is still open.
#[derive(Debug, Clone)]
pub(super) struct Outlook {
    health: watch::Sender<Health>,
    closed: watch::Sender<bool>,
}

impl Outlook {
    pub(super) fn new() -> Self {
        Self { health: watch::Sender::new(Health::Unknown), closed: watch::Sender::new(false) }
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until the store is closed. Cancel safe.
    pub(super) async fn closed(&self) {
        // It holds a sender itself, so there is always one.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn up(&self) {
        self.health.send_if_modified(|health| {
            let news = !matches!(health, Health::Connected);
            if let Health::Down { since, .. } = health {
                tracing::info!(after = ?since.elapsed(), "Redis is back");
            }
            *health = Health::Connected;
            news
        });
    }

    fn down(&self, error: &RedisError) {
        let reason = error.to_string();
        self.health.send_if_modified(|health| match health {
            Health::Down { reason: known, .. } if *known == reason => false,
            Health::Down { reason: known, .. } => {
                *known = reason;
                true
            }
            Health::Unknown | Health::Connected => {
                // Whoever owns the store says it to people.
                tracing::debug!(%reason, "Redis is away: what needs it waits");
                *health = Health::Down { since: Instant::now(), reason };
                true
            }
        });
    }
}

/// What is said first on each new connection.
pub(super) type Greet =
    Box<dyn Fn(MultiplexedConnection) -> Pin<Box<dyn Future<Output = RedisResult<()>> + Send>> + Send + Sync>;

/// Something that can be asked, and asked again.
pub(super) trait Ask: Sync {
    /// Asks once.
    fn ask<T: FromRedisValue + Send>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = RedisResult<T>> + Send;
}

impl Ask for ScriptInvocation<'_> {
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> RedisResult<T> {
        self.invoke_async(connection).await
    }
}

impl Ask for Cmd {
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> RedisResult<T> {
        self.query_async(connection).await
    }
}

impl Ask for redis::Pipeline {
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> RedisResult<T> {
        self.query_async(connection).await
    }
}

/// A connection, and how to get another.
pub(super) struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    outlook: Outlook,
    /// The connection and its number.
    current: Mutex<Option<(u64, MultiplexedConnection)>>,
    made: AtomicU64,
    greet: OnceLock<Greet>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Link {
    /// A link on which an answer is waited for no longer than `patience`; `None`: for ever, for commands that block.
    pub(super) fn new(
        client: Client,
        connect: Duration,
        patience: Option<Duration>,
        outlook: Outlook,
    ) -> Arc<Self> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(connect)).set_response_timeout(patience);
        Arc::new(Self {
            client,
            config,
            outlook,
            current: Mutex::new(None),
            made: AtomicU64::new(0),
            greet: OnceLock::new(),
        })
    }

    /// Has this said first on each new connection.
    pub(super) fn greet_with(&self, greet: Greet) {
        // Set once, when the store is made.
        let _ = self.greet.set(greet);
    }

    /// Asks until there is an answer or the store is closed.
    pub(super) async fn ask<T: FromRedisValue + Send>(&self, what: &impl Ask) -> Result<T, RedisStoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.outlook.is_closed() {
                return Err(RedisStoreError::Closed);
            }
            match self.try_once(what).await {
                Ok(answer) => return Ok(answer),
                Err(error) if passes(&error) => {
                    tokio::select! {
                        () = self.outlook.closed() => return Err(RedisStoreError::Closed),
                        () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    }
                }
                Err(error) => return Err(RedisStoreError::Refused(error)),
            }
        }
    }

    /// Asks once, on a new connection if there is none.
    pub(super) async fn try_once<T: FromRedisValue + Send>(&self, what: &impl Ask) -> RedisResult<T> {
        let asked = async {
            let (number, mut connection) = self.connection().await?;
            let answer = what.ask(&mut connection).await;
            if let Err(error) = &answer
                && passes(error)
            {
                self.give_up(number).await;
            }
            answer
        };
        let answer = asked.await;
        match &answer {
            Err(error) if passes(error) => self.outlook.down(error),
            _ => self.outlook.up(),
        }
        answer
    }

    /// The connection, made and greeted by whoever needs it first.
    async fn connection(&self) -> RedisResult<(u64, MultiplexedConnection)> {
        let mut current = self.current.lock().await;
        if let Some((number, connection)) = &*current {
            return Ok((*number, connection.clone()));
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        if let Some(greet) = self.greet.get() {
            greet(connection.clone()).await?;
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        *current = Some((number, connection.clone()));
        Ok((number, connection))
    }

    /// Nothing is asked by this link until what this gives is dropped.
    #[cfg(test)]
    pub(super) async fn hold_up(&self) -> impl Drop + '_ {
        self.current.lock().await
    }

    /// Leaves a connection, unless somebody else has done so already.
    async fn give_up(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|(now, _)| *now == number) {
            *current = None;
        }
    }
}

/// Whether it may work later: the connection, a restart, a failover, a full memory or disk that somebody will see to.
/// A wrong password too: passwords are changed while programs run.
pub(super) fn passes(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading
            | ServerErrorKind::NoScript
            | ServerErrorKind::TryAgain
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly => true,
            ServerErrorKind::ResponseError => {
                error.detail().is_some_and(|detail| detail.contains("max number of clients"))
            }
            _ => false,
        },
        _ => matches!(
            error.code(),
            Some("OOM" | "MISCONF" | "BUSY" | "NOREPLICAS" | "NOAUTH" | "WRONGPASS" | "UNKILLABLE")
        ),
    }
}

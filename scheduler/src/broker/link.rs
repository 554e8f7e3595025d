//! A connection that comes back: each of its lives is a session with an epoch of its own.
//!
//! The client's own recovery is not used: it would carry deliveries, which died with the connection, into the next one.
//! Here nothing of a session outlives it. A quiet end of a stream, a request that is not answered, a channel that the
//! broker closes: each ends the session, and the next one looks again for all that it needs.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lapin::Event;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use worker::causes;

use super::{
    connect::{Connected, connect},
    error::BrokerError,
    settings::Settings,
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long looking for all that must be there may take.
const OPEN: Duration = Duration::from_secs(60);
/// How long saying goodbye may take. A broker that does not hear it notices by itself.
const CLOSE: Duration = Duration::from_secs(2);
const CLOSED: &str = "the queue was closed";
/// A session that lived so long was a good one: the next try comes soon.
const GOOD: Duration = Duration::from_secs(10);

/// How the two connections of a queue are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// The one by which jobs come.
    pub intake: LinkHealth,
    /// The one by which results go.
    pub outlet: LinkHealth,
}

/// How one connection is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkHealth {
    /// Whether there is one, with all that it needs.
    pub connected: bool,
    /// Which life it is in, from 1.
    pub epoch: u64,
    /// Since when it is so.
    pub since: Option<SystemTime>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Why the broker takes no messages on it: one of its alarms.
    pub blocked: Option<String>,
}

/// One life of a connection.
pub(crate) struct Session<P> {
    pub(crate) epoch: u64,
    pub(crate) connected: Connected,
    pub(crate) parts: P,
    broken: watch::Sender<Option<String>>,
}

impl<P> fmt::Debug for Session<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.epoch)
    }
}

impl<P> Session<P> {
    /// Ends it: what it has is not to be trusted any more. The first reason counts.
    pub(crate) fn fail(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            if first {
                *broken = Some(reason);
            }
            first
        });
    }

    /// Whether it can still be used.
    pub(crate) fn lives(&self) -> bool {
        self.broken.borrow().is_none() && self.connected.connection.status().connected()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        // The sender is our own, so this cannot fail before it is dropped.
        let _ = self.broken.subscribe().wait_for(Option::is_some).await;
    }

    /// Whether the broker has an alarm on.
    pub(crate) fn blocked(&self) -> bool {
        self.connected.connection.status().blocked()
    }
}

/// Keeps one session alive, and makes the next when it ends. When this is dropped the session ends, whoever still holds
/// something of it: what was delivered goes to others.
#[derive(Debug)]
pub(crate) struct Link<P> {
    current: watch::Receiver<Option<Arc<Session<P>>>>,
}

/// Makes the parts of a session on a fresh connection.
pub(crate) trait Open<P>: Send + Sync + 'static {
    fn open(&self, connected: &Connected, epoch: u64) -> impl Future<Output = Result<P, BrokerError>> + Send;
}

/// Where a link tells how it is.
pub(crate) type Tell = Arc<dyn Fn(LinkHealth) + Send + Sync>;

impl<P: Send + Sync + 'static> Link<P> {
    /// Starts it. `tell` hears each change.
    pub(crate) fn start(settings: Settings, purpose: &'static str, open: impl Open<P>, tell: Tell) -> Self {
        let (sender, current) = watch::channel(None);
        // It ends when nobody looks at its sessions any more.
        tokio::spawn(supervise(settings, purpose, open, tell, sender));
        Self { current }
    }

    /// The session there is now, if it can be used.
    pub(crate) fn now(&self) -> Option<Arc<Session<P>>> {
        self.current.borrow().clone().filter(|session| session.lives())
    }

    /// Waits for a session.
    pub(crate) async fn session(&self) -> Arc<Session<P>> {
        let mut current = self.current.clone();
        loop {
            if let Some(session) = self.now() {
                return session;
            }
            if current.changed().await.is_err() {
                // The supervisor ends with the link only.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn supervise<P: Send + Sync + 'static>(
    settings: Settings,
    purpose: &'static str,
    open: impl Open<P>,
    tell: Tell,
    sender: watch::Sender<Option<Arc<Session<P>>>>,
) {
    let (mut epoch, mut pause) = (0, FIRST_PAUSE);
    loop {
        epoch += 1;
        let started = Instant::now();
        let begun = tokio::select! {
            () = sender.closed() => return,
            begun = begin(&settings, purpose, &open, epoch) => begun,
        };
        let reason = match begun {
            Ok(session) => {
                let session = Arc::new(session);
                let health = LinkHealth {
                    connected: true,
                    epoch,
                    since: Some(SystemTime::now()),
                    ..LinkHealth::default()
                };
                tell(health.clone());
                tracing::info!(purpose, epoch, broker = settings.address(), "connected");
                sender.send_replace(Some(Arc::clone(&session)));
                let reason = tokio::select! {
                    () = sender.closed() => {
                        session.fail(CLOSED);
                        CLOSED.to_owned()
                    }
                    reason = watch_over(&session, &health, &tell) => reason,
                };
                sender.send_replace(None);
                // Whoever holds a delivery holds the connection: without this the broker would wait for it.
                let close = session.connected.connection.close(320, "its session has ended".into());
                let _ = timeout(CLOSE, close).await;
                reason
            }
            Err(error) => causes(&error),
        };
        if sender.is_closed() {
            return;
        }
        // Whoever owns the link says it to people.
        tracing::debug!(purpose, epoch, reason, "not connected to the broker");
        tell(LinkHealth {
            epoch,
            since: Some(SystemTime::now()),
            reason: Some(reason),
            ..LinkHealth::default()
        });
        pause = if started.elapsed() > GOOD { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::select! {
            () = sender.closed() => return,
            () = sleep(jittered(pause)) => {}
        }
    }
}

async fn begin<P>(
    settings: &Settings,
    purpose: &str,
    open: &impl Open<P>,
    epoch: u64,
) -> Result<Session<P>, BrokerError> {
    let connected = connect(settings, purpose).await?;
    // Each request has its own deadline; this one is for what a client that lost its connection never tells.
    let parts = timeout(OPEN, open.open(&connected, epoch)).await;
    let parts = parts
        .map_err(|_| BrokerError::TooLong { doing: "looking what is on the broker", within: OPEN })??;
    Ok(Session { epoch, connected, parts, broken: watch::Sender::new(None) })
}

/// Waits for the end of a session, and says why it ended.
async fn watch_over<P>(session: &Session<P>, health: &LinkHealth, tell: &Tell) -> String {
    let mut events = std::pin::pin!(session.connected.connection.events_listener());
    let mut broken = session.broken.subscribe();
    loop {
        if !session.connected.connection.status().connected() {
            session.fail("the connection was lost");
        }
        tokio::select! {
            reason = broken.wait_for(Option::is_some) => {
                return reason.ok().and_then(|reason| reason.clone()).unwrap_or_default();
            }
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tell(LinkHealth { blocked: Some(reason), ..health.clone() });
                }
                Some(Event::ConnectionUnblocked) => tell(health.clone()),
                Some(Event::Error(error)) if !session.connected.connection.status().connected() => {
                    session.fail(causes(&error));
                }
                // An error of one channel ends what uses that channel.
                Some(_) => {}
                None => session.fail("the connection ended"),
            },
        }
    }
}

/// Hosts that lost the same broker do not come back in one moment.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness there is no jitter, and that is all.
    let _ = getrandom::fill(&mut random);
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    pause.mul_f64(0.5 + share)
}

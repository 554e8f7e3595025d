//! Replies straight to the connection of whoever waits for them.
//!
//! Whoever sends a job says where, and brokers do not survive every address: 3.10 and 4.0 close the connection by which a reply was
//! to go to a node that is not theirs. So each tenant's go by a connection of its own, made when it is needed: whoever
//! sends such an address cuts off nobody else.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Instant,
};

use lapin::{Channel, options::BasicPublishOptions};
use tokio::sync::Mutex;

use super::outlet::Outgoing;
use crate::{
    broker::{BrokerError, Connected, Settings, connect},
    failpoint,
};

/// Connections that are kept. The one that was used longest ago goes first.
const KEPT: usize = 32;

/// Sends direct replies.
pub(super) struct DirectReplies {
    settings: Settings,
    lines: StdMutex<HashMap<String, Line>>,
}

struct Line {
    used: Instant,
    /// One reply at a time.
    open: Arc<Mutex<Option<Open>>>,
}

struct Open {
    connected: Connected,
    channel: Channel,
}

impl fmt::Debug for DirectReplies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("direct replies")
    }
}

impl DirectReplies {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, lines: StdMutex::default() }
    }

    /// Sends one. The broker does not say whether anybody hears it.
    pub(super) async fn send(&self, tenant: &str, message: &Outgoing<'_>) -> Result<(), BrokerError> {
        if failpoint::is_off("direct-replies") {
            return Ok(());
        }
        let line = self.line(tenant);
        let mut line = line.lock().await;
        if self.try_once(&mut line, message).await.is_ok() {
            return Ok(());
        }
        // The connection may have been cut long ago: whoever waits is not to pay for that.
        self.try_once(&mut line, message).await
    }

    async fn try_once(&self, line: &mut Option<Open>, message: &Outgoing<'_>) -> Result<(), BrokerError> {
        // One that failed is not used again.
        let open = if let Some(open) = line.take().filter(|open| open.channel.status().connected()) {
            open
        } else {
            let connected = connect(&self.settings, "replies").await?;
            Open { channel: connected.confirming().await?, connected }
        };
        let publish = async {
            let options = BasicPublishOptions::default();
            let (exchange, key) = (message.exchange.into(), message.key.into());
            let properties = message.properties.clone();
            open.channel.basic_publish(exchange, key, options, message.body, properties).await?.await
        };
        open.connected.in_time("replying", publish).await?;
        *line = Some(open);
        Ok(())
    }

    fn line(&self, tenant: &str) -> Arc<Mutex<Option<Open>>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= KEPT && !lines.contains_key(tenant) {
            let oldest = lines.iter().min_by_key(|(_, line)| line.used).map(|(tenant, _)| tenant.clone());
            oldest.and_then(|oldest| lines.remove(&oldest));
        }
        let line = lines
            .entry(tenant.to_owned())
            .or_insert_with(|| Line { used: Instant::now(), open: Arc::default() });
        line.used = Instant::now();
        Arc::clone(&line.open)
    }
}

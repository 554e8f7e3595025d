//! Hearing that a job which runs is not wanted any more.
//!
//! A message makes it quick, the heartbeat makes it certain: what a lost message would have said is said again with each
//! heartbeat until the job has its result.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::StreamExt;
use redis::RedisResult;
use tokio::{sync::broadcast, task::JoinHandle, time::sleep};

use super::{RedisStore, Shared};
use crate::key::JobKey;

const PAUSE: Duration = Duration::from_millis(500);

/// Jobs that somebody cancelled while they ran: on this host, or elsewhere. One may be named more than once.
#[derive(Debug)]
pub struct Cancellations(broadcast::Receiver<JobKey>);

impl Cancellations {
    /// The next; `None` once the store is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<JobKey> {
        loop {
            match self.0.recv().await {
                Ok(job) => return Some(job),
                // What was missed is said again with the next heartbeat.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl RedisStore {
    /// Hears from now on.
    #[must_use]
    pub fn cancellations(&self) -> Cancellations {
        Cancellations(self.shared.cancelled.subscribe())
    }
}

/// Starts to listen to the channel. It ends with the store.
pub(super) fn listen(shared: &Arc<Shared>) -> JoinHandle<()> {
    let outlook = shared.outlook.clone();
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        let listening = async {
            // A connection that is silent and one that is lost look the same; the heartbeat makes up for it.
            while let Some(heard) = hear(&shared).await {
                if let Err(error) = heard {
                    tracing::debug!(%error, "the channel of cancellations is lost");
                }
                sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = outlook.closed() => {}
            () = listening => {}
        }
    })
}

/// Listens on one connection until it ends. `None`: the store is gone.
async fn hear(shared: &Weak<Shared>) -> Option<RedisResult<()>> {
    let (client, channel) = {
        let shared = shared.upgrade()?;
        (shared.client.clone(), shared.keys.channel.clone())
    };
    let opened = async {
        let mut connection = client.get_async_pubsub().await?;
        connection.subscribe(&channel).await?;
        Ok(connection.into_on_message())
    };
    let mut messages = match opened.await {
        Ok(messages) => messages,
        Err(error) => return Some(Err(error)),
    };
    // This connection's end is seen at once, and may be the end of a Redis process: whoever came back may have forgotten.
    if let Err(error) = shared.upgrade()?.nudge().await {
        tracing::warn!(error = %worker::causes(&error), "Redis does not take what it is told");
    }
    while let Some(message) = messages.next().await {
        let job = std::str::from_utf8(message.get_payload_bytes()).ok().and_then(|name| name.parse().ok());
        if let Some(job) = job {
            let _ = shared.upgrade()?.cancelled.send(job);
        }
    }
    Some(Ok(()))
}

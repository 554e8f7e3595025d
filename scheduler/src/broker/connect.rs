//! One connection to the broker.

use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties, options::ConfirmSelectOptions, tcp::OwnedTLSConfig};
use tokio::time::timeout;

use super::{error::BrokerError, settings::Settings};

/// A connection. It closes when this is dropped.
#[derive(Debug)]
pub struct Connected {
    pub(crate) connection: Connection,
    pub(crate) answer_within: Duration,
}

/// Connects; `purpose` is shown to the broker's operator.
pub async fn connect(settings: &Settings, purpose: &str) -> Result<Connected, BrokerError> {
    let mut uri = settings.uri.clone();
    uri.query.heartbeat = Some(settings.heartbeat.as_secs().clamp(1, 3600) as u16);
    uri.query.connection_timeout = Some(settings.connect_within.as_millis() as u64);
    let properties = ConnectionProperties::default().with_connection_name(format!("mayfly {purpose}").into());
    let tls = OwnedTLSConfig { identity: None, cert_chain: settings.authorities.clone() };
    let runtime = lapin::runtime::default_runtime()
        .map_err(|error| BrokerError::Connect { address: settings.address(), error })?;
    // The client's own timeout ends with the TCP handshake; a broker that then says nothing would hold us for ever.
    let connecting = Connection::connect_uri_with_config(uri, properties, tls, runtime);
    match timeout(settings.connect_within, connecting).await {
        Ok(Ok(connection)) => Ok(Connected { connection, answer_within: settings.answer_within }),
        Ok(Err(error)) => Err(BrokerError::Connect { address: settings.address(), error }),
        Err(_) => {
            Err(BrokerError::TooLong { doing: "connecting to the broker", within: settings.connect_within })
        }
    }
}

impl Connected {
    /// A channel.
    pub(crate) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.in_time("opening a channel", self.connection.create_channel()).await
    }

    /// A channel on which the broker confirms what it has taken.
    pub(crate) async fn confirming(&self) -> Result<Channel, BrokerError> {
        let channel = self.channel().await?;
        self.in_time("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// A request, for which the broker has only so long, with the client's own error.
    pub(crate) async fn limited<T>(
        &self,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> lapin::Result<T> {
        let late = || lapin::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        timeout(self.answer_within, request).await.unwrap_or_else(|_| Err(late()))
    }

    /// A request, for which the broker has only so long.
    pub(crate) async fn in_time<T>(
        &self,
        doing: &'static str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        match timeout(self.answer_within, request).await {
            Ok(answered) => answered.map_err(BrokerError::on(doing)),
            Err(_) => Err(BrokerError::TooLong { doing, within: self.answer_within }),
        }
    }
}

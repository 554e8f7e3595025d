//! Makes what must be on the broker, and looks whether it is there.

use lapin::{
    Channel, ErrorKind,
    options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::FieldTable,
};

use super::{
    connect::Connected,
    error::{BrokerError, Difference},
    topology::{Binding, Exchange, Queue, Target, Topology},
};

/// Bindings that are asked for before an answer is waited for.
const AT_ONCE: usize = 500;

/// Makes all that is missing. What is there and other than it must be is an error: nothing is thrown away.
pub async fn declare(connected: &Connected, topology: &Topology) -> Result<(), BrokerError> {
    let mut channel = connected.channel().await?;
    for exchange in &topology.exchanges {
        declare_exchange(&channel, exchange, false)
            .await
            .map_err(|error| refused("exchange", &exchange.name, error))?;
    }
    for queue in &topology.queues {
        connected
            .limited(declare_queue(&channel, queue, false))
            .await
            .map_err(|error| refused("queue", &queue.name, error))?;
    }
    for some in topology.bindings.chunks(AT_ONCE) {
        for binding in some {
            bind(&channel, binding, true).await.map_err(|error| refused("binding", &binding.key, error))?;
        }
        // The last one again, for its answer: it comes after all before it were done.
        if let Some(last) = some.last() {
            bind(&channel, last, false).await.map_err(|error| refused("binding", &last.key, error))?;
        }
    }
    for binding in &topology.not_bound {
        channel = unbind(connected, channel, binding).await?;
    }
    Ok(())
}

/// Looks whether all that must be there is there and as it must be. Makes nothing. Bindings cannot be asked for.
pub async fn check(connected: &Connected, topology: &Topology) -> Result<(), BrokerError> {
    let mut channel = connected.channel().await?;
    let mut differences = Vec::new();
    for exchange in &topology.exchanges {
        let what = format!("exchange {}", exchange.name);
        if let Err(error) = connected.limited(declare_exchange(&channel, exchange, true)).await {
            channel = note(connected, &what, error, &mut differences).await?;
        } else if let Err(error) = connected.limited(declare_exchange(&channel, exchange, false)).await {
            channel = note(connected, &what, error, &mut differences).await?;
        }
    }
    for queue in &topology.queues {
        let what = format!("queue {}", queue.name);
        if let Err(error) = connected.limited(declare_queue(&channel, queue, true)).await {
            channel = note(connected, &what, error, &mut differences).await?;
        } else if let Err(error) = connected.limited(declare_queue(&channel, queue, false)).await {
            channel = note(connected, &what, error, &mut differences).await?;
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(BrokerError::NotSetUp(differences)) }
}

/// How many messages wait in each of these queues.
pub async fn depths(connected: &Connected, queues: &[String]) -> Result<Vec<u64>, BrokerError> {
    let channel = connected.channel().await?;
    let mut depths = Vec::new();
    for queue in queues {
        depths.push(depth(&channel, queue).await.map_err(|error| refused("queue", queue, error))?);
    }
    Ok(depths)
}

/// How many messages wait in a queue.
pub(crate) async fn depth(channel: &Channel, queue: &str) -> lapin::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
    Ok(u64::from(queue.message_count()))
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange, passive: bool) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
    let (name, arguments) = (exchange.name.as_str().into(), exchange.arguments.clone());
    channel.exchange_declare(name, exchange.kind.clone(), options, arguments).await
}

async fn declare_queue(channel: &Channel, queue: &Queue, passive: bool) -> lapin::Result<()> {
    let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.name.as_str().into(), options, queue.arguments.clone()).await.map(drop)
}

async fn bind(channel: &Channel, binding: &Binding, nowait: bool) -> lapin::Result<()> {
    let (from, key) = (binding.exchange.as_str().into(), binding.key.as_str().into());
    match &binding.to {
        Target::Queue(queue) => {
            let options = QueueBindOptions { nowait };
            channel.queue_bind(queue.as_str().into(), from, key, options, FieldTable::default()).await
        }
        Target::Exchange(exchange) => {
            let options = ExchangeBindOptions { nowait };
            channel.exchange_bind(exchange.as_str().into(), from, key, options, FieldTable::default()).await
        }
    }
}

/// Gives the channel back, or another one if the broker closed it because there is no such queue.
async fn unbind(connected: &Connected, channel: Channel, binding: &Binding) -> Result<Channel, BrokerError> {
    let Target::Queue(queue) = &binding.to else { return Ok(channel) };
    let (from, key) = (binding.exchange.as_str().into(), binding.key.as_str().into());
    match channel.queue_unbind(queue.as_str().into(), from, key, FieldTable::default()).await {
        Ok(()) => Ok(channel),
        Err(error) if soft(&error) == Some(AMQPSoftError::NOTFOUND) => connected.channel().await,
        Err(error) => Err(refused("binding", &binding.key, error)),
    }
}

/// Notes what an error means for what was looked at. The broker closed the channel with it; here is another.
async fn note(
    connected: &Connected,
    what: &str,
    error: lapin::Error,
    differences: &mut Vec<Difference>,
) -> Result<Channel, BrokerError> {
    match soft(&error) {
        Some(AMQPSoftError::NOTFOUND) => differences.push(Difference::Missing(what.to_owned())),
        Some(AMQPSoftError::PRECONDITIONFAILED) => {
            differences.push(Difference::Other { what: what.to_owned(), how: error.to_string() });
        }
        // Who may not declare it cannot ask how it is; that it is there was seen.
        Some(AMQPSoftError::ACCESSREFUSED) => {}
        _ => return Err(BrokerError::Request { doing: format!("look for {what}"), error }),
    }
    connected.channel().await
}

fn refused(kind: &str, name: &str, error: lapin::Error) -> BrokerError {
    let what = format!("{kind} {name}");
    match soft(&error) {
        Some(AMQPSoftError::PRECONDITIONFAILED) => {
            BrokerError::NotSetUp(vec![Difference::Other { what, how: error.to_string() }])
        }
        Some(AMQPSoftError::NOTFOUND) => BrokerError::NotSetUp(vec![Difference::Missing(what)]),
        _ => BrokerError::Request { doing: format!("declare {what}"), error },
    }
}

/// The broker's reason for closing a channel.
pub(crate) fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

//! Jobs that run for longer than the broker lets a host hold them: recorded in the store, then acknowledged to the broker.
//!
//! It is the one part of the queue that knows the store. In this order: the store has the claim, the broker hears that the
//! job is done with, the job runs, its result is told, the claim is forgotten. A crash after the first step leaves a
//! message that comes again, or a claim that nobody has, or both: whoever comes first has the job, and the other finds it
//! begun. Claims that nobody has are counted by lane and pulled like what waits there, so shares and caps hold for them.

use std::{sync::Arc, time::Duration};

use lapin::{BasicProperties, types::FieldTable};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use worker::{ErrorReport, causes};

use super::{
    Neighbours,
    decode::{DEADLINE, Message},
    delivery::AmqpDelivery,
    state::State,
};
use crate::{
    failpoint,
    queue::{Keeping, fair::LaneNumber},
    store::redis::{Claiming, RedisStoreError},
};

/// How often claims are looked for that nobody has.
const LOOK: Duration = Duration::from_secs(1);
/// When a job is tried again of which another message is claimed.
const SHORTLY: Duration = Duration::from_millis(500);
/// Headers that the broker adds and counts up.
pub(super) const BROKERS: &str = "x-";

/// What is recorded of a message, before its body.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    exchange: String,
    key: String,
    properties: BasicProperties,
}

const VERSION: u32 = 1;

/// Sees to it that a job which may run for so long comes back if this process dies, and not before.
pub(super) async fn keep(neighbours: &Neighbours, delivery: &mut AmqpDelivery, run: Duration) -> Keeping {
    if run <= neighbours.longest_held || delivery.is_claimed() {
        return Keeping::Kept;
    }
    let Ok(record) = record(&delivery.message) else {
        return Keeping::Refused(refusal(run, neighbours.longest_held, "its message cannot be recorded"));
    };
    match neighbours.store.claim(delivery.key(), delivery.queue(), record).await {
        Ok(Claiming::Claimed(claim)) => {
            failpoint::pass("claimed");
            delivery.is_claimed_now(claim, neighbours.store.clone()).await;
            failpoint::pass("claim-acked");
            Keeping::Kept
        }
        Ok(Claiming::Held) => Keeping::NotNow(SHORTLY),
        Err(RedisStoreError::Forgetful(why)) => Keeping::Refused(refusal(
            run,
            neighbours.longest_held,
            &format!("the store may forget a claim: {why}"),
        )),
        Err(error) => {
            tracing::warn!(job = %delivery.key(), error = %causes(&error), "the job is not claimed");
            Keeping::NotNow(SHORTLY)
        }
    }
}

fn refusal(run: Duration, longest: Duration, why: &str) -> ErrorReport {
    let [run, longest] = [run, longest].map(humantime_serde::re::humantime::format_duration);
    ErrorReport::new(
        "the job is refused",
        format!(
            "timeout: it may run for {run}, the broker lets a job be held that runs for {longest} at most, and {why}"
        ),
        "ask for a shorter timeout; for long jobs Redis needs appendonly yes, appendfsync always and maxmemory-policy \
         noeviction",
    )
}

fn record(message: &Message) -> Result<Vec<u8>, serde_json::Error> {
    let head = Head {
        version: VERSION,
        exchange: message.exchange.clone(),
        key: message.key.clone(),
        properties: lasting(&message.properties),
    };
    let mut record = serde_json::to_vec(&head)?;
    record.push(b'\n');
    record.extend_from_slice(&message.body);
    Ok(record)
}

/// The same each time that the message comes, and without the time by which the job had to begin: it has.
fn lasting(properties: &BasicProperties) -> BasicProperties {
    let mut kept = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if !name.as_str().starts_with(BROKERS) && name.as_str() != DEADLINE {
            kept.insert(name.clone(), value.clone());
        }
    }
    properties.clone().with_headers(kept)
}

pub(super) fn message(record: &[u8]) -> Option<Message> {
    let end = record.iter().position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&record[..end]).ok()?;
    if head.version != VERSION {
        return None;
    }
    let Head { exchange, key, properties, .. } = head;
    Some(Message { exchange, key, properties, body: record[end + 1..].to_vec() })
}

/// A claim of a lane that nobody has, if no other host is faster.
pub(super) async fn take(
    neighbours: &Neighbours,
    state: &Arc<State>,
    lane: LaneNumber,
) -> Option<AmqpDelivery> {
    let taken = match neighbours.store.take_expired(state.queue_of(lane), 1).await {
        Ok(mut taken) => taken.pop(),
        Err(error) => {
            tracing::warn!(error = %causes(&error), "no claim can be taken over");
            None
        }
    };
    let Some(claim) = taken else {
        state.fair().orphaned(lane, 0);
        return None;
    };
    state.fair().adopted(lane);
    tracing::info!(job = %claim.job, "a claim is taken over from a host that has it no more");
    // What another version wrote is its own to carry out: it stays claimed here, so that it is not passed around.
    let Some(message) = message(&claim.record) else {
        tracing::error!(job = %claim.job, "the record of a claim cannot be read");
        return None;
    };
    Some(AmqpDelivery::of_claim(state, lane, claim, neighbours.store.clone(), message))
}

/// Looks now and then how many claims of each lane nobody has.
pub(super) async fn watch(neighbours: Neighbours, state: Arc<State>) {
    loop {
        match neighbours.store.orphans().await {
            Ok(orphans) => {
                if state.count_orphans(&orphans) {
                    state.changed.notify_one();
                }
            }
            Err(RedisStoreError::Closed) => return,
            Err(error) => tracing::warn!(error = %causes(&error), "claims cannot be counted"),
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPValue;

    use super::*;
    use crate::broker::properties::{header, with_header, with_text};

    fn sent(properties: BasicProperties) -> Message {
        let (exchange, key) = ("mayfly.submit.acme".to_owned(), "docker".to_owned());
        Message { exchange, key, properties, body: b"\0 a body\nof two lines".to_vec() }
    }

    #[test]
    fn a_record_gives_the_message_back_as_it_has_to_run() {
        let properties = BasicProperties::default()
            .with_message_id("job".into())
            .with_reply_to("mayfly.reply.acme.1".into())
            .with_correlation_id("7".into());
        let properties = with_text(properties, "traceparent", "00-1-2-3");
        let properties = with_header(properties, DEADLINE, AMQPValue::LongLongInt(1));
        let read = message(&record(&sent(properties)).unwrap()).unwrap();
        assert_eq!(read.body, sent(BasicProperties::default()).body);
        assert_eq!((read.exchange.as_str(), read.key.as_str()), ("mayfly.submit.acme", "docker"));
        assert_eq!(read.properties.reply_to().as_ref().unwrap().as_str(), "mayfly.reply.acme.1");
        assert_eq!(header(&read.properties, "traceparent"), Some("00-1-2-3"));
        assert_eq!(crate::broker::properties::number(&read.properties, DEADLINE), None);
    }

    #[test]
    fn a_message_that_comes_again_has_the_same_record() {
        let once = with_text(BasicProperties::default(), "traceparent", "1");
        let again = with_header(once.clone(), "x-delivery-count", AMQPValue::LongLongInt(3));
        assert_eq!(record(&sent(once.clone())).unwrap(), record(&sent(again)).unwrap());
        let other = once.with_reply_to("mayfly.reply.acme.2".into());
        assert_ne!(record(&sent(BasicProperties::default())).unwrap(), record(&sent(other)).unwrap());
    }

    #[test]
    fn what_is_no_record_is_no_message() {
        for bytes in [&b""[..], b"{}", b"{}\n", b"{\"version\":2}\nbody"] {
            assert!(message(bytes).is_none());
        }
    }
}

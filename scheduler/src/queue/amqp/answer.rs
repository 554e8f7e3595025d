//! Tells how a job ended: to all who listen, to who waits for just this one, and to the dead letters.

use std::{
    error::Error,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use lapin::BasicProperties;
use worker::{JobResult, Outcome, causes};

use super::{
    counts::one,
    decode::{Way, correlation, trace},
    delivery::AmqpDelivery,
    outlet::{Outgoing, Outlet, Went},
    state::State,
};
use crate::broker::{
    is_reply_queue,
    link::{Link, Session},
    names::{DEAD, RESULTS, is_direct_reply},
    properties::{short, with_text},
};

/// Publishes a result until the broker has it. Ends early only if the job has become another's: who gets it then finds
/// the result, and tells it.
pub(super) async fn answer(
    state: &State,
    link: &Link<Outlet>,
    delivery: &AmqpDelivery,
    (result, epoch): (&JobResult, u64),
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let body = body(result, state.options.largest_result)?;
    if body.cut {
        one(&state.tally.results_cut);
    }
    let message = Outgoing {
        exchange: RESULTS,
        key: &format!("{}.{}", result.tenant, result.outcome.name()),
        body: &body.bytes,
        properties: properties(delivery, result, epoch),
    };
    let mut replied = false;
    loop {
        if !delivery.lives() {
            return Ok(());
        }
        let session = tokio::select! {
            session = link.session() => session,
            () = delivery.session_ended() => return Ok(()),
        };
        match tell(state, &session, delivery, result, &message, &mut replied).await {
            Ok(()) => return Ok(()),
            Err(error) => session.fail(causes(&*error)),
        }
    }
}

async fn tell(
    state: &State,
    session: &Arc<Session<Outlet>>,
    delivery: &AmqpDelivery,
    result: &JobResult,
    message: &Outgoing<'_>,
    replied: &mut bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    if matches!(result.outcome, Outcome::InfraError | Outcome::SandboxLost) {
        bury(state, session, delivery, result).await?;
    }
    // The result is stored: who waits for it need not wait until all others have it, too.
    let reply = async {
        if !*replied {
            *replied = reply(state, session, delivery, result, message).await;
        }
    };
    let (published, ()) = tokio::join!(session.publish(message), reply);
    match published? {
        Went::Somewhere => {}
        // Nobody has to listen: the result can be asked for.
        Went::Nowhere => one(&state.tally.results_unrouted),
        Went::Refused => return Err("the broker does not take a result".into()),
    }
    one(&state.tally.results);
    Ok(())
}

/// Tells who waits for just this one, if the place is the tenant's. Whether nothing is left to be done about it.
async fn reply(
    state: &State,
    session: &Arc<Session<Outlet>>,
    delivery: &AmqpDelivery,
    result: &JobResult,
    message: &Outgoing<'_>,
) -> bool {
    let Some(queue) = delivery.message.properties.reply_to() else { return true };
    if !is_reply_queue(queue.as_str(), &result.tenant) {
        one(&state.tally.replies_refused);
        tracing::debug!(job = %delivery.key(), "its reply_to is no place of the tenant's");
        return true;
    }
    let properties = message.properties.clone();
    let reply = Outgoing { exchange: "", key: queue.as_str(), body: message.body, properties };
    let went = if is_direct_reply(queue.as_str()) {
        state.direct.send(&result.tenant, &reply).await.map(|()| Went::Somewhere)
    } else {
        session.reply(&reply).await
    };
    match went {
        Ok(Went::Somewhere) => one(&state.tally.replies),
        Ok(Went::Nowhere | Went::Refused) | Err(_) => one(&state.tally.replies_lost),
    }
    went.is_ok()
}

/// Copies a job that nobody's fault it is to the dead letters, with what is known.
async fn bury(
    state: &State,
    session: &Arc<Session<Outlet>>,
    delivery: &AmqpDelivery,
    result: &JobResult,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let lane = match delivery.way() {
        Way::Lane(lane) => lane.queue(),
        Way::Returned => delivery.message.key.clone(),
        Way::Unroutable => String::new(),
    };
    let was = &delivery.message.properties;
    // It is to stay there whatever its sender wanted, and nobody waits for an answer any more.
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_timestamp(now())
        .with_headers(was.headers().clone().unwrap_or_default());
    if let Some(id) = short(delivery.key().id.clone()) {
        properties = properties.with_message_id(id);
    }
    if let Some(kind) = was.content_type() {
        properties = properties.with_content_type(kind.clone());
    }
    let error = result.error.as_ref();
    let attempt = result.attempt.to_string();
    for (name, text) in [
        ("mayfly-tenant", result.tenant.as_str()),
        ("mayfly-queue", &lane),
        ("mayfly-outcome", result.outcome.name()),
        ("mayfly-attempt", &attempt),
        ("mayfly-what", error.map_or("", |error| &error.what)),
        ("mayfly-why", error.map_or("", |error| &error.why)),
    ] {
        properties = with_text(properties, name, first(text, 2000));
    }
    let copy = Outgoing { exchange: DEAD, key: "", body: &delivery.message.body, properties };
    match session.publish_alone(&copy).await? {
        Went::Somewhere => one(&state.tally.dead),
        Went::Nowhere | Went::Refused => {
            one(&state.tally.dead_refused);
            tracing::warn!(job = %delivery.key(), "there is no room for it among the dead letters");
        }
    }
    Ok(())
}

fn properties(delivery: &AmqpDelivery, result: &JobResult, epoch: u64) -> BasicProperties {
    let was = &delivery.message.properties;
    // Whoever hears it twice knows it by this.
    let id = short(format!("{}:{epoch}", result.id));
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_timestamp(now())
        .with_type("mayfly.result".into())
        .with_app_id("mayfly".into());
    if let Some(id) = id {
        properties = properties.with_message_id(id);
    }
    if let Some(correlation) = short(correlation(was, &result.id)) {
        properties = properties.with_correlation_id(correlation);
    }
    let attempt = result.attempt.to_string();
    let told = [
        ("mayfly-job", result.id.as_str()),
        ("mayfly-tenant", &result.tenant),
        ("mayfly-outcome", result.outcome.name()),
        ("mayfly-attempt", &attempt),
    ];
    let properties =
        told.into_iter().fold(properties, |properties, (name, text)| with_text(properties, name, text));
    // Whoever hears it goes on with the producer's trace.
    let Some(trace) = trace(was) else { return properties };
    let properties = with_text(properties, "traceparent", &trace.header());
    match trace.state() {
        Some(state) => with_text(properties, "tracestate", state),
        None => properties,
    }
}

struct Body {
    bytes: Vec<u8>,
    /// Whether something was left out.
    cut: bool,
}

/// The result as JSON. What is too large for one message goes without its output, and at worst without its lists: that it
/// was cut is said, and the rest can be asked for.
fn body(result: &JobResult, largest: usize) -> Result<Body, serde_json::Error> {
    let bytes = serde_json::to_vec(result)?;
    if bytes.len() <= largest {
        return Ok(Body { bytes, cut: false });
    }
    let mut cut = result.clone();
    for stream in [&mut cut.stdout, &mut cut.stderr] {
        stream.truncated |= stream.bytes > 0;
        stream.text.clear();
        stream.base64 = None;
    }
    cut.notes.push("this message was too large for the output; `mayfly result` has all of it".to_owned());
    let bytes = serde_json::to_vec(&cut)?;
    if bytes.len() <= largest {
        return Ok(Body { bytes, cut: true });
    }
    cut.artifacts.clear();
    cut.skipped.clear();
    cut.notes.push("it was too large for the list of artifacts, too".to_owned());
    Ok(Body { bytes: serde_json::to_vec(&cut)?, cut: true })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The first so many bytes, to a whole character.
fn first(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

//! What a message says: which job it is, or why it is none. Pure: no broker, no clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::{
    Acker, BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};
use pool::Tier;
use worker::{ErrorReport, Job, Outcome};

use super::twins;
use crate::{
    broker::{
        Lane,
        names::tenant_of_exchange,
        properties::{header, number},
    },
    key::{BodyDigest, JobKey, is_name},
    queue::NoJob,
    traces::TraceParent,
};

/// A job whose way cannot be told has this tenant: nobody can be called so.
const NOBODY: &str = "-";
/// When the job was sent, in milliseconds; the property counts seconds only.
pub(crate) const SENT: &str = "mayfly-sent-at";
/// Until when it has to be started, in milliseconds: an expiration is counted anew whenever a job changes its queue.
pub(crate) const DEADLINE: &str = "mayfly-deadline";
/// Further back than this no clock is believed.
const OLDEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// By which way a message came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// A tenant's lane.
    Lane(Lane),
    /// Its key meant nothing.
    Unroutable,
    /// The broker gave it up.
    Returned,
}

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) exchange: String,
    pub(crate) key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// What the broker gave, and how to tell it that this is done with.
    pub(super) fn of(got: Delivery) -> (Self, Acker) {
        let message = Self {
            exchange: got.exchange.as_str().to_owned(),
            key: got.routing_key.as_str().to_owned(),
            properties: got.properties,
            body: got.data,
        };
        (message, got.acker)
    }
}

/// What it says.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) key: JobKey,
    pub(crate) body: BodyDigest,
    pub(crate) job: Result<Job, NoJob>,
    pub(crate) tier: Option<Tier>,
    pub(crate) queued: Duration,
}

/// Reads a message. `largest`: the most bytes that a body may have.
pub(crate) fn decode(message: &Message, way: &Way, largest: usize, now: SystemTime) -> Decoded {
    let body = BodyDigest::of(&message.body);
    let lane = lane_of(message, way);
    let tenant = match (way, &lane) {
        (Way::Unroutable, _) => tenant_of_exchange(&message.exchange),
        (_, lane) => lane.as_ref().map(|lane| lane.tenant.as_str()),
    };
    let tenant = tenant.unwrap_or(NOBODY);
    let named = message.properties.message_id().as_ref().map(ShortString::as_str);
    let read = read(&message.body, largest);
    let id = match (named, &read) {
        (Some(id), _) if is_name(id) => id.to_owned(),
        (None, Ok(Job { id: Some(id), .. })) if is_name(id) => id.clone(),
        _ => id_of_body(&body),
    };
    let checked = read.and_then(|job| consistent(job, &id, named, tenant));
    let job = match given_up(message, way, lane.as_ref(), now) {
        Some(no_job) => Err(no_job),
        None => checked.map_err(NoJob::from),
    };
    let queued = sent(&message.properties).and_then(|at| now.duration_since(at).ok());
    Decoded {
        key: JobKey::new(tenant, id),
        body,
        job,
        tier: lane.map(|lane| lane.tier),
        queued: queued.filter(|queued| *queued < OLDEST).unwrap_or_default(),
    }
}

fn lane_of(message: &Message, way: &Way) -> Option<Lane> {
    match way {
        Way::Lane(lane) => Some(lane.clone()),
        // The broker puts the queue's name there. Headers may have been forged by who sent the job.
        Way::Returned => Lane::of_queue(&message.key),
        Way::Unroutable => None,
    }
}

/// A job without an id is known by its body.
fn id_of_body(body: &BodyDigest) -> String {
    body.to_string().replace(':', "-")
}

fn read(body: &[u8], largest: usize) -> Result<Job, ErrorReport> {
    if body.len() > largest {
        let why = format!("it has {} bytes, and {largest} is the most", body.len());
        return Err(refusal(why, "send large files as artifacts, not in the job"));
    }
    let reader = &mut serde_json::Deserializer::from_slice(body);
    let job: Job = serde_path_to_error::deserialize(reader).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { format!("{path}: ") };
        refusal(format!("{field}{}", error.into_inner()), "see `mayfly schema job`")
    })?;
    // The typed reader stops where the job ends.
    twins::refuse(body).map_err(|why| refusal(why, "write each key once"))?;
    serde_json::from_slice::<serde::de::IgnoredAny>(body)
        .map_err(|error| refusal(error.to_string(), "send one job in each message"))?;
    Ok(job)
}

/// The job must not say otherwise than the way it came.
fn consistent(mut job: Job, id: &str, named: Option<&str>, tenant: &str) -> Result<Job, ErrorReport> {
    if let Some(named) = named.filter(|named| !is_name(named)) {
        let why = format!("message_id: {named:?} is no name for a job");
        return Err(refusal(why, "use 1 to 128 of A-Z a-z 0-9 . _ -"));
    }
    if let Some(own) = job.id.as_ref().filter(|own| named.is_some() && *own != id) {
        let why = format!("id: it is {own:?}, and the message_id is {id:?}");
        return Err(refusal(why, "give both the same value, or one of them only"));
    }
    if let Some(other) = job.tenant.as_ref().filter(|other| *other != tenant) {
        let why = format!("tenant: it is {other:?}, and the job came by the exchange of {tenant:?}");
        return Err(refusal(why, "leave it out: the exchange says whose job it is"));
    }
    if job.id.as_ref().is_none_or(|own| is_name(own)) {
        job.id = Some(id.to_owned());
    }
    Ok(job)
}

/// Whether nobody is to run the job, whatever it says.
fn given_up(message: &Message, way: &Way, lane: Option<&Lane>, now: SystemTime) -> Option<NoJob> {
    match way {
        Way::Unroutable => {
            let why = format!("the routing key {:?} is neither a tier nor a word of trust", message.key);
            let hint = "use chroot, nspawn, docker or vm, or trusted, internal, untrusted or hostile; \
                        with .high behind it for the high class";
            Some(refusal(why, hint).into())
        }
        Way::Returned => Some(returned(&message.properties, lane)),
        Way::Lane(_) => {
            let deadline = number(&message.properties, DEADLINE).and_then(millis);
            deadline.filter(|deadline| *deadline <= now).map(|_| expired())
        }
    }
}

fn returned(properties: &BasicProperties, lane: Option<&Lane>) -> NoJob {
    let queue = lane.map_or_else(String::new, Lane::queue);
    match death(properties).as_deref() {
        Some("expired") => expired(),
        Some("delivery_limit") => NoJob {
            outcome: Outcome::SandboxLost,
            report: ErrorReport::new(
                "the job was given up by the broker",
                format!("hosts took it from {queue} again and again, and none came to its end"),
                "see what stops those hosts; the job may do it. `mayfly dlq show` has the evidence",
            ),
        },
        reason => NoJob {
            outcome: Outcome::InfraError,
            report: ErrorReport::new(
                "the job was given up by the broker",
                format!("it took the job out of {queue} ({})", reason.unwrap_or("it does not say why")),
                "look at the limits and policies of that queue; send the job again",
            ),
        },
    }
}

/// Why the broker gave it up last. The entry that the broker writes is the first.
pub(super) fn death(properties: &BasicProperties) -> Option<String> {
    let headers: &FieldTable = properties.headers().as_ref()?;
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    match last.inner().get("reason")? {
        AMQPValue::LongString(reason) => Some(reason.to_string()),
        _ => None,
    }
}

fn expired() -> NoJob {
    refusal(
        "its deadline passed while it waited",
        "give it a later expiration, or see why it waits: `mayfly status`",
    )
    .into()
}

fn refusal(why: impl Into<String>, hint: &str) -> ErrorReport {
    ErrorReport::new("the job is refused", why, hint)
}

fn sent(properties: &BasicProperties) -> Option<SystemTime> {
    let exact = number(properties, SENT).and_then(millis);
    exact.or_else(|| UNIX_EPOCH.checked_add(Duration::from_secs((*properties.timestamp())?)))
}

fn millis(number: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(number).ok()?))
}

/// Until when a job has to be started, by what its sender said.
pub(crate) fn deadline(properties: &BasicProperties) -> Option<i64> {
    number(properties, DEADLINE).or_else(|| {
        let expiration: u64 = properties.expiration().as_ref()?.as_str().parse().ok()?;
        let at = sent(properties)?.checked_add(Duration::from_millis(expiration))?;
        i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
    })
}

/// The tenant of a message, for its replies.
pub(crate) fn correlation(properties: &BasicProperties, id: &str) -> String {
    properties.correlation_id().as_ref().map_or_else(|| id.to_owned(), |id| id.as_str().to_owned())
}

/// The trace of which the job is a part, if its sender named one.
pub(crate) fn trace(properties: &BasicProperties) -> Option<TraceParent> {
    TraceParent::read(header(properties, "traceparent")?, header(properties, "tracestate"))
}

#[cfg(test)]
mod tests;

use pool::Tier;

use super::*;
use crate::broker::properties::with_header;

const LARGEST: usize = 1000;

fn lane() -> Lane {
    Lane { tenant: "acme".into(), tier: Tier::Docker, high: false }
}

fn message(body: &str, properties: BasicProperties) -> Message {
    Message {
        exchange: "mayfly.submit.acme".into(),
        key: "docker".into(),
        properties,
        body: body.as_bytes().to_vec(),
    }
}

fn read_as(body: &str, properties: BasicProperties, way: &Way) -> Decoded {
    decode(&message(body, properties), way, LARGEST, SystemTime::now())
}

fn from_lane(body: &str, properties: BasicProperties) -> Decoded {
    read_as(body, properties, &Way::Lane(lane()))
}

fn refused(decoded: &Decoded) -> &str {
    let no_job = decoded.job.as_ref().expect_err("it is no job");
    assert_eq!(no_job.outcome, Outcome::Rejected);
    &no_job.report.why
}

const JOB: &str = r#"{"schema_version":1,"image":"base","command":["true"]}"#;

fn named(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

#[test]
fn the_message_id_names_the_job() {
    let decoded = from_lane(JOB, named("eval-1"));
    assert_eq!(decoded.key, JobKey::new("acme", "eval-1"));
    assert_eq!(decoded.tier, Some(Tier::Docker));
    assert_eq!(decoded.job.unwrap().id.as_deref(), Some("eval-1"));
}

#[test]
fn without_one_the_job_names_itself_or_its_body_does() {
    let own = r#"{"schema_version":1,"id":"mine","image":"base","command":["true"]}"#;
    assert_eq!(from_lane(own, BasicProperties::default()).key.id, "mine");
    let (one, same, other) = (
        from_lane(JOB, BasicProperties::default()),
        from_lane(JOB, BasicProperties::default()),
        from_lane(&format!("{JOB} "), BasicProperties::default()),
    );
    assert!(one.key.id.starts_with("sha256-") && is_name(&one.key.id), "{}", one.key.id);
    assert_eq!(one.key, same.key);
    assert_ne!(one.key, other.key);
}

#[test]
fn what_is_no_job_is_refused_with_its_place() {
    let deep =
        format!(r#"{{"schema_version":1,"image":"b","command":["a"],"meta":{{"x":{}"#, "[".repeat(600));
    let large = format!(r#"{{"schema_version":1,"image":"b","command":["{}"]}}"#, "x".repeat(LARGEST));
    for (body, why) in [
        ("no json", "expected"),
        ("", "EOF"),
        (r#"{"schema_version":1,"image":"b","command":["a"],"bogus":1}"#, "bogus: unknown field"),
        (
            r#"{"schema_version":1,"image":"b","command":["a"],"limits":{"cpus":"x"}}"#,
            "limits.cpus: invalid type",
        ),
        (
            r#"{"schema_version":1,"image":"b","command":["a"],"limits":{"cpus":NaN}}"#,
            "limits.cpus: expected",
        ),
        (r#"{"schema_version":1,"image":"b","command":["a"],"limits":{"cpus":1e999}}"#, "out of range"),
        (r#"{"schema_version":1,"image":"b","image":"c","command":["a"]}"#, "duplicate field"),
        (
            r#"{"schema_version":1,"image":"b","command":["a"],"env":{"A":"1","A":"2"}}"#,
            "env.A: the key stands there twice",
        ),
        (r#"{"schema_version":1,"image":"b","command":["a"]} {}"#, "trailing characters"),
        (&deep, "recursion limit"),
        (&large, "1000 is the most"),
    ] {
        let decoded = from_lane(body, named("a"));
        assert!(refused(&decoded).contains(why), "{body}: {}", refused(&decoded));
        assert_eq!(decoded.key, JobKey::new("acme", "a"), "its sender is told by its name");
    }
    let not_text =
        Message { body: b"{\"schema_version\":1,\"image\":\"\xff\"}".to_vec(), ..message("", named("a")) };
    let decoded = decode(&not_text, &Way::Lane(lane()), LARGEST, SystemTime::now());
    assert!(refused(&decoded).contains("invalid unicode"), "{}", refused(&decoded));
}

#[test]
fn nobody_speaks_for_another_tenant() {
    let body = r#"{"schema_version":1,"tenant":"rich","image":"base","command":["true"]}"#;
    let decoded = from_lane(body, named("a"));
    assert_eq!(decoded.key.tenant, "acme");
    assert!(refused(&decoded).contains("tenant: it is \"rich\""));
    let body = body.replace("rich", "acme");
    assert!(from_lane(&body, named("a")).job.is_ok());
}

#[test]
fn two_names_for_one_job_are_refused() {
    let body = r#"{"schema_version":1,"id":"b","image":"base","command":["true"]}"#;
    assert!(refused(&from_lane(body, named("a"))).contains("the message_id is \"a\""));
    assert!(from_lane(body, named("b")).job.is_ok());
}

#[test]
fn a_message_id_that_cannot_be_a_name_is_refused_under_the_name_of_the_body() {
    let decoded = from_lane(JOB, named("../../etc"));
    assert!(refused(&decoded).contains("is no name for a job"));
    assert!(decoded.key.id.starts_with("sha256-"));
}

#[test]
fn a_key_that_means_nothing_is_told_to_the_tenant_of_the_exchange() {
    let decoded = read_as(JOB, named("a"), &Way::Unroutable);
    assert_eq!(decoded.key, JobKey::new("acme", "a"));
    assert!(refused(&decoded).contains("\"docker\" is neither"));
}

fn dead(reason: &str) -> BasicProperties {
    let mut death = FieldTable::default();
    death.insert("reason".into(), AMQPValue::LongString(reason.into()));
    let deaths = vec![AMQPValue::FieldTable(death)];
    with_header(named("a"), "x-death", AMQPValue::FieldArray(deaths.into()))
}

#[test]
fn what_the_broker_gives_up_has_an_outcome_too() {
    for (reason, outcome) in [
        ("expired", Outcome::Rejected),
        ("delivery_limit", Outcome::SandboxLost),
        ("maxlen", Outcome::InfraError),
    ] {
        let message = Message { key: lane().queue(), ..message(JOB, dead(reason)) };
        let decoded = decode(&message, &Way::Returned, LARGEST, SystemTime::now());
        assert_eq!(decoded.key, JobKey::new("acme", "a"), "the tenant is its lane's");
        assert_eq!(decoded.job.unwrap_err().outcome, outcome, "{reason}");
    }
}

#[test]
fn a_clock_that_cannot_be_right_is_not_believed() {
    let now = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let waited = |seconds: u64| {
        let message = message(JOB, named("a").with_timestamp(seconds));
        decode(&message, &Way::Lane(lane()), LARGEST, now).queued
    };
    assert_eq!(waited(1_999_999_990), Duration::from_secs(10));
    assert_eq!(waited(2_000_000_100), Duration::ZERO);
    assert_eq!(waited(0), Duration::ZERO);
    assert_eq!(waited(u64::MAX), Duration::ZERO);
}

#[test]
fn a_deadline_travels_with_the_job() {
    let sent = with_header(named("a"), SENT, AMQPValue::LongLongInt(1_000));
    let sent = sent.with_expiration("500".into());
    assert_eq!(deadline(&sent), Some(1_500));
    let moved = with_header(named("a"), DEADLINE, AMQPValue::LongLongInt(1_500));
    assert_eq!(deadline(&moved), Some(1_500));
    assert!(refused(&from_lane(JOB, moved)).contains("deadline passed"));
    assert_eq!(deadline(&named("a")), None);
}

#[test]
fn a_trace_is_read_from_a_long_and_from_a_short_string_and_from_nothing_else() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let read = |value| trace(&with_header(BasicProperties::default(), "traceparent", value));
    for value in [AMQPValue::LongString(text.into()), AMQPValue::ShortString(text.into())] {
        assert_eq!(read(value).unwrap().header(), text);
    }
    let hostile = format!("{text}\r\nx: y");
    for value in [
        AMQPValue::LongString(hostile.into()),
        AMQPValue::LongString(b"\xff\xfe".to_vec().into()),
        AMQPValue::LongLongInt(1),
        AMQPValue::Void,
    ] {
        assert_eq!(read(value), None);
    }
}

//! Message properties, read and written. Headers of ours begin with `mayfly-`.

use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};

/// The text of a header.
pub(crate) fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a str> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// The number in a header.
pub(crate) fn number(properties: &BasicProperties, name: &str) -> Option<i64> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::LongUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::Timestamp(number) => i64::try_from(*number).ok(),
        _ => None,
    }
}

/// The same properties with one header more.
pub(crate) fn with_header(properties: BasicProperties, name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(name.into(), value);
    properties.with_headers(headers)
}

/// The same properties with one header more, of text.
pub(crate) fn with_text(properties: BasicProperties, name: &str, text: &str) -> BasicProperties {
    with_header(properties, name, AMQPValue::LongString(text.into()))
}

/// A text where only a short one may stand; none if it is too long.
pub(crate) fn short(text: impl Into<String>) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

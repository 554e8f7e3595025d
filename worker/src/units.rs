//! How sizes are written in jobs: text such as `"256MiB"`, or a number of bytes.

use std::borrow::Cow;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes. Read from text with a unit or from a number, always written as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub struct Size(ByteSize);

impl Size {
    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.as_u64()
    }
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self(ByteSize(bytes))
    }
}

impl Serialize for Size {
    // `ByteSize` would write rounded text, and a limit that changes on its way through a queue is wrong.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.bytes())
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes, as a number or as text with a unit: \"256MiB\" (1024-based), \"256MB\" (1000-based).",
            "examples": ["256MiB", 268_435_456],
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtTpPeE]i?)?[bB]?\s*$" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_from_text_and_from_numbers_and_written_exactly() {
        for (json, bytes) in [("\"256MiB\"", 268_435_456), ("\"1kB\"", 1000), ("12345", 12345)] {
            let size: Size = serde_json::from_str(json).unwrap();
            assert_eq!(size.bytes(), bytes, "{json}");
            assert_eq!(serde_json::to_string(&size).unwrap(), bytes.to_string());
        }
    }

    #[test]
    fn a_malformed_size_is_refused() {
        for json in ["\"lots\"", "\"-1MiB\"", "-1", "\"\"", "1.5"] {
            assert!(serde_json::from_str::<Size>(json).is_err(), "{json}");
        }
    }
}

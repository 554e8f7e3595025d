//! Finds keys that stand twice in one JSON object. Which of the two counts differs between readers, so what a check
//! saw might not be what runs. Pure.

use std::{collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Reads a whole value and refuses it if a key stands twice anywhere. `Err` says which, and where.
pub(super) fn refuse(body: &[u8]) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    Value { path: "" }.deserialize(&mut reader).map_err(|error| error.to_string())
}

#[derive(Clone, Copy)]
struct Value<'a> {
    path: &'a str,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            if seen.contains(&key) {
                return Err(A::Error::custom(format_args!("{path}: the key stands there twice")));
            }
            map.next_value_seed(Value { path: &path })?;
            seen.insert(key);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        IgnoredAny.visit_newtype_struct(deserializer).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_found_at_any_depth() {
        for (text, path) in [
            (r#"{"a":1,"a":1}"#, "a:"),
            (r#"{"env":{"X":"1","Y":"2","X":"3"}}"#, "env.X:"),
            (r#"{"meta":{"list":[{"b":0},{"b":0,"b":1}]}}"#, "meta.list.b:"),
            (r#"{"a":0,"\u0061":1}"#, "a:"),
        ] {
            let error = refuse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(path), "{text}: {error}");
        }
    }

    #[test]
    fn the_same_key_in_two_objects_is_fine() {
        assert_eq!(refuse(br#"{"a":{"b":null,"c":[1.5,true,"x"]},"b":{"b":-1}}"#), Ok(()));
    }
}

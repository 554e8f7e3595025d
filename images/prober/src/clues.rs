//! What a probe is told: where the host's canaries are, what they say, what the limits are.

use std::collections::HashMap;

/// `KEY=VALUE` arguments.
#[derive(Debug, Default)]
pub(crate) struct Clues(HashMap<String, String>);

impl Clues {
    /// Parts the clues from the probes.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> (Self, Vec<String>) {
        let (mut clues, mut probes) = (Self::default(), Vec::new());
        for arg in args {
            match arg.split_once('=') {
                Some((key, value)) => drop(clues.0.insert(key.to_owned(), value.to_owned())),
                None => probes.push(arg),
            }
        }
        (clues, probes)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// The words of a list, parted by commas.
    pub(crate) fn list(&self, key: &str) -> impl Iterator<Item = &str> {
        self.get(key).unwrap_or_default().split(',').filter(|word| !word.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clues_and_probes_are_told_apart_by_the_equals_sign() {
        let args = ["token=a=b", "P01", "pids=12", "hosts=x,,y", "F01"].map(str::to_owned);
        let (clues, probes) = Clues::parse(args.into_iter());
        assert_eq!(probes, ["P01", "F01"]);
        assert_eq!(
            (clues.get("token"), clues.number("pids"), clues.get("none")),
            (Some("a=b"), Some(12), None)
        );
        assert_eq!(clues.list("hosts").collect::<Vec<_>>(), ["x", "y"]);
    }
}

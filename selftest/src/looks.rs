//! What a prober saw, as it tells it: one line for each probe. It ran among what it looked at, so nothing of it is trusted to
//! be well-formed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use worker::printable;

use crate::{catalogue::Probe, verdict::Seen};

/// What one look saw, and what of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Look {
    /// Whether it held.
    pub seen: Seen,
    /// What was seen of it.
    pub evidence: String,
}

impl Look {
    /// It is refused, hidden or limited.
    pub fn held(evidence: impl Into<String>) -> Self {
        Self { seen: Seen::Held, evidence: evidence.into() }
    }

    /// It is visible, writable or unlimited.
    pub fn open(evidence: impl Into<String>) -> Self {
        Self { seen: Seen::Open, evidence: evidence.into() }
    }

    /// It could not be told.
    pub fn unknown(evidence: impl Into<String>) -> Self {
        Self { seen: Seen::Unknown, evidence: evidence.into() }
    }

    /// Held or open.
    pub fn told(holds: bool, evidence: impl Into<String>) -> Self {
        if holds { Self::held(evidence) } else { Self::open(evidence) }
    }
}

/// Looks by the ids of their probes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looks(BTreeMap<String, Look>);

impl Looks {
    /// Reads a prober's lines. One that is no such line, or of no probe, counts for nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut looks = Self::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, '\t');
            let (Some(id), Some(word), Some(evidence)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let Some(probe) = Probe::of(id) else { continue };
            let evidence = printable(evidence.as_bytes());
            let look = match word {
                "held" => Look::held(evidence),
                "open" => Look::open(evidence),
                _ => Look::unknown(evidence),
            };
            looks.add(probe.id, look);
        }
        looks
    }

    /// Nothing is known of any of these.
    pub(crate) fn unknown_of(probes: &[&Probe], why: &str) -> Self {
        Self(probes.iter().map(|probe| (probe.id.to_owned(), Look::unknown(why))).collect())
    }

    /// Adds one. Said twice, the worse counts: whoever can add a line can say that something held.
    pub fn add(&mut self, id: &str, look: Look) {
        if self.0.get(id).is_none_or(|before| before.seen <= look.seen) {
            self.0.insert(id.to_owned(), look);
        }
    }

    /// All but one.
    #[must_use]
    pub(crate) fn without(mut self, id: &str) -> Self {
        self.0.remove(id);
        self
    }

    /// Takes over all of another's.
    pub fn extend(&mut self, others: Self) {
        for (id, look) in others.0 {
            self.add(&id, look);
        }
    }

    /// The same, and in each evidence under what circumstances it was seen.
    #[must_use]
    pub(crate) fn seen(mut self, circumstances: &str) -> Self {
        for look in self.0.values_mut() {
            look.evidence = format!("{circumstances}: {}", look.evidence);
        }
        self
    }

    /// The look of a probe.
    #[must_use]
    pub fn of(&self, id: &str) -> Option<&Look> {
        self.0.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_probe_and_what_is_none_counts_for_nothing() {
        let looks = Looks::parse("P01\theld\tids\nX99\theld\tx\nP02 open\nP03\tperhaps\twhy\n");
        assert_eq!(looks.of("P01"), Some(&Look::held("ids")));
        assert_eq!(looks.of("P03"), Some(&Look::unknown("why")));
        assert_eq!((looks.of("P02"), looks.of("X99")), (None, None));
    }

    #[test]
    fn a_line_that_is_added_makes_nothing_better() {
        let looks = Looks::parse("P01\topen\troot\nP01\theld\tnothing to see\n");
        assert_eq!(looks.of("P01").map(|look| look.seen), Some(Seen::Open));
    }

    #[test]
    fn what_could_not_be_told_once_is_not_told_by_another_look_that_held() {
        let twice = |first, second| {
            let mut looks = Looks::default();
            looks.add("N01", first);
            looks.add("N01", second);
            looks.of("N01").map(|look| look.seen)
        };
        assert_eq!(twice(Look::held("x"), Look::unknown("y")), Some(Seen::Unknown));
        assert_eq!(twice(Look::unknown("y"), Look::held("x")), Some(Seen::Unknown));
        assert_eq!(twice(Look::unknown("y"), Look::open("z")), Some(Seen::Open));
    }

    #[test]
    fn evidence_is_printable_whatever_the_sandbox_wrote() {
        let looks = Looks::parse("P01\theld\t\u{1b}[2Jx\n");
        assert!(!looks.of("P01").unwrap().evidence.contains('\u{1b}'));
    }
}

//! What a probe's two looks mean together: the one from inside the sandbox, and the control's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is expected of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Held or refused.
    Blocked,
    /// It has an effect, which stays inside this sandbox or its limits.
    Contained,
    /// It may be open inside, because the kernel is the sandbox's own and the host's is out of reach.
    Own,
    /// A risk that this tier leaves, and that is published.
    Residual,
    /// The question makes no sense there.
    NotApplicable,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was refused, or there is nothing to see.
    Blocked,
    /// It stayed inside.
    Contained,
    /// The question makes no sense on this tier.
    NotApplicable,
    /// This tier leaves it open, as documented. It never counts as passed.
    Residual,
    /// The host lacks the mechanism, or the look could not be had. It never counts as passed.
    Unverified,
    /// The control held, too, so the probe says nothing.
    Void,
    /// What is expected to hold does not.
    Exposed,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Blocked,
        Self::Contained,
        Self::NotApplicable,
        Self::Residual,
        Self::Unverified,
        Self::Void,
        Self::Exposed,
    ];

    /// As a table shows it. What is alarming is loud.
    #[must_use]
    pub fn shown(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Contained => "contained",
            Self::NotApplicable => "n/a",
            Self::Residual => "residual",
            Self::Unverified => "unverified",
            Self::Void => "VOID",
            Self::Exposed => "EXPOSED",
        }
    }

    /// Its name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Contained => "contained",
            Self::NotApplicable => "not_applicable",
            Self::Residual => "residual",
            Self::Unverified => "unverified",
            Self::Void => "void",
            Self::Exposed => "exposed",
        }
    }

    /// Whether whoever runs the selftest must hear of it by the exit code.
    #[must_use]
    pub fn is_alarming(self) -> bool {
        matches!(self, Self::Exposed | Self::Void)
    }

    /// Whether it may be counted among what was shown to hold.
    #[must_use]
    pub fn has_passed(self) -> bool {
        matches!(self, Self::Blocked | Self::Contained)
    }
}

/// What one look saw, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// It is refused, hidden or limited.
    Held,
    /// It could not be told.
    Unknown,
    /// It is visible, writable or unlimited.
    Open,
}

/// What two looks mean. A probe whose control is not open is void: what nobody can do says nothing about a sandbox.
#[must_use]
pub fn judge(expected: Expected, inside: Seen, control: Seen) -> Verdict {
    match (expected, inside, control) {
        (Expected::NotApplicable, _, _) => Verdict::NotApplicable,
        (Expected::Residual, Seen::Open, _) => Verdict::Residual,
        // The host's canary decides whether a machine holds (F01), not what its own kernel allows.
        (Expected::Own, Seen::Open, _) | (Expected::Contained, Seen::Held, Seen::Open) => Verdict::Contained,
        // An open door is open, whatever the control says.
        (_, Seen::Open, _) => Verdict::Exposed,
        // Of a residual risk nothing was promised, so a host that has nothing to show makes no probe void.
        (_, Seen::Unknown, _)
        | (_, Seen::Held, Seen::Unknown)
        | (Expected::Residual, Seen::Held, Seen::Held) => Verdict::Unverified,
        (_, Seen::Held, Seen::Held) => Verdict::Void,
        (Expected::Blocked | Expected::Own | Expected::Residual, Seen::Held, Seen::Open) => Verdict::Blocked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_door_is_exposed_whatever_the_control_says() {
        for control in [Seen::Held, Seen::Open, Seen::Unknown] {
            for expected in [Expected::Blocked, Expected::Contained] {
                assert_eq!(judge(expected, Seen::Open, control), Verdict::Exposed);
            }
            assert_eq!(judge(Expected::Residual, Seen::Open, control), Verdict::Residual);
            assert_eq!(judge(Expected::Own, Seen::Open, control), Verdict::Contained);
        }
    }

    #[test]
    fn what_the_control_cannot_do_either_is_void_and_not_passed() {
        for expected in [Expected::Blocked, Expected::Contained, Expected::Own] {
            let verdict = judge(expected, Seen::Held, Seen::Held);
            assert_eq!(verdict, Verdict::Void);
            assert!(verdict.is_alarming() && !verdict.has_passed());
        }
        assert_eq!(judge(Expected::Residual, Seen::Held, Seen::Held), Verdict::Unverified);
    }

    #[test]
    fn nothing_that_could_not_be_told_has_passed() {
        for (inside, control) in
            [(Seen::Unknown, Seen::Open), (Seen::Held, Seen::Unknown), (Seen::Unknown, Seen::Unknown)]
        {
            let verdict = judge(Expected::Blocked, inside, control);
            assert_eq!(verdict, Verdict::Unverified);
            assert!(!verdict.has_passed() && !verdict.is_alarming());
        }
    }

    #[test]
    fn only_what_held_inside_and_not_outside_has_passed() {
        assert_eq!(judge(Expected::Blocked, Seen::Held, Seen::Open), Verdict::Blocked);
        assert_eq!(judge(Expected::Contained, Seen::Held, Seen::Open), Verdict::Contained);
        assert_eq!(judge(Expected::NotApplicable, Seen::Open, Seen::Open), Verdict::NotApplicable);
    }
}

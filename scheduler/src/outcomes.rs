//! The outcomes of jobs, numbered: for counters and for the database.

use worker::Outcome;

/// All of them, in the order of tables that people read. The order is part of the database's format: new ones go
/// to the end.
pub(crate) const ALL: [Outcome; 9] = [
    Outcome::Succeeded,
    Outcome::Failed,
    Outcome::TimedOut,
    Outcome::OutOfMemory,
    Outcome::OutputLimit,
    Outcome::Cancelled,
    Outcome::SandboxLost,
    Outcome::InfraError,
    Outcome::Rejected,
];

/// The number of an outcome.
pub(crate) fn index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Succeeded => 0,
        Outcome::Failed => 1,
        Outcome::TimedOut => 2,
        Outcome::OutOfMemory => 3,
        Outcome::OutputLimit => 4,
        Outcome::Cancelled => 5,
        Outcome::SandboxLost => 6,
        Outcome::InfraError => 7,
        Outcome::Rejected => 8,
    }
}

/// The outcome of a number that [`index`] gave.
pub(crate) fn at(index: u8) -> Outcome {
    ALL.get(usize::from(index)).copied().unwrap_or(Outcome::InfraError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_found_by_its_number() {
        for outcome in ALL {
            assert_eq!(at(index(outcome) as u8), outcome);
        }
    }
}

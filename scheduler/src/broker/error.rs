//! What can go wrong between mayfly and the broker.

use std::{fmt, time::Duration};

use thiserror::Error;

/// The broker does not do what it is asked.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// There is no connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        #[source]
        error: lapin::Error,
    },
    /// It took too long.
    #[error("{doing} took longer than {within:?}")]
    TooLong {
        /// What.
        doing: &'static str,
        /// How long it may take.
        within: Duration,
    },
    /// A request failed.
    #[error("cannot {doing}")]
    Request {
        /// What, and on what.
        doing: String,
        /// Why.
        #[source]
        error: lapin::Error,
    },
    /// What mayfly needs is not there, or is other than it must be.
    #[error("the broker is not set up: {}; `mayfly setup` makes it", listed(.0))]
    NotSetUp(Vec<Difference>),
    /// A message was not taken.
    #[error("{what} was not taken by the broker: {why}")]
    NotTaken {
        /// Which.
        what: String,
        /// Why.
        why: String,
    },
    /// A name that cannot be one on the broker.
    #[error("\"{0}\" is too long or has characters that a name may not have")]
    Name(String),
    /// The job is not among the dead letters.
    #[error("no job {0} is among the dead letters")]
    NoSuchJob(String),
    /// What was asked for can no longer come.
    #[error("the connection to the broker has ended")]
    Ended,
}

/// Something on the broker that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    Missing(String),
    /// It is there, and not what it must be.
    Other {
        /// Which.
        what: String,
        /// How it differs, in the broker's words.
        how: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "{what} is missing"),
            Self::Other { what, how } => write!(f, "{what} is other than it must be ({how})"),
        }
    }
}

/// The first few, and how many more.
fn listed(differences: &[Difference]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<_> = differences.iter().take(SHOWN).map(ToString::to_string).collect();
    if differences.len() > SHOWN {
        shown.push(format!("and {} more", differences.len() - SHOWN));
    }
    shown.join(", ")
}

impl BrokerError {
    /// For `map_err` on a request.
    pub(crate) fn on(doing: impl Into<String>) -> impl FnOnce(lapin::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Request { doing, error }
    }
}

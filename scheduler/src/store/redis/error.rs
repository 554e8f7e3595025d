//! What can be wrong with Redis or with what it holds. That it is away for a while is no error: calls wait.

use std::{io, path::PathBuf};

use thiserror::Error;

/// The Redis store cannot do what it is asked, and waiting does not help.
#[derive(Debug, Error)]
pub enum RedisStoreError {
    /// No address.
    #[error("{url} is no address of a Redis server; write redis://HOST:PORT or rediss://HOST:PORT")]
    Address {
        /// As configured, without credentials.
        url: String,
        /// Why.
        #[source]
        error: redis::RedisError,
    },
    /// The certificates by which to know the server.
    #[error("cannot read the certificates in {path}")]
    Certificates {
        /// Where they should be.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It cannot be reached now. Only who asks whether it can be hears this.
    #[error("Redis at {address} cannot be used")]
    Away {
        /// Which.
        address: String,
        /// Why.
        #[source]
        error: redis::RedisError,
    },
    /// It does not do what it is told, and will not.
    #[error("Redis refuses a command")]
    Refused(#[source] redis::RedisError),
    /// It is a kind of server on which the promises of this store do not hold.
    #[error("Redis at {address} {what}")]
    Unfit {
        /// Which.
        address: String,
        /// Why not.
        what: String,
    },
    /// It answers what the scripts of this program never do.
    #[error("Redis answers {answer:?}: do programs of two versions use one prefix?")]
    Answer {
        /// What came.
        answer: String,
    },
    /// What is kept under a job's result is none.
    #[error("what is kept as the result of {job} is none")]
    Result {
        /// Whose.
        job: String,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
    /// A result that cannot be written down.
    #[error("the result cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
    /// Claims need a Redis that forgets nothing.
    #[error("this Redis may forget what it answered ({0}): a job of the long form could be lost")]
    Forgetful(String),
    /// The store was opened to look on, not as a host's.
    #[error("only a host begins jobs, and this store was opened to look on")]
    Onlooker,
    /// It was told to close.
    #[error("the store was closed")]
    Closed,
}

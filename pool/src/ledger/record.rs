//! One line of the ledger: what happened, and the hash that chains it to all before it.
//!
//! `<json><TAB><16 hex digits><LF>`. The digits are the first half of SHA-256 over the digits before and the
//! JSON, so a flipped byte, a missing line and a changed order all show.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    id::{GenerationId, InstanceId},
    tier::Tier,
};

/// What the ledger knows of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRef {
    /// The job's id.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// Which try this is, from 1.
    pub attempt: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A process started its segment. Always the first line.
    Opened {
        /// The process.
        instance: InstanceId,
        /// The kernel's boot id.
        boot: String,
    },
    /// A sandbox was found clean: a generation begins.
    Clean {
        /// Its id.
        generation: GenerationId,
        /// How it is isolated.
        tier: Tier,
        /// `name@sha256:…`
        image: String,
    },
    /// The generation belongs to a job from now on. Written before the job's first byte is sent.
    Consumed {
        /// Its id.
        generation: GenerationId,
        /// The one job.
        job: JobRef,
    },
    /// The generation is over.
    Ended {
        /// Its id.
        generation: GenerationId,
        /// How.
        how: Ended,
    },
    /// This process closed the segment of one that died.
    Recovered {
        /// The dead process.
        instance: InstanceId,
        /// Generations that it left open: ended by the crash.
        generations: Vec<GenerationId>,
        /// Bytes of the segment that are whole.
        length: u64,
        /// Bytes of a torn tail that were cut. What they said is not known.
        cut: u64,
        /// The hash of the last whole line.
        hash: String,
    },
    /// The process ended in order. Always the last line.
    Closed,
}

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Destroyed, with everything in it.
    Destroyed,
    /// Reverted to a snapshot: the next life has a new generation.
    Reverted,
    /// Neither worked; it is set aside and never handed out.
    Quarantined,
}

impl Ended {
    /// Its name in the ledger and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Destroyed => "destroyed",
            Self::Reverted => "reverted",
            Self::Quarantined => "quarantined",
        }
    }
}

/// An event and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Milliseconds since 1970, of the wall clock: for people, never for decisions.
    pub(crate) at: u64,
    #[serde(flatten)]
    pub(crate) event: Event,
}

impl Entry {
    pub(crate) fn now(event: Event) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: since.as_millis() as u64, event }
    }
}

/// The hash of all lines so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain(String);

impl Default for Chain {
    fn default() -> Self {
        Self("0".repeat(16))
    }
}

impl Chain {
    /// The entry as a line, and the chain with it.
    pub(crate) fn line(&self, entry: &Entry) -> (String, Self) {
        let json = serde_json::to_string(entry).expect("an entry has string keys only");
        let next = self.with(&json);
        (format!("{json}\t{}\n", next.0), next)
    }

    /// Reads a line without its newline; says what is wrong with it.
    pub(crate) fn read(&self, line: &str) -> Result<(Entry, Self), String> {
        let (json, hash) = line.rsplit_once('\t').ok_or("no hash at its end")?;
        let next = self.with(json);
        if next.0 != hash {
            return Err("its hash does not fit what it says and what was before".to_owned());
        }
        let entry =
            serde_json::from_str(json).map_err(|error| format!("not a record of this version: {error}"))?;
        Ok((entry, next))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn with(&self, json: &str) -> Self {
        let digest = Sha256::new().chain_update(&self.0).chain_update(json).finalize();
        let (head, _) = digest.split_first_chunk().expect("SHA-256 has 32 bytes");
        Self(format!("{:016x}", u64::from_be_bytes(*head)))
    }
}

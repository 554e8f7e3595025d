//! How a job ended, as everybody gets to see it: JSON, `schema_version` 1 (`mayfly schema result`).
//!
//! Each fact is the host's unless its documentation calls it the sandbox's word.

use std::error::Error;

use base64::{Engine, engine::general_purpose::STANDARD};
use egress::Egress;
use pool::{ColdReason, Source, Tier};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::job::tier_schema;

/// The result of one job. Every job that was taken in ends with exactly one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobResult {
    /// The version of this schema: 1.
    #[schemars(range(min = 1, max = 1))]
    pub schema_version: u32,
    /// The job's id.
    pub id: String,
    /// Whose job it was.
    pub tenant: String,
    /// Which start of the job this was, from 1. 0 if it was never started.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Who saw it end so: `host` where the host can see for itself, `guest` where it is the sandbox's word.
    pub observed_by: ObservedBy,
    /// The command's exit code. 127 if there is no such command, 126 if it cannot be executed. The sandbox's word.
    pub exit_code: Option<u8>,
    /// The signal that ended the command. The sandbox's word.
    pub signal: Option<u8>,
    /// How the sandbox was isolated. Missing if no sandbox was had.
    #[schemars(schema_with = "optional_tier_schema")]
    pub tier: Option<Tier>,
    /// The image, as `name@sha256:…`. Missing if no sandbox was had.
    pub image: Option<String>,
    /// The id of the sandbox's one life, 32 hex digits. Missing if no sandbox was had.
    pub generation: Option<String>,
    /// Whether the sandbox waited for the job (`warm`) or was made for it (`cold`). Missing if no sandbox was had.
    #[schemars(schema_with = "optional_source_schema")]
    pub source: Option<Source>,
    /// Why no sandbox waited: `empty`, none was ready; `shape`, the limits fit no configured class. Missing if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_cold_reason_schema")]
    pub cold_reason: Option<ColdReason>,
    /// What ran the virtual machine, where the sandbox was one: `kvm`, or `tcg`, which is software emulation and no
    /// security boundary.
    #[serde(default)]
    pub accel: Option<String>,
    /// How long each phase took.
    pub phases: Phases,
    /// What the job used. Missing if no sandbox was had.
    pub usage: Option<UsageReport>,
    /// What the job reached through its way out, and what it was refused there. Missing if it was given none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// What the command wrote to its standard output.
    pub stdout: Text,
    /// What the command wrote to its standard error.
    pub stderr: Text,
    /// The files that were kept.
    pub artifacts: Vec<Artifact>,
    /// What was asked for and is not among the artifacts, and why. At most 100.
    pub skipped: Vec<SkippedArtifact>,
    /// What went wrong. Missing where the command simply ended, with whichever code.
    pub error: Option<ErrorReport>,
    /// What else is worth knowing and changes nothing about the outcome.
    pub notes: Vec<String>,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The command ended with exit code 0.
    Succeeded,
    /// The command ended otherwise, or could not be started.
    Failed,
    /// The command was ended at its timeout, whatever it said then.
    TimedOut,
    /// The kernel killed processes of the job at its memory limit, and the command did not end with exit code 0.
    OutOfMemory,
    /// The command was killed because it wrote more than its output limit.
    OutputLimit,
    /// Somebody cancelled the job.
    Cancelled,
    /// The sandbox broke, or broke the rules, while the job ran. Not the job's failure.
    SandboxLost,
    /// No sandbox could be made. Not the job's failure.
    InfraError,
    /// The job asks for something that it cannot have; `error` says what.
    Rejected,
}

impl Outcome {
    /// The outcome's name in results and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::OutputLimit => "output_limit",
            Self::Cancelled => "cancelled",
            Self::SandboxLost => "sandbox_lost",
            Self::InfraError => "infra_error",
            Self::Rejected => "rejected",
        }
    }
}

/// Whose eyes a fact rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservedBy {
    /// The host saw it.
    Host,
    /// The sandbox said so.
    Guest,
}

/// How long each phase took, in microseconds. 0 for a phase that was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Waiting in a queue.
    pub queued_us: u64,
    /// Getting a clean sandbox; making one, if none waited.
    pub checkout_us: u64,
    /// Putting files in.
    pub stage_us: u64,
    /// The command, from its start until its output was drained.
    pub run_us: u64,
    /// Getting artifacts out.
    pub collect_us: u64,
    /// Ending the sandbox; 0 where the result was told before that.
    pub clean_us: u64,
}

/// What a job used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageReport {
    /// CPU time of all the job's processes, in microseconds.
    pub cpu_us: u64,
    /// The most memory that all processes and files held at once, in bytes.
    pub peak_memory_bytes: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
    /// User CPU time of the command and its children, in microseconds. The sandbox's word.
    pub user_us: u64,
    /// System CPU time of the command and its children, in microseconds. The sandbox's word.
    pub system_us: u64,
    /// The largest resident set of one process, in bytes. The sandbox's word.
    pub max_rss_bytes: u64,
    /// Processes that outlived the command and were killed. The sandbox's word.
    pub stragglers: u32,
}

/// What was written to one stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The first bytes, up to the cap, if they are UTF-8 (a character that the cap cuts is left out). Otherwise empty.
    pub text: String,
    /// The first bytes, up to the cap, in base64, if they are not UTF-8. Otherwise missing.
    pub base64: Option<String>,
    /// How many bytes the command wrote in all, as far as they were received.
    pub bytes: u64,
    /// Whether `text` or `base64` holds less than the command wrote: the cap was reached, or the end never came.
    pub truncated: bool,
}

impl Text {
    /// Shows the first bytes of a stream of `bytes` bytes. `complete`: its end was seen.
    pub(crate) fn new(first: Vec<u8>, bytes: u64, complete: bool) -> Self {
        let truncated = !complete || bytes > first.len() as u64;
        match String::from_utf8(first) {
            Ok(text) => Self { text, base64: None, bytes, truncated },
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let cut_at_the_end = truncated && error.utf8_error().error_len().is_none();
                let mut first = error.into_bytes();
                if cut_at_the_end {
                    first.truncate(valid);
                    let text = String::from_utf8(first).unwrap_or_default();
                    Self { text, base64: None, bytes, truncated }
                } else {
                    Self { text: String::new(), base64: Some(STANDARD.encode(first)), bytes, truncated }
                }
            }
        }
    }
}

/// A file that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its path in the sandbox. Control characters and bytes that are not UTF-8 are escaped as `\xNN`.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes, in hex, taken on the host.
    pub sha256: String,
}

/// Something that was asked for and is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SkippedArtifact {
    /// Its path in the sandbox, or the pattern that nothing matched, escaped as in `artifacts`.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What went wrong, in three parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorReport {
    /// What failed, and on what.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub what_to_do: String,
}

impl ErrorReport {
    /// Says what failed, why, and what to do.
    #[must_use]
    pub fn new(what: impl Into<String>, why: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), what_to_do: what_to_do.into() }
    }
}

/// An error and everything behind it, in one line: the `why` of a report.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

impl JobResult {
    /// The version that this program writes.
    pub const SCHEMA_VERSION: u32 = 1;

    /// A result that knows no sandbox yet.
    pub(crate) fn without_sandbox(id: &str, tenant: &str, attempt: u32, outcome: Outcome) -> Self {
        Self {
            schema_version: Self::SCHEMA_VERSION,
            id: id.to_owned(),
            tenant: tenant.to_owned(),
            attempt,
            outcome,
            observed_by: ObservedBy::Host,
            exit_code: None,
            signal: None,
            tier: None,
            image: None,
            generation: None,
            source: None,
            cold_reason: None,
            accel: None,
            phases: Phases::default(),
            usage: None,
            egress: None,
            stdout: Text::default(),
            stderr: Text::default(),
            artifacts: Vec::new(),
            skipped: Vec::new(),
            error: None,
            notes: Vec::new(),
        }
    }

    /// The result of a job that was never started.
    #[must_use]
    pub fn never_started(id: &str, tenant: &str, outcome: Outcome, error: ErrorReport) -> Self {
        Self { error: Some(error), ..Self::without_sandbox(id, tenant, 0, outcome) }
    }
}

fn optional_tier_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [tier_schema(generator), { "type": "null" }] })
}

fn optional_cold_reason_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["empty", "shape", null] })
}

fn optional_source_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["warm", "cold", null] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_anything_else_is_base64() {
        assert_eq!(Text::new(b"ok".to_vec(), 2, true).text, "ok");
        let binary = Text::new(vec![0xff, 0xfe], 2, true);
        assert_eq!((binary.text.as_str(), binary.base64.as_deref()), ("", Some("//4=")));
        assert!(!binary.truncated);
    }

    #[test]
    fn a_character_that_the_cap_cuts_does_not_make_text_binary() {
        let cut = Text::new("aé".as_bytes()[..2].to_vec(), 3, true);
        assert_eq!((cut.text.as_str(), cut.base64, cut.truncated), ("a", None, true));
        // Without a cut, the same bytes are what the job wrote.
        assert!(Text::new("aé".as_bytes()[..2].to_vec(), 2, true).base64.is_some());
    }

    #[test]
    fn an_end_that_never_came_is_said() {
        assert!(Text::new(b"ok".to_vec(), 2, false).truncated);
    }

    #[test]
    fn the_names_of_outcomes_are_those_of_the_schema() {
        for outcome in [Outcome::TimedOut, Outcome::OutOfMemory, Outcome::SandboxLost, Outcome::InfraError] {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.name());
        }
    }

    #[test]
    fn every_field_of_a_result_is_described() {
        let schema = serde_json::to_value(schemars::schema_for!(JobResult)).unwrap();
        for (name, field) in schema["properties"].as_object().unwrap() {
            assert!(field.to_string().contains("description"), "{name} is not described");
        }
    }
}

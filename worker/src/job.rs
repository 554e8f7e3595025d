//! A job as its author writes it: JSON, `schema_version` 1. These types are the public schema
//! (`mayfly schema job`), so their documentation is the schema's.
//!
//! Nothing here is checked beyond its form: what a job may ask is decided at admission.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use pool::Tier;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::units::Size;

/// One job: a command that runs once, in a sandbox of its own that is thrown away afterwards.
///
/// Unknown fields are refused. Times are texts such as "30s", "10m" or "1h 30m".
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The version of this schema: 1.
    #[schemars(range(min = 1, max = 1))]
    pub schema_version: u32,
    /// The job's name, unique for its tenant: 1 to 128 of `A-Z a-z 0-9 . _ -`. Made up if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9._-]+$"))]
    pub id: Option<String>,
    /// Whose job it is. Ignored where the way that the job came by says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9._-]+$"))]
    pub tenant: Option<String>,
    /// The weakest isolation that will do. The strongest of this, what `trust` means and the tenant's floor is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "tier_schema")]
    pub tier: Option<Tier>,
    /// How far the command is trusted, which means a tier. With neither `tier` nor `trust` a job is `untrusted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// The image to run in: `name`, or `name@sha256:…` for exactly these bytes.
    pub image: String,
    /// Program and arguments. No shell is involved. The program is looked up in `PATH` unless it has a slash.
    #[schemars(length(min = 1))]
    pub command: Vec<String>,
    /// Environment variables, added to the image's. Names: letters, digits and `_`, not starting with a digit; names
    /// that start with `MAYFLY_` are reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Hosts that the job reaches through its proxy, such as `api.example.com` (ports 80 and 443), `*.example.com:8443`. Each
    /// must be one that its tenant may ask for. Missing: none, and no proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Names of tunnels: ports of the job's loopback that lead to one place each. Each must be one of its tenant's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<String>,
    /// Names of secrets of the tenant. Their values are read on the host when the job begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// What the command reads as its standard input. Empty if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<File>,
    /// Files to put in before the command starts, by absolute path. Missing directories are made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, File>,
    /// Where the command starts: an absolute path. The image's own, or `/job`, if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// How long the command may run, counted from its start. 10 minutes if missing.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", example = "10m")]
    pub timeout: Option<Duration>,
    /// How long the command has between SIGTERM and SIGKILL, at its timeout or when it is cancelled. 1 second if missing.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", example = "1s")]
    pub grace: Option<Duration>,
    /// What the job may use.
    #[serde(default)]
    pub limits: JobLimits,
    /// Files to keep: absolute paths, directories (all below it) or globs (`*`, `?`, `[…]`, `**`). They are kept in
    /// every outcome in which the sandbox still answers, timeouts included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Which jobs of the same tenant go first.
    #[serde(default)]
    pub priority: Class,
    /// How often the job may be started at most when hosts fail under it: 1 to 20. 3 if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20))]
    pub max_attempts: Option<u32>,
    /// Whether running it twice does no harm. A job that may have started is repeated only if so.
    #[serde(default)]
    pub idempotent: bool,
    /// The author's own notes. Not interpreted.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub meta: serde_json::Map<String, serde_json::Value>,
}

/// How far a job is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// One's own code: tier chroot.
    Trusted,
    /// Code of the same house: tier nspawn.
    Internal,
    /// Anybody's code: tier docker.
    Untrusted,
    /// Code that is expected to attack: tier vm.
    Hostile,
}

impl Trust {
    /// The word, as jobs and routing keys write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Internal => "internal",
            Self::Untrusted => "untrusted",
            Self::Hostile => "hostile",
        }
    }
}

/// Which jobs of one tenant go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Before normal ones.
    High,
    /// In the order of arrival.
    #[default]
    Normal,
}

/// What a job may use. Missing ones get a default.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobLimits {
    /// CPUs, such as 0.5 or 2. 1 if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01))]
    pub cpus: Option<f64>,
    /// Memory of all processes and of the files they write. There is no swap. 512 MiB if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Processes and threads. 128 if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
    /// Bytes in all files together; they are held in memory. Half of the memory if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Bytes that may be written to stdout and stderr together; the job is killed above it. 64 MiB if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Size>,
}

/// What a file holds: exactly one of `text`, `base64` and `artifact`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FileFields", into = "FileFields")]
pub struct File {
    /// The bytes, or where they are.
    pub content: FileContent,
    /// Whether it may be executed (mode 0755, otherwise 0644). Without meaning for `stdin`.
    pub executable: bool,
}

/// The bytes of a file, or where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// The bytes themselves.
    Inline(Vec<u8>),
    /// The artifact of another job, by its digest.
    Artifact(String),
}

/// What a file holds: exactly one of `text`, `base64` and `artifact`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileFields {
    /// UTF-8 text, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Bytes in base64 (RFC 4648, with padding).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// An artifact of an earlier job: `sha256:…`. Refused in this version: artifacts are not stored yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact: Option<String>,
    /// Whether it may be executed (mode 0755, otherwise 0644). Without meaning for `stdin`.
    #[serde(default)]
    executable: bool,
}

impl TryFrom<FileFields> for File {
    type Error = String;

    fn try_from(fields: FileFields) -> Result<Self, String> {
        let executable = fields.executable;
        let content = match (fields.text, fields.base64, fields.artifact) {
            (Some(text), None, None) => FileContent::Inline(text.into_bytes()),
            (None, Some(text), None) => FileContent::Inline(
                STANDARD.decode(text).map_err(|error| format!("base64 does not decode: {error}"))?,
            ),
            (None, None, Some(digest)) => FileContent::Artifact(digest),
            _ => return Err("a file needs exactly one of text, base64 and artifact".to_owned()),
        };
        Ok(Self { content, executable })
    }
}

impl From<File> for FileFields {
    fn from(file: File) -> Self {
        let executable = file.executable;
        match file.content {
            FileContent::Artifact(digest) => Self { artifact: Some(digest), executable, ..Self::default() },
            FileContent::Inline(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Self { text: Some(text), executable, ..Self::default() },
                Err(not_text) => {
                    Self { base64: Some(STANDARD.encode(not_text.as_bytes())), executable, ..Self::default() }
                }
            },
        }
    }
}

impl JsonSchema for File {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "File".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = FileFields::json_schema(generator);
        schema.insert(
            "oneOf".to_owned(),
            serde_json::json!([{ "required": ["text"] }, { "required": ["base64"] }, { "required": ["artifact"] }]),
        );
        schema
    }
}

/// The tier's names, from the one list that there is.
pub(crate) fn tier_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": Tier::ALL.map(Tier::name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_job_is_an_image_and_a_command() {
        let job: Job =
            serde_json::from_str(r#"{"schema_version":1,"image":"base","command":["true"]}"#).unwrap();
        assert_eq!(job.priority, Class::Normal);
        assert_eq!(job.limits, JobLimits::default());
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let text = r#"{"schema_version":1,"image":"base","command":["true"],"privileged":true}"#;
        let error = serde_json::from_str::<Job>(text).unwrap_err().to_string();
        assert!(error.contains("unknown field `privileged`"), "{error}");
    }

    #[test]
    fn a_job_survives_being_written_and_read() {
        let text = r#"{"schema_version":1,"image":"base","command":["a"],"tier":"vm","trust":"internal",
            "timeout":"1m 30s","limits":{"cpus":0.5,"memory":"64MiB"},"priority":"high","env":{"A":"b"},
            "files":{"/job/a":{"base64":"/wA="},"/job/b":{"text":"hi","executable":true}}}"#;
        let job: Job = serde_json::from_str(text).unwrap();
        assert_eq!(job.timeout, Some(Duration::from_secs(90)));
        assert_eq!(job.files["/job/a"].content, FileContent::Inline(vec![0xff, 0]));
        let again: Job = serde_json::from_str(&serde_json::to_string(&job).unwrap()).unwrap();
        assert_eq!(job, again);
    }

    #[test]
    fn a_file_with_two_contents_or_none_is_refused() {
        for text in
            [r#"{"text":"a","base64":"YQ=="}"#, "{}", r#"{"base64":"?"}"#, r#"{"path":"/etc/passwd"}"#]
        {
            assert!(serde_json::from_str::<File>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_schema_names_every_tier_and_every_field() {
        let schema = serde_json::to_value(schemars::schema_for!(Job)).unwrap();
        assert_eq!(
            schema["properties"]["tier"]["enum"],
            serde_json::json!(["chroot", "nspawn", "docker", "vm"])
        );
        assert_eq!(schema["additionalProperties"], serde_json::json!(false));
        for (name, field) in schema["properties"].as_object().unwrap() {
            assert!(field.to_string().contains("description"), "{name} is not described");
        }
    }
}

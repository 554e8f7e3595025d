//! Admission: a job as its author wrote it becomes an [`Assignment`], or is refused with the field, the reason
//! and what to do. Pure: no file, no clock, no pool.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use egress::Ask;
use images::ImageRef;
use pool::{LimitError, Limits, Want};
use thiserror::Error;
use worker::{Assignment, Content, ErrorReport, File, FileContent, Job, JobLimits, Size, StagedFile};

use crate::policy::Policy;

/// The kernel takes no longer argument or environment string, its end included.
const LONGEST_STRING: usize = 128 * 1024 - 1;
/// Command and environment together: both travel in one frame, and must fit the kernel's share of the stack.
const LONGEST_COMMAND: usize = 512 * 1024;
/// The longest path that a system call takes, its end included.
const LONGEST_PATH: usize = 4095;
/// The longest name of a file.
const LONGEST_NAME: usize = 255;
/// Kernel views through which a path would mean something else than it says.
const KERNEL_VIEWS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What is known of a job beside its own words.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The id, for a job that names none.
    pub id: String,
    /// Whose job it is: decided by the way that it came, never by the job.
    pub tenant: String,
    /// Which start of the job this is, from 1.
    pub attempt: u32,
    /// How long it waited.
    pub queued: Duration,
}

/// Why a job is not taken.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Written for another version of mayfly.
    #[error("schema_version: it is {0}, and this version of mayfly knows 1")]
    SchemaVersion(u32),
    /// A value that nothing can be made of.
    #[error("{field}: {reason}")]
    Value {
        /// Which field, such as `env.PATH`.
        field: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Within these limits no sandbox can start.
    #[error("limits: {0}")]
    Limits(#[from] LimitError),
}

impl Refusal {
    fn value(field: impl Into<String>, reason: impl Into<String>, hint: &'static str) -> Self {
        Self::Value { field: field.into(), reason: reason.into(), hint }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::SchemaVersion(_) => "write the job for schema_version 1 (`mayfly schema job`)",
            Self::Value { hint, .. } => hint,
            Self::Limits(LimitError::TooLow { .. }) => "ask for more",
            Self::Limits(LimitError::DiskAboveMemory { .. }) => "ask for less disk or more memory",
        }
    }

    /// The refusal as a result tells it.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        ErrorReport::new("the job is refused", self.to_string(), self.hint())
    }
}

/// Takes a job in, with every default filled in and nothing left to check.
pub fn admit(job: Job, origin: Origin, policy: &Policy) -> Result<Assignment, Refusal> {
    if job.schema_version != 1 {
        return Err(Refusal::SchemaVersion(job.schema_version));
    }
    let id = job.id.unwrap_or(origin.id);
    name("id", &id)?;
    name("tenant", &origin.tenant)?;
    let image: ImageRef = job.image.parse().map_err(|error: images::RefError| {
        Refusal::value("image", error.to_string(), "`mayfly image ls` shows the images that are there")
    })?;
    command(&job.command, &job.env)?;
    if let Some(workdir) = &job.workdir {
        path("workdir", workdir)?;
    }
    patterns(&job.artifacts, policy)?;
    let stdin = job.stdin.map(|stdin| content("stdin", stdin)).transpose()?;
    let files = files(job.files, stdin.as_ref(), policy)?;
    if job.max_attempts.is_some_and(|attempts| !(1..=20).contains(&attempts)) {
        return Err(Refusal::value("max_attempts", "it is not from 1 to 20", "leave it out for 3"));
    }
    let egress = egress(&job.allow, &job.tunnels, &job.secrets, &origin.tenant, policy)?;
    let owner = Some(origin.tenant.clone());
    Ok(Assignment {
        id,
        tenant: origin.tenant,
        attempt: origin.attempt,
        queued: origin.queued,
        want: Want {
            tier: policy.tier(job.tier, job.trust),
            image,
            limits: limits(&job.limits, &policy.limits)?,
            owner,
        },
        command: job.command,
        env: job.env,
        workdir: job.workdir,
        stdin,
        files,
        egress,
        timeout: duration("timeout", job.timeout, policy.timeout, policy.longest_timeout)?,
        grace: duration("grace", job.grace, policy.grace, policy.longest_grace)?,
        output_limit: job.limits.output.map_or(policy.output, Size::bytes),
        artifacts: job.artifacts,
    })
}

/// What a job gets of what its tenant may reach.
fn egress(
    allow: &[String],
    tunnels: &[String],
    secrets: &[String],
    tenant: &str,
    policy: &Policy,
) -> Result<Option<Arc<egress::Plan>>, Refusal> {
    for (field, words) in [("allow", allow), ("tunnels", tunnels), ("secrets", secrets)] {
        if words.len() > policy.patterns {
            let reason = format!("there are {}, above {}", words.len(), policy.patterns);
            return Err(Refusal::value(field, reason, "ask for less"));
        }
    }
    let plan = policy.egress.grant(tenant, &Ask { allow, tunnels, secrets });
    let plan = plan.map_err(|denial| Refusal::value(denial.field, denial.reason, denial.hint))?;
    Ok(plan.map(Arc::new))
}

fn name(field: &str, name: &str) -> Result<(), Refusal> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if (1..=128).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let reason = "it is not 1 to 128 letters, digits, dots, underscores and dashes";
    Err(Refusal::value(field, reason, "use something like \"eval-0042\""))
}

fn command(command: &[String], env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let Some(program) = command.first() else {
        return Err(Refusal::value("command", "it is empty", "name a program and its arguments"));
    };
    if program.is_empty() {
        return Err(Refusal::value("command[0]", "it is empty", "name a program"));
    }
    for (index, word) in command.iter().enumerate() {
        string(&format!("command[{index}]"), word)?;
    }
    for (name, value) in env {
        if !is_variable(name) {
            let field = format!("env.{}", name.escape_default());
            let reason = "it is not the name of an environment variable";
            return Err(Refusal::value(field, reason, "use letters, digits and underscores, no digit first"));
        }
        if name.starts_with("MAYFLY_") {
            let reason = "names that start with MAYFLY_ are reserved";
            return Err(Refusal::value(format!("env.{name}"), reason, "choose another name"));
        }
        string(&format!("env.{name}"), value)?;
    }
    let words: usize = command.iter().map(|word| word.len() + 1).sum();
    let variables: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if words + variables > LONGEST_COMMAND {
        let reason = format!("with env it is {} bytes, above {LONGEST_COMMAND}", words + variables);
        return Err(Refusal::value("command", reason, "pass long input as a file or through stdin"));
    }
    Ok(())
}

fn is_variable(name: &str) -> bool {
    let mut letters = name.bytes();
    let first = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
    first && letters.all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// Checks that a job may have a variable of this name.
pub(crate) fn variable(name: &str) -> Result<(), &'static str> {
    match name {
        _ if !is_variable(name) => Err("it is not the name of an environment variable"),
        _ if name.starts_with("MAYFLY_") => Err("names that start with MAYFLY_ are reserved"),
        _ => Ok(()),
    }
}

fn string(field: &str, value: &str) -> Result<(), Refusal> {
    if value.contains('\0') {
        return Err(Refusal::value(field, "it has a NUL byte in it", "pass binary data as a file"));
    }
    if value.len() > LONGEST_STRING {
        let reason = format!("it is {} bytes, above {LONGEST_STRING}", value.len());
        return Err(Refusal::value(field, reason, "pass long input as a file or through stdin"));
    }
    Ok(())
}

/// Checks that a path lies inside the sandbox and means what it says. `field` names it in the refusal.
pub fn path(field: &str, path: &str) -> Result<(), Refusal> {
    let refuse =
        |reason: &str| Err(Refusal::value(field, reason, "use an absolute path such as /job/input.txt"));
    let Some(names) = path.strip_prefix('/') else { return refuse("the path is not absolute") };
    if path.contains('\0') {
        return refuse("the path has a NUL byte in it");
    }
    let names = names.strip_suffix('/').unwrap_or(names);
    if names.split('/').any(|name| name == "..") {
        return refuse("the path leaves the sandbox: it has a \"..\" in it");
    }
    if names.split('/').any(|name| matches!(name, "" | ".")) && !names.is_empty() {
        return refuse("the path has an empty part or a \".\" in it");
    }
    if path.len() > LONGEST_PATH || names.split('/').any(|name| name.len() > LONGEST_NAME) {
        return refuse("the path is too long: 4095 bytes in all and 255 in each part is the most");
    }
    // `/dev/shm` is plain memory of the job's own. The rest are doors to other things: `/proc/self/fd/7` is one.
    let view = KERNEL_VIEWS
        .iter()
        .any(|view| path.strip_prefix(view).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if view && !path.starts_with("/dev/shm/") {
        return refuse("the path lies in /proc, /sys or /dev, which are the kernel's");
    }
    Ok(())
}

fn patterns(patterns: &[String], policy: &Policy) -> Result<(), Refusal> {
    if patterns.len() > policy.patterns {
        let reason = format!("there are {}, above {}", patterns.len(), policy.patterns);
        return Err(Refusal::value("artifacts", reason, "name directories or globs instead of files"));
    }
    patterns.iter().enumerate().try_for_each(|(index, pattern)| path(&format!("artifacts[{index}]"), pattern))
}

fn files(
    files: BTreeMap<String, File>,
    stdin: Option<&Content>,
    policy: &Policy,
) -> Result<Vec<StagedFile>, Refusal> {
    if files.len() > policy.files {
        let reason = format!("there are {}, above {}", files.len(), policy.files);
        return Err(Refusal::value("files", reason, "pack them into an archive"));
    }
    let mut staged = Vec::with_capacity(files.len());
    let mut bytes = stdin.map_or(0, inline_bytes);
    for (target, file) in files {
        let field = format!("files.{}", target.escape_default());
        path(&field, &target)?;
        if target.ends_with('/') {
            return Err(Refusal::value(field, "the path names a directory", "name a file in it"));
        }
        let mode = if file.executable { 0o755 } else { 0o644 };
        let content = content(&field, file)?;
        bytes += inline_bytes(&content);
        staged.push(StagedFile { path: target, mode, content });
    }
    if bytes > policy.inline_bytes {
        let reason = format!("with stdin they are {bytes} bytes, above {}", policy.inline_bytes);
        return Err(Refusal::value("files", reason, "put less in, or build it into the image"));
    }
    Ok(staged)
}

fn content(field: &str, file: File) -> Result<Content, Refusal> {
    match file.content {
        FileContent::Inline(bytes) => Ok(Content::Bytes(bytes)),
        FileContent::Artifact(_) => Err(Refusal::value(
            field,
            "this version of mayfly stores no artifacts that a job could refer to",
            "give the bytes as text or base64",
        )),
    }
}

fn inline_bytes(content: &Content) -> usize {
    match content {
        Content::Bytes(bytes) => bytes.len(),
        Content::LocalFile(_) => 0,
    }
}

fn duration(
    field: &str,
    asked: Option<Duration>,
    default: Duration,
    longest: Duration,
) -> Result<Duration, Refusal> {
    let asked = asked.unwrap_or(default);
    if asked < Duration::from_millis(1) && field == "timeout" {
        return Err(Refusal::value(field, "no time at all is no time to run", "use something like \"30s\""));
    }
    if asked > longest {
        let reason = format!("{asked:?} is above the longest allowed, {longest:?}");
        return Err(Refusal::value(
            field,
            reason,
            "split the job, or ask for a longer limit to be configured",
        ));
    }
    Ok(asked)
}

fn limits(asked: &JobLimits, default: &Limits) -> Result<Limits, Refusal> {
    let memory = asked.memory.map_or(default.memory, Size::bytes);
    // Whoever asks for another memory and no disk gets the disk that goes with it.
    let disk = if asked.memory.is_some() { Limits::disk_for(memory) } else { default.disk };
    let limits = Limits {
        cpu_millis: asked.cpus.map_or(Ok(default.cpu_millis), cpu_millis)?,
        memory,
        pids: asked.pids.unwrap_or(default.pids),
        disk: asked.disk.map_or(disk, Size::bytes),
        ..*default
    };
    limits.check()?;
    Ok(limits)
}

fn cpu_millis(cpus: f64) -> Result<u32, Refusal> {
    if cpus.is_finite() && (0.0..=1024.0).contains(&cpus) {
        Ok((cpus * 1000.0).round() as u32)
    } else {
        Err(Refusal::value(
            "limits.cpus",
            format!("{cpus} is no number of CPUs"),
            "use something like 0.5 or 2",
        ))
    }
}

#[cfg(test)]
mod tests;

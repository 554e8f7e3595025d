//! What no image may have in it, whoever made it: checked before an image gets into the store.

use std::fmt;
use std::path::Path;

use agent::message::AGENT_PATH;

use crate::ImageConfig;
use crate::tree::{self, Entry, Kind};

/// Every tier can map these ids and no others.
pub(crate) const HIGHEST_ID: u32 = 65535;

/// Where the tiers mount something of their own. Their content in an image would never be seen.
pub(crate) const MOUNT_POINTS: &[&str] = &["dev", "job", "proc", "run", "sys", "tmp"];

/// Something that no image may have in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The path in the image.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.problem)
    }
}

fn finding(path: &Path, problem: impl Into<String>) -> Finding {
    Finding { path: format!("/{}", tree::escaped(path.as_os_str())), problem: problem.into() }
}

/// What cannot be mended by normalising: kinds and owners.
pub(crate) fn unmendable(entries: &[Entry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in entries {
        if let Kind::Special(what) = entry.kind {
            findings.push(finding(&entry.path, format!("is {what}")));
        }
        if entry.uid > HIGHEST_ID || entry.gid > HIGHEST_ID {
            let problem = format!("belongs to {}:{}, beyond {HIGHEST_ID}", entry.uid, entry.gid);
            findings.push(finding(&entry.path, problem));
        }
    }
    findings
}

/// Everything that an image in the store must be.
pub(crate) fn image(entries: &[Entry], config: &ImageConfig) -> Vec<Finding> {
    let mut findings = unmendable(entries);
    for entry in entries {
        // A setuid bit on a directory means nothing, but a job that finds one may count on it.
        if entry.mode & 0o6000 != 0 {
            findings.push(finding(&entry.path, "has the setuid or setgid bit"));
        }
        for (name, _) in entry.xattrs.iter().filter(|(name, _)| !tree::is_content(name)) {
            findings.push(finding(&entry.path, format!("has the attribute {}", tree::escaped(name))));
        }
    }
    let workdir = Path::new(config.workdir.trim_start_matches('/'));
    let mount_points = MOUNT_POINTS.iter().map(Path::new);
    for path in mount_points.clone().chain([workdir]) {
        // A symlink here would lead a mount, or what masks one, to a place that the image chose.
        if !entries.iter().any(|entry| entry.path == path && entry.kind == Kind::Directory) {
            findings.push(finding(path, "is not a directory"));
        }
    }
    for path in mount_points {
        let inside =
            |entry: &&Entry| entry.path.starts_with(path) && entry.path != path && entry.path != workdir;
        findings.extend(
            entries.iter().find(inside).map(|entry| finding(&entry.path, "lies below a mount point")),
        );
    }
    findings.extend(agent(entries));
    findings
}

fn agent(entries: &[Entry]) -> Option<Finding> {
    let path = Path::new(&AGENT_PATH[1..]);
    let good = |entry: &Entry| {
        matches!(entry.kind, Kind::File { .. }) && (entry.mode, entry.uid, entry.gid) == (0o555, 0, 0)
    };
    let found = entries.iter().any(|entry| entry.path == path && good(entry));
    (!found).then(|| finding(path, "is not the agent: a file of root with mode 0555"))
}

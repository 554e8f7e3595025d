//! What this host can run, and why not: the observations behind `mayfly doctor`.
//!
//! Reads `/proc`, `/sys` and `/etc`, and lets short-lived children rehearse what a sandbox needs (`rehearsal`).
//! It changes nothing that stays, makes no sandbox, and talks to no pool: a host that cannot run a single job
//! must still be able to say why.

mod cgroups;
mod docker;
mod facts;
mod kernel;
mod nspawn;
mod rehearsal;
mod syscalls;
mod tiers;
mod vm;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use cgroups::CgroupMode;
pub use tiers::TierReport;

use facts::Facts;

use crate::{docker::Docker as DockerSettings, vm::Vm as VmSettings};

/// The host ids that sandboxes are given: clear of what systemd-nspawn picks (up to `0x6FFF_FFFF`) and of the
/// container ids that distributions hand out in `/etc/subuid`.
pub const SANDBOX_IDS: std::ops::RangeInclusive<u64> = 0x7000_0000..=0x7FFE_FFFF;

/// How one observation turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Sandboxes can be made, but something is weaker, slower or less visible; the detail says what.
    Degraded,
    /// It is not there, or it does not work.
    Missing,
    /// It could not be found out, mostly for want of rights.
    Unknown,
}

/// One observation about the host.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// A stable name for programs, such as `idmapped-mounts`.
    pub id: &'static str,
    /// The same for people.
    pub title: &'static str,
    /// How it turned out.
    pub state: State,
    /// What was seen, or what is wrong.
    pub detail: String,
    /// The command or the act that mends it.
    pub fix: Option<String>,
}

impl Finding {
    fn new(id: &'static str, title: &'static str, state: State, detail: impl Into<String>) -> Self {
        Self { id, title, state, detail: detail.into(), fix: None }
    }

    fn mended_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// Everything that was seen.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    /// The kernel's release.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory of the machine, in bytes; 0 where it cannot be read.
    pub memory: u64,
    /// Which cgroup hierarchy carries the limits.
    pub cgroup: CgroupMode,
    /// One entry for each observation, in the order of the checks.
    pub findings: Vec<Finding>,
    /// What follows for each tier.
    pub tiers: Vec<TierReport>,
}

impl HostReport {
    /// Whether a job can run on this host at all.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.tiers.iter().any(|tier| tier.ready)
    }
}

/// What to look at.
#[derive(Debug, Clone)]
pub struct Query {
    /// Where images are kept. Need not exist yet: its nearest existing parent is looked at.
    pub data_dir: PathBuf,
    /// What the processes of this boot know of the host.
    pub run_dir: PathBuf,
    /// Where the docker daemon is looked for.
    pub docker: DockerSettings,
    /// What is wanted of virtual machines.
    pub vm: VmSettings,
    /// The images in the store, as `name@digest`, where the caller could list them.
    pub images: Result<Vec<String>, String>,
}

/// Looks at the host. Takes some tens of milliseconds.
#[must_use]
pub fn inspect(query: &Query) -> HostReport {
    let facts = Facts::of_this_host();
    let cgroups = cgroups::look(&facts);
    let mut findings = vec![kernel::rights(&facts)];
    findings.extend(rehearsal::rehearse(&existing_part_of(&query.data_dir), &facts));
    findings.push(kernel::seccomp(&facts));
    findings.push(kernel::landlock());
    findings.extend(cgroups.findings);
    findings.push(nspawn::look(&facts, cgroups.mode));
    findings.push(docker::look(&query.docker));
    findings.extend(vm::look(&query.vm, &query.run_dir, &existing_part_of(&query.data_dir)));
    findings.extend(kernel::hygiene(&facts));
    findings.push(images(query));
    HostReport {
        kernel: facts.line("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: facts.memory(),
        cgroup: cgroups.mode,
        tiers: tiers::judge(&findings),
        findings,
    }
}

fn images(query: &Query) -> Finding {
    let finding = |state, detail| Finding::new("images", "images", state, detail);
    match &query.images {
        Ok(names) if names.is_empty() => {
            finding(State::Degraded, format!("none in {}", query.data_dir.display()))
                .mended_by("mayfly image build base")
        }
        Ok(names) => finding(State::Ok, names.join(", ")),
        Err(why) => finding(State::Unknown, why.clone()),
    }
}

/// The data directory is made by the first image build; until then its filesystem is that of its parent.
fn existing_part_of(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.ancestors().find(|part| part.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(data_dir: PathBuf) -> Query {
        Query {
            data_dir,
            run_dir: "/nowhere".into(),
            docker: DockerSettings::default(),
            vm: VmSettings::default(),
            images: Ok(vec![]),
        }
    }

    #[test]
    fn a_data_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing_part_of(&dir.path().join("not/there")), dir.path());
        assert_eq!(existing_part_of(dir.path()), dir.path());
    }

    #[test]
    fn a_host_without_images_is_told_how_to_build_one() {
        let none = query("/nowhere".into());
        assert_eq!(images(&none).state, State::Degraded);
        assert!(images(&none).fix.unwrap().contains("image build"));
        let some = Query { images: Ok(vec!["base@sha256:1".into()]), ..none };
        assert_eq!(images(&some).state, State::Ok);
    }

    #[test]
    fn looking_twice_leaves_mounts_and_cgroups_as_they_were() {
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let query = query(std::env::temp_dir());
        let before = mounts();
        let first = inspect(&query);
        let second = inspect(&query);
        assert_eq!(mounts(), before);
        let states = |report: &HostReport| {
            report.findings.iter().map(|finding| (finding.id, finding.state)).collect::<Vec<_>>()
        };
        assert_eq!(states(&first), states(&second));
    }
}

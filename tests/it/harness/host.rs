//! What the host sees of one node's sandboxes: cgroups, processes, marks, mounts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{dockerd, libvirtd};

/// One live sandbox, by its cgroups.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// Its directory below the pids controller.
    directory: PathBuf,
    /// The same in each tree: `mayfly-<instance>/<sandbox>`, or `mayfly-<instance>-docker/<container>`, wherever those are.
    everywhere: Vec<PathBuf>,
    generation: String,
}

impl Sandbox {
    /// Which life of a sandbox this is, as the ledger names it.
    pub(crate) fn generation(&self) -> &str {
        &self.generation
    }

    /// The live sandboxes of an instance, those that wait for a job included.
    pub(crate) fn all_of(instance: &str) -> Vec<Self> {
        let mut found = Self::below(&format!("mayfly-{instance}"));
        let containers = Self::below(&format!("mayfly-{instance}-docker"));
        if !containers.is_empty() {
            let lives = dockerd::lives(instance);
            let of_life = containers.into_iter().filter_map(|sandbox| {
                let generation = lives.get(sandbox.generation())?.clone();
                Some(Self { generation, ..sandbox })
            });
            found.extend(of_life);
        }
        found
    }

    fn below(instance: &str) -> Vec<Self> {
        let directories = cgroups_called(instance);
        // One tree is enough: v2, or the v1 controller that every sandbox is in.
        let in_pids = directories.iter().find(|path| path.to_string_lossy().contains("/pids/"));
        let Some(directory) = in_pids.or(directories.first()) else { return Vec::new() };
        let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| Self {
                everywhere: directories.iter().map(|place| place.join(entry.file_name())).collect(),
                directory: entry.path(),
                generation: entry.file_name().into_string().unwrap(),
            })
            .collect()
    }

    /// The host's pids of the job's processes.
    pub(crate) fn job(&self) -> Vec<u32> {
        pids(&self.directory.join("job/cgroup.procs"))
    }

    /// The host's pid of the agent: in a leaf of its own on v2, in the sandbox's own cgroup on v1.
    pub(crate) fn agent(&self) -> Vec<u32> {
        let mut agents = pids(&self.of_agent().join("cgroup.procs"));
        // Where systemd-nspawn makes a cgroup of its own for it.
        agents.extend(pids(&self.of_agent().join("payload/cgroup.procs")));
        agents
    }

    /// The host's pid of systemd-nspawn, on its tier.
    pub(crate) fn supervisor(&self) -> Vec<u32> {
        pids(&self.of_agent().join("supervisor/cgroup.procs"))
    }

    fn of_agent(&self) -> PathBuf {
        let leaf = self.directory.join("agent");
        if leaf.exists() { leaf } else { self.directory.clone() }
    }

    /// What a cgroup file of the job's says, whichever version and controller has it.
    pub(crate) fn limit(&self, names: &[&str]) -> String {
        let found = self.everywhere.iter().find_map(|place| {
            names.iter().find_map(|name| fs::read_to_string(place.join("job").join(name)).ok())
        });
        found.unwrap_or_else(|| panic!("none of {names:?} in {:?}", self.everywhere)).trim().to_owned()
    }
}

fn pids(path: &Path) -> Vec<u32> {
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

/// Everything on the host that bears one of these instances, or runs in one of these sessions.
pub(crate) fn leftovers(instances: &[String], sessions: &[u32], run_dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for instance in instances {
        let names = [format!("mayfly-{instance}"), format!("mayfly-{instance}-docker")];
        found.extend(names.iter().flat_map(|name| cgroups_called(name)).map(show("cgroup")));
        let mark = run_dir.join("instances").join(instance);
        found.extend(Some(mark).filter(|path| path.exists()).map(show("mark")));
    }
    found.extend(dockerd::leftovers(instances));
    found.extend(libvirtd::leftovers(instances));
    for claim in fs::read_dir(run_dir.join("uids")).into_iter().flatten().flatten() {
        let owner = fs::read_to_string(claim.path()).unwrap_or_default();
        if instances.contains(&owner) {
            found.push(format!("uid claim {}", claim.path().display()));
        }
    }
    for (pid, words) in processes() {
        let ours = instances.iter().any(|instance| in_cgroup_of(pid, instance))
            // Of a machine's own process, which libvirt has started and nobody has taken into a cgroup yet.
            || instances.iter().any(|instance| words.contains(&format!("mayfly-{instance}")))
            || (session(pid).is_some_and(|session| sessions.contains(&session)) && words.contains("mayfly"));
        if ours && !is_dead(pid) {
            found.push(format!("process {pid}: {words}"));
        }
    }
    found
}

fn show(what: &'static str) -> impl Fn(PathBuf) -> String {
    move |path| format!("{what} {}", path.display())
}

/// Lines of this process's mount table that name a path below one of these.
pub(crate) fn mounts_below(places: &[&Path]) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let names = places.iter().map(|place| place.to_string_lossy().into_owned()).collect::<Vec<_>>();
    table
        .lines()
        .filter(|line| names.iter().any(|name| line.contains(name.as_str())))
        .map(ToOwned::to_owned)
        .collect()
}

/// Every cgroup of this name: at the top of a tree or, where systemd is the first process, in a unit of it.
fn cgroups_called(name: &str) -> Vec<PathBuf> {
    let mut units = cgroup_mounts();
    let mut found = Vec::new();
    while let Some(unit) = units.pop() {
        found.extend(Some(unit.join(name)).filter(|path| path.exists()));
        // What is removed meanwhile has nothing in it.
        let below = fs::read_dir(&unit).into_iter().flatten().flatten().map(|entry| entry.path());
        units
            .extend(below.filter(|path| {
                path.extension().is_some_and(|kind| UNITS.iter().any(|known| kind == *known))
            }));
    }
    found
}

/// What the directory of a unit with cgroups ends with.
const UNITS: [&str; 3] = ["slice", "scope", "service"];

/// `cgroup` and `cgroup2` mounts, see proc(5).
fn cgroup_mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup = |line: &str| line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("cgroup"));
    table
        .lines()
        .filter(|line| cgroup(line))
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// The process of one of these sessions that clones sandboxes.
pub(crate) fn spawner(sessions: &[u32]) -> Option<u32> {
    let is_ours = |pid| session(pid).is_some_and(|session| sessions.contains(&session));
    let mut all = processes().into_iter();
    all.find(|(pid, words)| words.trim_end().ends_with(pool::SPAWNER_ARG) && is_ours(*pid))
        .map(|(pid, _)| pid)
}

/// Pid and command line, or name, of every process.
fn processes() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let words = fs::read_to_string(entry.path().join("cmdline")).ok()?.replace('\0', " ");
            Some((pid, words))
        })
        .collect()
}

fn in_cgroup_of(pid: u32, instance: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .is_ok_and(|text| text.contains(&format!("mayfly-{instance}")))
}

fn session(pid: u32) -> Option<u32> {
    stat(pid)?.get(3)?.parse().ok()
}

/// A zombie whose parent is about to look is as good as gone.
fn is_dead(pid: u32) -> bool {
    stat(pid).is_none_or(|fields| fields[0] == "Z")
}

/// The fields of /proc/PID/stat behind the name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(ToOwned::to_owned).collect())
}

//! Which cgroup hierarchy carries the limits here, and whether this process may make cgroups in it.
//!
//! Looks at the same places in which sandboxes get theirs: the top of each mounted hierarchy or, where systemd is the
//! first process, what it delegates.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::facts::Facts;
use super::{Finding, State};
use crate::cgroup::{BOOTED, Delegated, Form};

/// A sandbox without any one of these is not made.
const V2_CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Version 1 counts CPU time and guards devices by controllers of their own.
const V1_CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "devices"];

/// How cgroups are laid out on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupMode {
    /// One tree, with the controllers in it.
    V2,
    /// One tree for each controller.
    V1,
    /// Both are mounted, and the controllers that limit a sandbox are in version 1.
    Hybrid,
    /// No tree has the controllers.
    None,
}

/// What the layout is and what follows from it.
#[derive(Debug)]
pub(super) struct Cgroups {
    pub(super) mode: CgroupMode,
    pub(super) findings: Vec<Finding>,
}

pub(super) fn look(facts: &Facts) -> Cgroups {
    let table = facts.text("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<_> = table.lines().filter_map(mount).collect();
    let unified = mounts.iter().find(|mount| mount.version == 2);
    if let Some(tree) = unified
        && words(facts, &tree.point, "cgroup.controllers").contains_all(&V2_CONTROLLERS)
    {
        let limits = limits(State::Ok, "memory, pids and cpu, version 2".into());
        let writable = if has_systemd(facts) {
            delegated(&tree.point)
        } else {
            crowded(facts, &tree.point).unwrap_or_else(|| writable(facts, &[&tree.point]))
        };
        return Cgroups { mode: CgroupMode::V2, findings: vec![limits, writable] };
    }
    let tree_of = |name: &&str| mounts.iter().find(|mount| mount.version == 1 && mount.has(name));
    let lacking: Vec<_> = V1_CONTROLLERS.into_iter().filter(|name| tree_of(name).is_none()).collect();
    if !lacking.is_empty() {
        let limits = limits(State::Missing, format!("no hierarchy has {}", lacking.join(", "))).mended_by(
            "mount cgroup v2 with memory, pids and cpu (on some boards: boot with cgroup_enable=memory)",
        );
        return Cgroups { mode: CgroupMode::None, findings: vec![limits] };
    }
    let mut trees: Vec<_> =
        V1_CONTROLLERS.iter().filter_map(tree_of).map(|mount| mount.point.as_path()).collect();
    trees.dedup();
    let mode = if unified.is_some() { CgroupMode::Hybrid } else { CgroupMode::V1 };
    let limits = limits(State::Ok, "memory, pids and cpu, version 1".into());
    let mut writable = writable(facts, &trees);
    if writable.state == State::Ok && has_systemd(facts) {
        writable.state = State::Degraded;
        writable.detail.push_str(", beside systemd's own: version 1 knows no delegation");
        writable = writable.mended_by("boot with systemd.unified_cgroup_hierarchy=1");
    }
    Cgroups { mode, findings: vec![limits, writable] }
}

fn has_systemd(facts: &Facts) -> bool {
    facts.path(BOOTED).exists()
}

fn limits(state: State, detail: String) -> Finding {
    Finding::new("cgroup-controllers", "cgroup limits", state, detail)
}

fn making(state: State, detail: String) -> Finding {
    Finding::new("cgroup-writable", "making cgroups", state, detail)
}

/// Makes and removes an empty cgroup in each tree: permission bits do not tell of a read-only mount.
fn writable(facts: &Facts, trees: &[&Path]) -> Finding {
    for tree in trees {
        let probe = facts.path(tree.join(format!("mayfly-doctor-{}", std::process::id())));
        if let Err(error) = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
            return making(State::Missing, format!("{}: {error}", tree.display())).mended_by(
                "run as root where the cgroup tree is mounted read-write (systemd: Delegate=yes)",
            );
        }
    }
    let parent = trees.first().and_then(|tree| if trees.len() > 1 { tree.parent() } else { Some(*tree) });
    making(State::Ok, format!("works below {}", parent.unwrap_or(Path::new("/")).display()))
}

/// What systemd delegates to whoever asks as this process does, and whether a cgroup can be made there.
fn delegated(tree: &Path) -> Finding {
    let name = format!("mayfly-doctor-{}", std::process::id());
    let rehearse = |base: &Path| {
        let probe = tree.join(base).join(&name);
        fs::create_dir(&probe)
            .and_then(|()| fs::remove_dir(&probe))
            .map_err(|error| format!("{}: {error}", probe.display()))
    };
    let asked = Form::of_this_process(tree).map_err(|error| error.to_string());
    let seen = asked.and_then(|form| match form {
        Form::Top => Err("systemd went away".to_owned()),
        Form::Unit(base) => {
            rehearse(&base)?;
            Ok(format!("below this unit's own cgroup, {} (Delegate=yes)", base.display()))
        }
        Form::Scope => {
            let scope = Delegated::take(tree, &format!("{name}.scope")).map_err(|error| error.to_string())?;
            rehearse(scope.base())?;
            Ok("in a scope that systemd makes for each mayfly; below its own unit where that says Delegate=yes".to_owned())
        }
    });
    match seen {
        Ok(detail) => making(State::Ok, detail),
        Err(detail) => making(State::Missing, detail)
            .mended_by("run as root where systemd-run works, or in a unit with Delegate=yes"),
    }
}

/// A container's version 2 tree hands controllers down only while no process sits at its top.
fn crowded(facts: &Facts, tree: &Path) -> Option<Finding> {
    let handed_down = words(facts, tree, "cgroup.subtree_control").contains_all(&V2_CONTROLLERS);
    // Only the real root has no type, and there the rule does not hold: cgroups(7).
    let below_root = facts.path(tree.join("cgroup.type")).exists();
    if handed_down || !below_root || words(facts, tree, "cgroup.procs").0.is_empty() {
        return None;
    }
    let detail =
        format!("processes sit in {} itself, so it cannot hand down its controllers", tree.display());
    Some(making(State::Missing, detail).mended_by(format!(
        "mkdir {0}/init && xargs -n1 < {0}/cgroup.procs | while read p; do echo $p > {0}/init/cgroup.procs; done",
        tree.display()
    )))
}

/// The words of one file of a cgroup.
struct Words(Vec<String>);

impl Words {
    fn contains_all(&self, wanted: &[&str]) -> bool {
        wanted.iter().all(|word| self.0.iter().any(|known| known == word))
    }
}

fn words(facts: &Facts, tree: &Path, file: &str) -> Words {
    let text = fs::read_to_string(facts.path(tree.join(file))).unwrap_or_default();
    Words(text.split_whitespace().map(str::to_owned).collect())
}

/// One mounted hierarchy.
struct Mount<'a> {
    version: u8,
    point: PathBuf,
    options: &'a str,
}

impl Mount<'_> {
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|word| word == controller)
    }
}

/// One line of `/proc/self/mountinfo`, see proc(5).
fn mount(line: &str) -> Option<Mount<'_>> {
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    let version = match tail.next()? {
        "cgroup2" => 2,
        "cgroup" => 1,
        _ => return None,
    };
    Some(Mount { version, point: head.split(' ').nth(4)?.into(), options: tail.nth(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const CONTROLLERS: (&str, &str) = ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");

    fn planted(files: &[(&str, &str)]) -> Cgroups {
        let dir = tempfile::tempdir().unwrap();
        look(&Facts::planted(dir.path(), files))
    }

    fn v1(controllers: &[&str]) -> String {
        let line = |name| format!("31 23 0:27 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n");
        controllers.iter().map(line).collect()
    }

    #[test]
    fn a_unified_tree_with_its_controllers_is_version_2() {
        let seen = planted(&[("/proc/self/mountinfo", V2), CONTROLLERS]);
        assert_eq!(seen.mode, CgroupMode::V2);
        assert!(seen.findings.iter().all(|finding| finding.state == State::Ok), "{:?}", seen.findings);
    }

    #[test]
    fn a_unified_tree_without_controllers_beside_version_1_is_hybrid() {
        let mounts = v1(&V1_CONTROLLERS) + V2;
        let places = V1_CONTROLLERS.map(|name| format!("/sys/fs/cgroup/{name}/tasks"));
        let mut files: Vec<_> = places.iter().map(|place| (place.as_str(), "")).collect();
        files.push(("/proc/self/mountinfo", &mounts));
        files.push(("/sys/fs/cgroup/cgroup.controllers", "hugetlb\n"));
        let seen = planted(&files);
        assert_eq!(seen.mode, CgroupMode::Hybrid);
        assert_eq!(seen.findings[1].state, State::Ok, "{:?}", seen.findings);
    }

    #[test]
    fn a_controller_that_no_tree_has_is_named() {
        let seen = planted(&[("/proc/self/mountinfo", &v1(&["pids", "cpu", "cpuacct", "devices"]))]);
        assert_eq!(seen.mode, CgroupMode::None);
        assert_eq!(seen.findings[0].state, State::Missing);
        assert!(seen.findings[0].detail.ends_with("memory"), "{}", seen.findings[0].detail);
    }

    #[test]
    fn a_tree_in_which_no_cgroup_can_be_made_is_missing() {
        let seen = planted(&[("/proc/self/mountinfo", &v1(&V1_CONTROLLERS))]);
        assert_eq!(seen.mode, CgroupMode::V1);
        assert_eq!(seen.findings[1].state, State::Missing);
    }

    #[test]
    fn version_1_beside_systemd_is_weaker() {
        let mounts = v1(&V1_CONTROLLERS);
        let places = V1_CONTROLLERS.map(|name| format!("/sys/fs/cgroup/{name}/tasks"));
        let mut files: Vec<_> = places.iter().map(|place| (place.as_str(), "")).collect();
        files.extend([("/proc/self/mountinfo", mounts.as_str()), ("/run/systemd/system/unit", "")]);
        let seen = planted(&files);
        assert_eq!(seen.findings[1].state, State::Degraded, "{:?}", seen.findings);
        assert!(seen.findings[1].detail.contains("systemd"));
    }

    #[test]
    fn a_containers_tree_with_processes_at_its_top_cannot_hand_down_controllers() {
        let table = ("/proc/self/mountinfo", V2);
        let kind = ("/sys/fs/cgroup/cgroup.type", "domain\n");
        let procs = ("/sys/fs/cgroup/cgroup.procs", "1\n7\n");
        let seen = planted(&[table, CONTROLLERS, kind, procs]);
        assert_eq!(seen.findings[1].state, State::Missing);
        assert!(seen.findings[1].fix.as_deref().unwrap().contains("/sys/fs/cgroup/init"));
        let handed = ("/sys/fs/cgroup/cgroup.subtree_control", "cpu memory pids\n");
        assert_eq!(planted(&[table, CONTROLLERS, kind, procs, handed]).findings[1].state, State::Ok);
        assert_eq!(planted(&[table, CONTROLLERS, procs]).findings[1].state, State::Ok);
    }
}

//! Where cgroups are: the mount table, and a process's own record.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where a process is, if it is in the same place for each controller and that place is its own: see cgroups(7).
pub(super) fn place_of(table: &str, controllers: &[&str], unique: &str) -> Option<PathBuf> {
    let mut places = controllers.iter().map(|controller| place_by(table, controller));
    let first = places.next()??.trim_start_matches('/');
    let own = Path::new(first).file_name()?.to_str()?.contains(unique);
    let same = places.all(|place| place.is_some_and(|place| place.trim_start_matches('/') == first));
    (own && same).then(|| first.into())
}

fn place_by<'a>(table: &'a str, controller: &str) -> Option<&'a str> {
    table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|word| word == controller).then_some(path)
    })
}

/// Whether somebody has frozen a process with its cgroup, as `docker pause` does. None if there is no such process.
pub(crate) fn is_frozen(pid: &str) -> Option<bool> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let trees = fs::read_to_string("/proc/self/mountinfo").ok()?;
    Some(freezers(&table, &mounts(&trees)).iter().any(|(file, frozen)| {
        let state = fs::read_to_string(file).unwrap_or_default();
        state.lines().any(|line| frozen.contains(&line))
    }))
}

/// The files that say whether a process is frozen, and what they say then. At the top of a tree there is none.
fn freezers(table: &str, mounts: &[(&str, &str, &str)]) -> Vec<(PathBuf, &'static [&'static str])> {
    let of_tree = |(kind, point, options): &(&str, &str, &str)| {
        if *kind == "cgroup2" {
            return Some((
                Path::new(point).join(place_of_all(table)?).join("cgroup.events"),
                &["frozen 1"][..],
            ));
        }
        let place =
            options.split(',').any(|word| word == "freezer").then(|| place_by(table, "freezer"))??;
        let file = Path::new(point).join(place.trim_start_matches('/')).join("freezer.state");
        Some((file, &["FREEZING", "FROZEN"][..]))
    };
    mounts.iter().filter_map(of_tree).collect()
}

/// Where a process is in the tree of version 2.
pub(super) fn place_of_all(table: &str) -> Option<PathBuf> {
    let place = table.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // The cgroup was removed under its last, dead process.
    (!place.ends_with(" (deleted)")).then(|| place.into())
}

/// Every tree of cgroups on this host, whatever it counts. A container engine makes cgroups in all.
pub(crate) fn every_tree() -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts(&table).into_iter().map(|(_, point, _)| point.into()).collect())
}

/// `(type, mount point, super options)` of each cgroup mount in a mountinfo table, see proc(5).
pub(super) fn mounts(table: &str) -> Vec<(&str, &str, &str)> {
    table
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut after = after.split(' ');
            let kind = after.next().filter(|kind| kind.starts_with("cgroup"))?;
            Some((kind, before.split(' ').nth(4)?, after.nth(1)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_gives_type_place_and_options_of_cgroup_mounts_only() {
        let table = "\
            24 30 0:22 / /proc rw,relatime - proc proc rw\n\
            31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            mounts(table),
            [
                ("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct"),
                ("cgroup2", "/sys/fs/cgroup/unified", "rw,nsdelegate"),
            ]
        );
    }

    #[test]
    fn both_versions_say_whether_a_process_is_frozen_each_in_its_own_file() {
        let table = "3:freezer:/docker/c0ffee\n2:memory:/docker/c0ffee\n0::/a/b\n";
        let mounts = [
            ("cgroup", "/cg/memory", "rw,memory"),
            ("cgroup", "/cg/freezer", "rw,freezer"),
            ("cgroup2", "/cg/unified", "rw"),
        ];
        assert_eq!(
            freezers(table, &mounts),
            [
                ("/cg/freezer/docker/c0ffee/freezer.state".into(), &["FREEZING", "FROZEN"][..]),
                ("/cg/unified/a/b/cgroup.events".into(), &["frozen 1"][..]),
            ]
        );
        assert_eq!(is_frozen("self"), Some(false));
        assert_eq!(is_frozen("none"), None);
    }

    #[test]
    fn the_tree_of_version_2_has_a_line_without_a_controller() {
        let table = "1:name=systemd:/\n0::/system.slice/a.service\n";
        assert_eq!(place_of_all(table), Some("system.slice/a.service".into()));
        assert_eq!(place_of_all("0::/\n"), Some("".into()));
        assert_eq!(place_of_all("4:memory:/a\n"), None);
        assert_eq!(place_of_all("0::/a (deleted)\n"), None);
    }

    #[test]
    fn a_process_is_in_a_place_of_its_own_or_it_is_refused() {
        let two = ["memory", "cpu"];
        let table = "4:cpu,cpuacct:/mayfly/c0ffee\n2:memory:/mayfly/c0ffee\n1:name=systemd:/\n0::/\n";
        assert_eq!(place_of(table, &two, "c0ffee"), Some("mayfly/c0ffee".into()));
        assert_eq!(place_of(table, &two, "another"), None);
        assert_eq!(place_of(&table.replace("memory:/mayfly", "memory:/other"), &two, "c0ffee"), None);
        assert_eq!(place_of(table, &["memory", "pids"], "c0ffee"), None);
        let unified = "0::/system.slice/docker-c0ffee.scope\n";
        assert_eq!(place_of(unified, &[""], "c0ffee"), Some("system.slice/docker-c0ffee.scope".into()));
    }
}

//! Whether this host has what the nspawn tier needs beside what the chroot tier needs.

use super::{CgroupMode, Finding, State, facts::Facts};
use crate::nspawn::{Installed, NotInstalled, find};

pub(super) fn look(facts: &Facts, cgroup: CgroupMode) -> Finding {
    judge(find(), facts, cgroup)
}

fn judge(found: Result<Installed, NotInstalled>, facts: &Facts, cgroup: CgroupMode) -> Finding {
    let finding = |state, detail: String| Finding::new("systemd-nspawn", "systemd-nspawn", state, detail);
    match found {
        // Of v1 it knows its own tree only; it then refuses to start, and says nothing that helps.
        Ok(_) if cgroup != CgroupMode::V2 && !has_systemd_tree(facts) => {
            finding(State::Missing, "starts only where cgroup v1 has systemd's own tree".to_owned()).mended_by(
                "mkdir -p /sys/fs/cgroup/systemd && mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd",
            )
        }
        Ok(Installed { program, version }) => {
            finding(State::Ok, format!("version {version}, {}", program.display()))
        }
        // Jobs of the other tiers run without it.
        Err(error @ NotInstalled::Missing) => {
            finding(State::Missing, error.to_string()).mended_by("apt-get install systemd-container")
        }
        Err(error) => finding(State::Missing, error.to_string()).mended_by("install systemd 249 or later"),
    }
}

fn has_systemd_tree(facts: &Facts) -> bool {
    facts.text("/proc/self/cgroup").is_ok_and(|text| text.contains(":name=systemd:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed() -> Installed {
        Installed { program: "/usr/bin/systemd-nspawn".into(), version: 252 }
    }

    #[test]
    fn a_host_without_it_is_told_which_package_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Facts::planted(dir.path(), &[]);
        let seen = judge(Err(NotInstalled::Missing), &facts, CgroupMode::V2);
        assert_eq!(
            (seen.state, seen.fix.as_deref()),
            (State::Missing, Some("apt-get install systemd-container"))
        );
        let old = judge(Err(NotInstalled::Old { found: 241 }), &facts, CgroupMode::V2);
        assert!(old.state == State::Missing && old.detail.contains("241"), "{old:?}");
    }

    #[test]
    fn on_cgroup_v1_it_needs_a_tree_of_systemds_own() {
        let dir = tempfile::tempdir().unwrap();
        let bare = Facts::planted(dir.path(), &[("/proc/self/cgroup", "2:pids:/\n1:cpu:/\n")]);
        assert_eq!(judge(Ok(installed()), &bare, CgroupMode::V1).state, State::Missing);
        assert_eq!(judge(Ok(installed()), &bare, CgroupMode::V2).state, State::Ok);
        let with = Facts::planted(dir.path(), &[("/proc/self/cgroup", "2:pids:/\n1:name=systemd:/\n")]);
        assert_eq!(judge(Ok(installed()), &with, CgroupMode::Hybrid).state, State::Ok);
    }
}

//! What only the nspawn tier has: systemd-nspawn beside the sandbox, and all that it could leave or let through.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Mayfly, Place, Running, Sandbox, Tier, eventually, on, result_of};

/// A job in its middle, which ends when its stdin does.
fn in_mid_job(place: &Place) -> (Running, Sandbox) {
    place.start(place.shell("echo ready; read end").args(["--stdin"]))
}

/// One that does not end by itself.
fn in_long_job(place: &Place) -> (Running, Sandbox) {
    place.start(place.shell("echo ready; sleep 1000"))
}

fn kill(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} of {pid}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[test]
fn a_killed_systemd_nspawn_loses_the_sandbox_and_leaves_nothing() {
    on(Tier::Nspawn, |place| {
        for signal in [Signal::KILL, Signal::SEGV] {
            let (running, sandbox) = in_long_job(place);
            let supervisor = sandbox.supervisor();
            assert_eq!(supervisor.len(), 1);
            kill(&supervisor, signal);
            running.finish().code(125).says(&["the sandbox was lost", "not its failure"]);
            assert_eq!(place.node.leftovers(), [""; 0]);
        }
        // The pool makes others.
        place.run(["true"]).finish().code(0);
    });
}

#[test]
fn a_systemd_nspawn_that_is_asked_to_end_takes_the_job_with_it() {
    on(Tier::Nspawn, |place| {
        let (running, sandbox) = in_long_job(place);
        kill(&sandbox.supervisor(), Signal::TERM);
        running.finish().code(125).says(&["the sandbox was lost"]);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_stopped_systemd_nspawn_holds_up_neither_the_job_nor_its_end() {
    on(Tier::Nspawn, |place| {
        let (running, sandbox) = place.start(place.shell("echo ready; sleep 0.2; exit 3"));
        kill(&sandbox.supervisor(), Signal::STOP);
        running.finish().code(3);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn the_machine_bears_the_name_of_its_generation_and_no_process_of_it_is_the_hosts_root() {
    on(Tier::Nspawn, |place| {
        let (running, sandbox) = in_mid_job(place);
        let words = command_line(sandbox.supervisor()[0]);
        assert!(words.contains(&format!("--machine=mayfly-{}", sandbox.generation())), "{words:?}");
        assert!(words.contains(&"--private-users-ownership=map".to_owned()), "{words:?}");
        for pid in sandbox.agent().into_iter().chain(sandbox.job()) {
            for id in status(pid, "Uid").split(' ').chain(status(pid, "Gid").split(' ')) {
                assert!(id.parse::<u32>().unwrap() >= 0x7000_0000, "process {pid} is {id} on the host");
            }
        }
        running.finish().code(1);
    });
}

#[test]
fn agent_and_job_are_in_none_of_the_hosts_namespaces() {
    on(Tier::Nspawn, |place| {
        let (running, sandbox) = in_mid_job(place);
        for pid in sandbox.agent().into_iter().chain(sandbox.job()) {
            for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"] {
                let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
                assert_ne!(link(&pid.to_string()), link("self"), "{name} of {pid}");
            }
        }
        running.finish().code(1);
    });
}

/// Five while it arms the job (`CAP_CHOWN` and `CAP_SETPCAP` besides), then three, and none that it could get.
#[test]
fn the_agent_keeps_only_what_it_needs_to_speak_for_the_job() {
    const KILL_SETGID_SETUID: &str = "00000000000000e0";
    const NONE: &str = "0000000000000000";
    on(Tier::Nspawn, |place| {
        let (running, sandbox) = in_mid_job(place);
        let [agent] = sandbox.agent()[..] else { panic!("one agent") };
        for (set, expected) in [
            ("CapEff", KILL_SETGID_SETUID),
            ("CapPrm", KILL_SETGID_SETUID),
            ("CapInh", NONE),
            ("CapBnd", NONE),
            ("CapAmb", NONE),
            ("NoNewPrivs", "1"),
            // By systemd-nspawn's filter.
            ("Seccomp", "2"),
        ] {
            assert_eq!(status(agent, set), expected, "{set}");
        }
        let [job] = sandbox.job()[..] else { panic!("one process of the job") };
        assert_ne!(status(agent, "Uid"), status(job, "Uid"));
        running.finish().code(1);
    });
}

/// Mounts, machine directories, locks, and cgroups that systemd-nspawn makes wherever it is started.
#[test]
fn nothing_of_systemd_nspawn_is_seen_on_the_host() {
    on(Tier::Nspawn, |place| {
        let before = places();
        let (running, _) = in_mid_job(place);
        assert_eq!(places(), before, "while a job runs");
        running.signal(Signal::KILL);
        running.finish();
        place.run(["true"]).finish().code(0);
        assert_eq!(places(), before, "after a mayfly was killed");
    });
}

fn places() -> BTreeSet<PathBuf> {
    let directories = ["/run/systemd/nspawn", "/run/systemd", "/run/systemd/machines", "/var/lib/machines"];
    let trees = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/machine.slice"];
    let entries = directories.into_iter().chain(trees).filter_map(|place| fs::read_dir(place).ok()).flatten();
    let mut found: BTreeSet<_> = entries.flatten().map(|entry| entry.path()).collect();
    let temporary = fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path());
    found.extend(temporary.filter(|path| is_of_systemd(path)));
    found
}

fn is_of_systemd(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.starts_with("nspawn-") || name.starts_with("unified")
}

#[test]
fn a_killed_mayfly_takes_systemd_nspawn_with_it() {
    on(Tier::Nspawn, |place| {
        let (running, sandbox) = in_mid_job(place);
        running.signal(Signal::KILL);
        running.finish();
        eventually("systemd-nspawn and its container are gone", || {
            (sandbox.supervisor().is_empty() && sandbox.agent().is_empty() && sandbox.job().is_empty())
                .then_some(())
        });
        place.run(["true"]).finish().code(0);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn landlock_is_behind_the_filter_of_systemd_nspawn_too() {
    on(Tier::Nspawn, |place| {
        // landlock_create_ruleset asked for its version only: what the agent asked when it confined the job.
        let program = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n\
                       got = libc.syscall(444, None, 0, 1); print(got, ctypes.get_errno())";
        let inside = place.python(program).finish().code(0);
        let doctor = place.node.mayfly(["doctor", "--json"]).finish().json();
        let findings = doctor["findings"].as_array().unwrap();
        let landlock = findings.iter().find(|finding| finding["id"] == "landlock").unwrap();
        if let Some(abi) = landlock["detail"].as_str().unwrap().strip_prefix("ABI ") {
            assert_eq!(inside.text(), format!("{abi} 0"));
        }
    });
}

#[test]
fn a_result_names_the_tier_and_what_it_cost() {
    on(Tier::Nspawn, |place| {
        let result = result_of(place.run(["true"]), 0);
        assert_eq!(
            (result["tier"].as_str(), result["outcome"].as_str()),
            (Some("nspawn"), Some("succeeded"))
        );
    });
}

/// Covered in a mount namespace of the test's own.
#[test]
fn a_host_whose_systemd_nspawn_cannot_be_used_says_what_to_do() {
    on(Tier::Nspawn, |place| {
        for (cover, words) in [
            ("/dev/null", ["systemd-nspawn is not installed", "apt-get install systemd-container"]),
            ("/bin/echo", ["when asked for its version", "mayfly doctor"]),
        ] {
            let script = format!("mount --bind {cover} /usr/bin/systemd-nspawn && exec \"$@\"");
            let within = |words: &[&str]| {
                let own = ["--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_mayfly")];
                place.node.place(Mayfly::program("unshare")).args([&own[..], words].concat())
            };
            within(&["run", "--tier", "nspawn", "--image", "minimal", "--", "true"])
                .finish()
                .code(125)
                .says(&words);
            within(&["run", "--tier", "chroot", "--image", "minimal", "--", "true"]).finish().code(0);
            let doctor = within(&["doctor", "--json"]).finish().code(0).json();
            let tiers = doctor["tiers"].as_array().unwrap();
            let ready = |name| tiers.iter().find(|tier| tier["tier"] == name).unwrap()["ready"].as_bool();
            assert_eq!((ready("chroot"), ready("nspawn")), (Some(true), Some(false)), "{cover}");
        }
    });
}

//! What only the libvirt engine of the vm tier has: machines that live again and again, and a daemon between mayfly and them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use servers::Libvirtd;

use crate::harness::{Node, Place, Running, Tier, eventually, on_libvirt, result_of, use_libvirtd};

/// Looks at something that a daemon shared with other tests must not suffer.
fn with_own_daemon(look: fn(&Place, &mut Libvirtd)) {
    // Whether it can be is the same for all.
    fn nothing(_: &Place) {}
    on_libvirt(nothing);
    if Libvirtd::is_installed() {
        let mut daemon = Libvirtd::start().unwrap();
        let node = use_libvirtd(Node::new(), &daemon);
        look(&Place { tier: Tier::Vm, node }, &mut daemon);
    }
}

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }
}

/// The one machine that the daemon has, by its name.
fn machine(daemon: &Libvirtd) -> String {
    let names = daemon.virsh(&["list", "--all", "--name"]).unwrap();
    let [name] = names.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{names}") };
    name.to_owned()
}

/// Where the files of a node's machines are.
fn folders(place: &Place) -> Vec<PathBuf> {
    let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    below(place.node.data_dir().join("machines")).flat_map(below).collect()
}

/// Jobs of one process, one after the other: where their results will be.
fn batch(place: &Place, scripts: &[&str]) -> (Running, PathBuf) {
    let job = |(number, script): (usize, &&str)| {
        let command = ["sh", "-c", script];
        json!({ "schema_version": 1, "id": format!("job-{number}"), "image": "minimal", "tier": "vm", "command": command })
            .to_string()
    };
    let lines: Vec<String> = scripts.iter().enumerate().map(job).collect();
    let jobs = place.node.write("jobs", lines.join("\n"));
    let results = place.node.file("results");
    let words = ["batch", &jobs, "--jobs", "1", "-o", results.to_str().unwrap()];
    (place.node.mayfly(words).env("MAYFLY_LOG", "error").start(), results)
}

fn results(path: &PathBuf) -> Vec<Value> {
    let mut results: Vec<Value> = fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    results.sort_by_key(|result| result["id"].as_str().unwrap().to_owned());
    results
}

/// Waits until a job of a batch runs.
fn await_job(place: &Place) -> Vec<u32> {
    eventually("a job runs", || {
        let job = place.node.sandboxes().first()?.job();
        (!job.is_empty()).then_some(job)
    })
}

#[test]
fn one_machine_lives_again_and_again_and_each_life_is_a_new_one() {
    with_own_daemon(|place, daemon| {
        let script = "head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
            cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; ls /tmp; echo left > /tmp/left";
        let (running, path) = batch(place, &[script; 8]);
        running.finish().code(0);
        let results = results(&path);
        let lives: Vec<Vec<&str>> = results
            .iter()
            .map(|result| result["stdout"]["text"].as_str().unwrap().lines().collect())
            .collect();
        assert!(
            lives.len() == 8 && lives.iter().all(|life| life.len() == 4 && life[0].len() == 128),
            "{lives:?}"
        );
        for line in 0..4 {
            let values: BTreeSet<_> = lives.iter().map(|life| life[line]).collect();
            assert_eq!(values.len(), lives.len(), "{values:?}");
        }
        // The daemon's record of all starts of one name is one file.
        let machines = fs::read_dir(daemon.folder().join("var/log/libvirt/qemu")).unwrap().count();
        assert!(machines < 8, "{machines} for 8 lives");
        let ends = |how: &str| place.node.ledger().iter().filter(|record| record["how"] == how).count();
        assert!(ends("reverted") >= 8 && ends("quarantined") == 0);
        place.node.mayfly(["audit", "verify"]).finish().code(0);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_machine_is_nobody_and_has_nothing_that_leads_out() {
    with_own_daemon(|place, daemon| {
        let (running, sandbox) = place.start(place.shell("echo ready; read end").args(["--stdin"]));
        let job = sandbox.job();
        let [qemu] = job[..] else { panic!("{job:?}") };
        let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert!(field("Uid").split(' ').all(|uid| uid.parse::<u32>().unwrap() >= 0x7000_0000));
        for (name, expected) in [("CapPrm", "0000000000000000"), ("NoNewPrivs", "1"), ("Seccomp", "2")] {
            assert_eq!(field(name), expected, "{name}");
        }
        let xml = daemon.virsh(&["dumpxml", &machine(daemon)]).unwrap();
        for device in [
            "<interface",
            "<graphics",
            "<video",
            "<filesystem",
            "<hostdev",
            "<serial",
            "<console",
            "<redirdev",
        ] {
            assert!(!xml.contains(device), "{device} in {xml}");
        }
        assert!(xml.contains("type='usb' index='0' model='none'") && xml.contains("<genid>"), "{xml}");
        // Whoever meets it at libvirt can find its life in the ledger.
        let node = place.node.data_dir();
        for (name, value) in [("generation", sandbox.generation()), ("node", node.to_str().unwrap())] {
            assert!(xml.contains(&format!("{name}=\"{value}\"")), "{name} in {xml}");
        }
        running.finish().code(1);
    });
}

#[test]
fn what_lives_begin_from_is_out_of_reach_of_every_machines_process() {
    with_own_daemon(|place, _| {
        let (running, sandbox) = place.start(place.shell("echo ready; read end").args(["--stdin"]));
        let [folder] = folders(place).try_into().unwrap();
        let clean = fs::metadata(folder.join("clean.qcow2")).unwrap();
        assert_eq!((clean.uid(), clean.permissions().mode() & 0o777), (0, 0o400));
        // What it has is a copy that has no name any more.
        assert!(!folder.join("state.qcow2").exists());
        let qemu = sandbox.job()[0];
        let fds = fs::read_dir(format!("/proc/{qemu}/fd")).unwrap().flatten();
        let open: Vec<(u64, String)> = fds
            .filter_map(|fd| {
                let to = fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned();
                Some((fs::metadata(fd.path()).ok()?.ino(), to))
            })
            .collect();
        assert!(open.iter().any(|(_, to)| to.contains("state.qcow2 (deleted)")), "{open:?}");
        assert!(open.iter().all(|(inode, _)| *inode != clean.ino()), "{open:?}");
        running.finish().code(1);
    });
}

#[test]
fn a_revert_that_fails_costs_its_machine_and_no_job() {
    with_own_daemon(|place, daemon| {
        let (running, path) = batch(place, &["sleep 3"; 8]);
        await_job(place);
        // Every machine that there is by now forgets where it was kept, but for those that are being booted.
        let names = daemon.virsh(&["list", "--all", "--name"]).unwrap();
        let forget = |name: &&str| daemon.virsh(&["snapshot-delete", "--metadata", name, "clean"]).is_ok();
        assert!(names.split_whitespace().filter(forget).count() > 0, "{names}");
        running.finish().code(0).says(&["a machine cannot be reverted: another one is booted"]);
        let results = results(&path);
        assert_eq!(results.len(), 8);
        for result in &results {
            assert_eq!(result["outcome"], "succeeded", "{result}");
        }
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_daemon_that_is_killed_and_comes_back_costs_no_job_that_runs() {
    with_own_daemon(|place, daemon| {
        let (mut running, _) = place.start(place.shell("echo ready; read end; echo over").args(["--stdin"]));
        daemon.kill().unwrap();
        let refused = place.run(["true"]).finish().code(125);
        refused.says(&["libvirt cannot reach libvirt", "libvirtd"]);
        daemon.start_again().unwrap();
        running.say("end\n");
        running.finish().code(0).prints(&["over"]);
        place.run(["true"]).finish().code(0);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_daemon_that_is_restarted_or_killed_between_the_jobs_of_a_process_costs_none_of_them() {
    with_own_daemon(|place, daemon| {
        let (running, path) = batch(place, &["sleep 2"; 6]);
        await_job(place);
        daemon.stop().unwrap();
        daemon.start_again().unwrap();
        eventually("the next job's machine has begun", || (results(&path).len() >= 2).then_some(()));
        daemon.kill().unwrap();
        daemon.start_again().unwrap();
        running.finish().code(0);
        let results = results(&path);
        assert_eq!(results.len(), 6);
        for result in &results {
            assert_eq!(result["outcome"], "succeeded", "{result}");
        }
        assert_eq!(daemon.virsh(&["list", "--all", "--name"]).unwrap().trim(), "");
        assert_eq!(place.node.leftovers(), [""; 0]);
        place.node.mayfly(["audit", "verify"]).finish().code(0);
    });
}

/// A disk of its own for the machines of a node, which can be full and have room again. Gone with this.
struct Disk(PathBuf);

impl Disk {
    fn mounted_on(folder: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let disk = Self(folder);
        disk.mount(options);
        disk
    }

    fn mount(&self, options: &str) {
        let mut command = Command::new("mount");
        let status = command.args(["-t", "tmpfs", "-o", options, "none"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()));
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk_fails_who_wants_a_machine_and_is_forgotten_once_there_is_room() {
    fn nothing(_: &Place) {}
    on_libvirt(nothing);
    if !Libvirtd::is_installed() {
        return;
    }
    let node = Node::new();
    // Before the daemon, which sees the mounts that are there when it starts. A machine boots from it and cannot be kept.
    let disk = Disk::mounted_on(node.data_dir().join("machines"), "size=40M,mode=0711");
    let daemon = Libvirtd::start().unwrap();
    let place = Place { tier: Tier::Vm, node: use_libvirtd(node, &daemon) };
    place.run(["true"]).finish().code(125).says(&["libvirt", "mayfly"]);
    assert_eq!(daemon.virsh(&["list", "--all", "--name"]).unwrap().trim(), "");
    assert_eq!(folders(&place), [""; 0].map(PathBuf::from));
    disk.mount("remount,size=1G");
    place.run(["true"]).finish().code(0);
    assert_eq!(folders(&place), [""; 0].map(PathBuf::from));
    drop(disk);
    assert_eq!(place.node.leftovers(), [""; 0]);
}

#[test]
fn a_daemon_that_hangs_fails_who_wants_a_machine_and_then_nobody() {
    with_own_daemon(|place, daemon| {
        daemon.freeze().unwrap();
        place.run(["true"]).finish().code(125).says(&["libvirt did not answer within"]);
        daemon.thaw().unwrap();
        place.run(["true"]).finish().code(0);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_machine_that_is_killed_or_frozen_ends_as_it_must_and_the_next_life_is_well() {
    on_libvirt(|place| {
        let (running, sandbox) = place.start(place.shell("echo ready; sleep 1000"));
        signal(&sandbox.job(), Signal::KILL);
        running.finish().code(125).says(&["the sandbox was lost"]);
        let (running, sandbox) =
            place.start(place.shell("echo ready; sleep 1000").args(["--timeout", "20s"]));
        signal(&sandbox.job(), Signal::STOP);
        running.finish().code(125).says(&["the sandbox was lost", "stopped or froze the sandbox's process"]);
        assert_eq!(result_of(place.run(["true"]), 0)["accel"], "tcg");
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn what_a_killed_mayfly_left_is_ended_by_reap_and_never_forgotten_while_libvirt_is_away() {
    with_own_daemon(|place, daemon| {
        let (running, sandbox) = place.start(place.shell("echo ready; sleep 1000"));
        let qemu = sandbox.job();
        running.signal(Signal::KILL);
        running.finish();
        daemon.kill().unwrap();
        // The process ends without libvirt; what libvirt knows of it stays, and so does the mark by which it is found.
        let reap = || place.node.mayfly(["reap"]).env("MAYFLY_LOG", "warn").finish().code(0);
        reap().says(&["cannot end all that a dead mayfly left", "reach libvirt"]);
        eventually("its process is gone", || {
            qemu.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}/exe")).exists()).then_some(())
        });
        assert!(place.node.leftovers().join("\n").contains("mark"));
        assert_eq!(folders(place).len(), 1);

        daemon.start_again().unwrap();
        machine(daemon);
        reap().prints(&["1 machines"]);
        assert_eq!(daemon.virsh(&["list", "--all", "--name"]).unwrap().trim(), "");
        assert_eq!(place.node.leftovers(), [""; 0]);
        place.node.mayfly(["audit", "verify"]).finish().code(0);
    });
}

#[test]
fn a_libvirt_of_another_host_is_refused_with_the_reason() {
    on_libvirt(|place| {
        let config = "[vm]\nengine = \"libvirt\"\nlibvirt_uri = \"qemu+ssh://192.0.2.1/system\"";
        let config = place.node.write("remote.toml", config);
        let refused = place.run(["true"]).env("MAYFLY_CONFIG", &config).finish().code(125);
        refused.says(&["vm.libvirt_uri", "qemu+ssh://192.0.2.1/system", "this host's libvirt"]);
    });
}

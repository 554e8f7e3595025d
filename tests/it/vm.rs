//! What only the vm tier has: machines that begin in one memory and must not be one another, and QEMU around them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{EMULATION, Mayfly, Node, Place, Sandbox, Tier, eventually, on, result_of};

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} of {pid}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }
}

#[test]
fn a_job_has_the_guests_kernel_and_the_result_says_what_ran_it() {
    on(Tier::Vm, |place| {
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let result = result_of(place.run(["uname", "-r"]), 0);
        let guest = result["stdout"]["text"].as_str().unwrap();
        assert!(!guest.trim().is_empty() && guest.trim() != host.trim(), "{guest} on {host}");
        assert_eq!((result["tier"].as_str(), result["accel"].as_str()), (Some("vm"), Some("tcg")));
    });
}

#[test]
fn lives_that_begin_in_one_memory_share_no_random_number_and_no_name() {
    on(Tier::Vm, |place| {
        let script = "head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
            cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname";
        let lives: Vec<Vec<String>> = (0..6)
            .map(|_| {
                let finished = place.shell(script).finish().code(0);
                finished.text().lines().map(ToOwned::to_owned).collect()
            })
            .collect();
        for line in 0..4 {
            let values: BTreeSet<_> = lives.iter().map(|life| &life[line]).collect();
            assert!(values.len() == lives.len() && values.iter().all(|it| it.len() >= 32), "{values:?}");
        }
        assert!(lives.iter().all(|life| life.len() == 4 && life[0].len() == 128), "{lives:?}");
    });
}

#[test]
fn a_machines_clock_is_the_hosts() {
    on(Tier::Vm, |place| {
        let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let before = now();
        let inside: u64 = place.run(["date", "+%s"]).finish().code(0).text().trim().parse().unwrap();
        assert!((before..=now()).contains(&inside), "{inside} is not between {before} and {}", now());
    });
}

#[test]
fn qemu_is_nobody_on_the_host_and_sees_nothing_of_it() {
    on(Tier::Vm, |place| {
        let (running, sandbox) = place.start(place.shell("echo ready; read end").args(["--stdin"]));
        let job = sandbox.job();
        let [qemu] = job[..] else { panic!("{job:?}") };
        assert!(fs::read_link(format!("/proc/{qemu}/exe")).unwrap().to_str().unwrap().contains("qemu"));
        assert!(status(qemu, "Uid").split(' ').all(|uid| uid.parse::<u32>().unwrap() >= 0x7000_0000));
        for (field, expected) in [
            ("CapPrm", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
            ("Groups", ""),
            ("NoNewPrivs", "1"),
            // QEMU's own filter.
            ("Seccomp", "2"),
        ] {
            assert_eq!(status(qemu, field), expected, "{field}");
        }
        for kind in ["ipc", "mnt", "net", "pid", "uts"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            assert_ne!(of(&qemu.to_string()), of("self"), "{kind}");
        }
        let root: BTreeSet<_> = fs::read_dir(format!("/proc/{qemu}/root"))
            .unwrap()
            .flatten()
            .collect::<Vec<_>>()
            .iter()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        for name in &root {
            assert!(
                ["bin", "dev", "lib", "lib32", "lib64", "proc", "usr"].contains(&name.as_str()),
                "{root:?}"
            );
        }
        running.finish().code(1);
    });
}

#[test]
fn the_memory_that_clones_share_cannot_be_written_through_any_of_them() {
    on(Tier::Vm, |place| {
        let (running, sandbox) = place.start(place.shell("echo ready; read end").args(["--stdin"]));
        let job = sandbox.job();
        let fds = fs::read_dir(format!("/proc/{}/fd", job[0])).unwrap().flatten().map(|entry| entry.path());
        let memory: Vec<PathBuf> = fds
            .filter(|fd| fs::read_link(fd).is_ok_and(|to| to.to_str().unwrap().contains("mayfly-memory")))
            .collect();
        assert!(!memory.is_empty(), "a machine has its memory by a descriptor");
        for fd in memory {
            // As the host's root, with more rights than any QEMU.
            let file = fs::File::options().read(true).write(true).open(&fd).unwrap();
            let refused = file.write_all_at(b"poison", 1 << 20).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(1), "{}", fd.display());
            assert!(file.set_len(0).is_err());
        }
        running.finish().code(1);
    });
}

#[test]
fn a_machine_that_somebody_freezes_is_lost_at_its_jobs_timeout_and_the_job_is_not_blamed() {
    on(Tier::Vm, |place| {
        let job = place.shell("echo ready; sleep 1000").args(["--timeout", "6s"]);
        let (running, sandbox) = place.start(job);
        signal(&sandbox.job(), Signal::STOP);
        running.finish().code(125).says(&["the sandbox was lost", "stopped or froze the sandbox's process"]);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_template_with_a_flipped_byte_is_made_anew_and_never_used() {
    on(Tier::Vm, |place| {
        // A size that no other test has: templates are of the image, and images are shared.
        let job = || place.run(["echo", "alive"]).args(["--memory", "200MiB"]);
        job().finish().code(0);
        let template = template_of(place, "tcg-1cpu-384mib");
        let memory = template.join("memory");
        let made = || fs::metadata(template.join("template.json")).unwrap().modified().unwrap();
        let before = made();
        job().finish().code(0);
        assert_eq!(made(), before, "a good one is used again");

        let file = fs::File::options().read(true).write(true).open(&memory).unwrap();
        let at = 16 << 20;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        job().finish().code(0).prints(&["alive"]);
        assert_ne!(made(), before, "the damaged one was used");
    });
}

/// The directory of the one template of a size.
fn template_of(place: &Place, size: &str) -> PathBuf {
    let images = fs::canonicalize(place.node.data_dir().join("images/sha256")).unwrap();
    let below = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = below(&images)
        .flat_map(|image| below(&image.join("forms")).collect::<Vec<_>>())
        .flat_map(|form| below(&form.join("templates")).collect::<Vec<_>>())
        .filter(|path| path.is_dir() && path.ends_with(size))
        .collect::<Vec<_>>();
    found.sort_by_key(|path| fs::metadata(path.join("template.json")).and_then(|it| it.modified()).ok());
    found.pop().expect("a template of that size")
}

#[test]
fn an_image_can_be_built_with_the_form_that_a_machine_takes() {
    on(Tier::Vm, |place| {
        let build = |words: &[&str]| {
            let finished =
                place.node.mayfly(["image", "build", "minimal"]).args(words.iter().copied()).finish().code(0);
            serde_json::from_str::<Value>(finished.text()).unwrap()
        };
        assert_eq!(build(&["--json"])["machine"], Value::Null, "it was not asked for");
        let built = build(&["--json", "--machine"]);
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let hex = |digest: &Value| word(digest).replace("sha256:", "");
        let image = place.node.data_dir().join("images/sha256").join(hex(&built["digest"]));
        let form = image.join("forms").join(hex(&built["machine"]["digest"]));
        assert!(form.join("disk.erofs").exists() && form.join("initramfs").exists(), "{}", form.display());
        // What a machine takes is that very form, with that kernel.
        place.run(["uname", "-r"]).finish().code(0).prints(&[&word(&built["machine"]["kernel"])]);
        let templates = fs::read_dir(form.join("templates")).unwrap();
        assert!(templates.count() > 0, "a machine was made of another form");
        assert_eq!(build(&["--json", "--machine"]), built);
    });
}

#[test]
fn without_leave_nothing_is_emulated() {
    on(Tier::Vm, |_| {
        let node = Node::new().configured("\n[vm]\naccel = \"tcg\"\n");
        let refused = node.mayfly(["run", "--tier", "vm", "--image", "minimal"]).job(["true"]).finish();
        refused.code(125).says(&["vm.accel", "allow_emulation = true"]);
    });
}

#[test]
fn a_machine_that_is_killed_is_lost_and_the_next_life_is_well() {
    on(Tier::Vm, |place| {
        let (running, sandbox) = place.start(place.shell("echo ready; sleep 1000"));
        signal(&sandbox.job(), Signal::KILL);
        running.finish().code(125).says(&["the sandbox was lost"]);
        eventually("nothing is left", || place.node.leftovers().is_empty().then_some(()));
        place.run(["true"]).finish().code(0);
    });
}

#[test]
fn a_process_that_waits_for_a_life_serves_it_and_its_end_costs_no_job() {
    on(Tier::Vm, |place| {
        let node = &place.node;
        let job = |number: usize| {
            let command = ["sleep", "3"];
            json!({ "schema_version": 1, "id": format!("job-{number}"), "image": "minimal", "tier": "vm", "command": command })
                .to_string()
        };
        let lines: Vec<String> = (0..8).map(job).collect();
        let (jobs, results) = (node.write("jobs", lines.join("\n")), node.file("results"));
        let words = ["batch", &jobs, "--jobs", "1", "-o", results.to_str().unwrap()];
        let batch = node.mayfly(words).env("MAYFLY_LOG", "warn").start();
        // One whose process lives and of which the ledger knows nothing, for longer than it takes to be made clean.
        let await_spare = || {
            let mut candidate = (String::new(), Instant::now());
            eventually("a process waits for a life", || {
                let (all, ledger) = (node.instances(), node.ledger());
                let known =
                    |of: &Sandbox| ledger.iter().any(|record| record["generation"] == of.generation());
                let mut spares = all.iter().flat_map(|instance| Sandbox::all_of(instance));
                let spare = spares.find(|sandbox| !known(sandbox) && sandbox.job().len() == 1)?;
                if candidate.0 != spare.generation() {
                    candidate = (spare.generation().to_owned(), Instant::now());
                }
                (candidate.1.elapsed() > Duration::from_millis(1500))
                    .then(|| (candidate.0.clone(), spare.job()))
            })
        };
        let served = |generation: &str| {
            let of_it = |event: &str| {
                node.ledger()
                    .iter()
                    .any(|record| record["generation"] == generation && record["event"] == event)
            };
            of_it("consumed").then_some(())
        };
        let (first, _) = await_spare();
        eventually("it serves a job", || served(&first));
        let (second, processes) = await_spare();
        signal(&processes, Signal::KILL);
        let finished = batch.finish().code(0);
        assert_eq!(served(&second), None, "a job was given what had ended");
        assert!(!finished.stderr().contains("WARN"), "{}", finished.stderr());
        let ended = fs::read_to_string(results).unwrap();
        assert_eq!(
            ended.lines().filter(|line| line.contains("\"outcome\":\"succeeded\"")).count(),
            8,
            "{ended}"
        );
        assert_eq!(node.leftovers(), [""; 0]);
    });
}

/// The disk is full for what a template is kept in and for nothing else, in a mount namespace of the test's own.
#[test]
fn a_template_for_which_the_disk_has_no_room_serves_its_process_and_leaves_nothing_there() {
    on(Tier::Vm, |place| {
        // A size that no other test has.
        let memory = ["--memory", "250MiB"];
        place.run(["true"]).args(memory).finish().code(0);
        let template = template_of(place, "tcg-1cpu-384mib");
        let templates = template.parent().unwrap().display();
        let script = format!(
            "mount -t tmpfs -o size=1M none {templates} && \"$@\"; code=$?; find {templates} -type f ! -name '*.lock' >&2; exit $code"
        );
        let own = ["--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_mayfly")];
        let words = ["run", "--tier", "vm", "--image", "minimal"];
        let mayfly = place.node.place(Mayfly::program("unshare")).args([&own[..], &words].concat());
        let finished = mayfly.args(memory).env("MAYFLY_LOG", "warn").job(["echo", "alive"]).finish();
        let finished = finished.code(0).prints(&["alive"]);
        assert!(!finished.stderr.contains(&format!("{templates}/")), "{}", finished.stderr);
        finished.says(&["only this process has this template", "No space left on device"]);
        assert_eq!(place.node.leftovers(), [""; 0]);
    });
}

#[test]
fn whether_kvm_runs_guests_is_found_out_by_booting_one_and_remembered() {
    on(Tier::Vm, |_| {
        let node = Node::new().configured("\n[vm]\nallow_emulation = true\n");
        let verdict = Node::run_dir().join("accelerator.json");
        let run = || result_of(node.mayfly(["run", "--tier", "vm", "--image", "minimal"]).job(["true"]), 0);
        let read = || serde_json::from_slice::<Value>(&fs::read(&verdict).unwrap()).unwrap();
        let written = || fs::metadata(&verdict).unwrap().modified().unwrap();
        // As on the first day of this boot.
        let _ = fs::remove_file(&verdict);
        let first = run();
        let (kept, at) = (read(), written());
        let works = kept["why_not"].is_null();
        assert_eq!(first["accel"], if works { "kvm" } else { "tcg" }, "{kept}");
        assert_eq!((&run()["accel"], written()), (&first["accel"], at), "it was tried again");
        // Of another boot, or with another QEMU.
        let mut other = kept.clone();
        other["host"] = "another".into();
        fs::write(&verdict, other.to_string()).unwrap();
        assert_eq!((&run()["accel"], &read()["host"]), (&first["accel"], &kept["host"]));
        // Whoever insists on KVM is told why there is none.
        if !works {
            let insisting = Node::new().configured("\n[vm]\naccel = \"kvm\"\nallow_emulation = true\n");
            let refused =
                insisting.mayfly(["run", "--tier", "vm", "--image", "minimal"]).job(["true"]).finish();
            refused.code(125).says(&["no guest boots under KVM on this host"]);
        }
    });
}

#[test]
fn clones_share_a_templates_memory_unless_each_tenant_is_to_have_its_own() {
    on(Tier::Vm, |_| {
        for (sharing, memories) in [("image", 1), ("tenant", 2)] {
            let node = Node::new().configured(format!("{EMULATION}sharing = \"{sharing}\"\n"));
            let job = |(number, tenant): (usize, &str)| {
                let command = ["sleep", "1000"];
                json!({ "schema_version": 1, "id": format!("job-{number}"), "tenant": tenant, "image": "minimal", "tier": "vm", "command": command })
                    .to_string()
            };
            let lines: Vec<String> = ["one", "other", "one"].into_iter().enumerate().map(job).collect();
            let (jobs, results) = (node.write("jobs", lines.join("\n")), node.file("results"));
            let batch = node.mayfly(["batch", &jobs, "--jobs", "3", "-o", results.to_str().unwrap()]).start();
            let machines = eventually("three machines run", || {
                let all: Vec<u32> = node.sandboxes().iter().flat_map(Sandbox::job).collect();
                (all.len() == 3).then_some(all)
            });
            // Each has its memory by a descriptor of the same file, or of another's.
            let memory = |pid: &u32| {
                let fds =
                    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|entry| entry.path());
                let mut found = fds.filter(|fd| {
                    fs::read_link(fd).is_ok_and(|to| to.to_str().unwrap().contains("mayfly-memory"))
                });
                fs::metadata(found.next().unwrap()).unwrap().ino()
            };
            let shared: BTreeSet<u64> = machines.iter().map(memory).collect();
            assert_eq!(shared.len(), memories, "{sharing}");
            batch.signal(Signal::KILL);
            batch.finish();
            node.mayfly(["reap"]).finish().code(0);
            eventually("nothing is left", || node.leftovers().is_empty().then_some(()));
        }
    });
}

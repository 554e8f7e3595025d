//! What a job may use, and what happens to one that wants more.

use crate::harness::{Place, Tier, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    a_memory_bomb_ends_as_out_of_memory
    a_child_that_was_killed_for_memory_does_not_fail_a_job_that_copes
    a_fork_bomb_stops_at_its_limit_and_ends_at_its_timeout
    a_full_disk_is_no_space_and_never_out_of_memory
    the_places_for_files_share_one_disk
    running_out_of_inodes_is_no_space_and_never_out_of_memory
    one_file_cannot_be_larger_than_the_disk
    a_job_cannot_raise_its_own_limits
    a_small_job_may_have_many_processes
    the_kernel_knows_the_limits_that_were_asked_for
}

by_libvirt_too! {
    a_memory_bomb_ends_as_out_of_memory
    a_full_disk_is_no_space_and_never_out_of_memory
}

const BOMB: &str = "dd if=/dev/zero of=/dev/null bs=1G count=1";

fn a_memory_bomb_ends_as_out_of_memory(place: &Place) {
    let bomb = || place.shell(&format!("exec {BOMB}")).args(["--memory", "32MiB"]);
    bomb().finish().code(137).says(&["killed for memory", "32.0 MiB", "--memory"]);
    let result = result_of(bomb(), 137);
    assert_eq!(
        (result["outcome"].as_str(), result["observed_by"].as_str()),
        // In a machine it is the word of the machine's own kernel.
        (Some("out_of_memory"), Some(if place.tier == Tier::Vm { "guest" } else { "host" }))
    );
    assert!(result["usage"]["oom_kills"].as_u64() > Some(0));
    assert!(result["usage"]["peak_memory_bytes"].as_u64() <= Some(32 << 20));

    // Files on the job's disk count as well, and so does what a child holds.
    let child = place.shell(&format!("{BOMB}; exit 7")).args(["--memory", "32MiB"]);
    assert_eq!(result_of(child, 137)["outcome"], "out_of_memory");
}

fn a_child_that_was_killed_for_memory_does_not_fail_a_job_that_copes(place: &Place) {
    // Where the kernel kills the whole group, the job cannot cope: that is no success either.
    let mayfly = place.shell(&format!("{BOMB} 2>/dev/null; exit 0")).args(["--memory", "32MiB", "--json"]);
    let result = mayfly.finish().json();
    let coped = result["exit_code"] == 0;
    assert_eq!(result["outcome"], if coped { "succeeded" } else { "out_of_memory" });
}

fn a_fork_bomb_stops_at_its_limit_and_ends_at_its_timeout(place: &Place) {
    // The leader itself must not fork any more: it would end with the shell's own code.
    let bomb = "echo ready; bomb() { bomb | bomb & }; (bomb 2>/dev/null) & exec sleep 60";
    let mayfly = place.shell(bomb).args(["--pids", "32", "--timeout", "3s"]);
    let (running, sandbox) = place.start(mayfly);
    let most = (0..50).map(|_| sandbox.job().len()).max();
    assert!(most <= Some(32), "{most:?} processes at once");
    running.finish().code(124);
    assert_eq!(place.node.leftovers(), [""; 0]);

    let many = "import os\nn = 0\ntry:\n  while n < 100:\n    n += 1\n    os.fork() or os.execvp('sleep', ['sleep', '60'])\n\
                except OSError as error: print(n, error.errno)";
    let finished = place.python(many).args(["--pids", "16"]).finish().code(0);
    // Where agent and job are one user, the agent is one of the user's processes.
    let fork = if place.tier == Tier::Docker { "15 11" } else { "16 11" };
    assert_eq!(finished.text(), fork, "the last fork answers EAGAIN");
}

fn a_full_disk_is_no_space_and_never_out_of_memory(place: &Place) {
    let fill =
        place.shell("dd if=/dev/zero of=/job/fill bs=1M").args(["--memory", "64MiB", "--disk", "32MiB"]);
    let result = result_of(fill, 1);
    assert_eq!(
        (result["outcome"].as_str(), result["usage"]["oom_kills"].as_u64()),
        (Some("failed"), Some(0))
    );
    assert!(result["stderr"]["text"].as_str().unwrap().contains("No space left on device"));

    // The default disk of a small memory leaves room as well.
    let fill = place
        .shell("dd if=/dev/zero of=/job/fill bs=1M; rm /job/fill; echo fine")
        .args(["--memory", "32MiB"]);
    let result = result_of(fill, 0);
    assert_eq!(
        (result["stdout"]["text"].as_str(), result["usage"]["oom_kills"].as_u64()),
        (Some("fine\n"), Some(0))
    );
}

fn the_places_for_files_share_one_disk(place: &Place) {
    let script =
        "for at in /tmp /job /dev/shm; do head -c 6000000 /dev/zero > $at/fill && echo $at; done 2>/dev/null";
    let finished = place.shell(script).args(["--disk", "10MiB"]).finish().code(1);
    assert_eq!(finished.text(), "/tmp");
}

fn running_out_of_inodes_is_no_space_and_never_out_of_memory(place: &Place) {
    let result = result_of(place.shell("seq 1000000 | xargs touch 2>&1 | head -n 1; ls | wc -l"), 0);
    let said = result["stdout"]["text"].as_str().unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    let files: u64 = said.lines().last().unwrap().parse().unwrap();
    assert!((60_000..=65_536).contains(&files), "{files} files");
    assert_eq!(result["usage"]["oom_kills"], 0);
}

fn one_file_cannot_be_larger_than_the_disk(place: &Place) {
    // A sparse file takes no room, and would be full of zeros where it is collected.
    let finished = place.shell("truncate -s 1T /job/sparse; ls -l /job").finish();
    assert!(!finished.text().contains("1099511627776"), "{}", finished.text());
}

fn a_job_cannot_raise_its_own_limits(place: &Place) {
    let program = "import resource as r\nfor what in r.RLIMIT_NOFILE, r.RLIMIT_NPROC, r.RLIMIT_FSIZE, r.RLIMIT_CORE:\n  \
                   soft, hard = r.getrlimit(what)\n  try: r.setrlimit(what, (hard + 1, hard + 1)); print('raised', what)\n  \
                   except (OSError, ValueError): print(soft, hard)";
    let finished = place.python(program).args(["--pids", "50", "--memory", "32MiB"]).finish().code(0);
    assert_eq!(
        finished.text().lines().collect::<Vec<_>>(),
        ["1024 1024", "50 50", "33554432 33554432", "0 0"]
    );
}

fn a_small_job_may_have_many_processes(place: &Place) {
    let program = "import resource as r; print(*r.getrlimit(r.RLIMIT_NPROC))";
    let asked = ["--pids", "5000", "--memory", "64MiB"];
    assert_eq!(place.python(program).args(asked).finish().code(0).text(), "5000 5000");
}

fn the_kernel_knows_the_limits_that_were_asked_for(place: &Place) {
    let asked = ["--memory", "100MiB", "--cpus", "0.25", "--pids", "77"];
    let (running, sandbox) = place.start(place.shell("echo ready; sleep 1000").args(asked));
    let memory = sandbox.limit(&["memory.max", "memory.limit_in_bytes"]);
    if place.tier == Tier::Vm {
        // The host bounds the machine, its own kernel the job.
        assert!(memory.parse::<u64>().unwrap() < 1 << 30, "{memory}");
    } else {
        assert_eq!(memory, (100 << 20).to_string());
        assert_eq!(sandbox.limit(&["pids.max"]), "77");
    }
    let cpu = sandbox.limit(&["cpu.max", "cpu.cfs_quota_us"]);
    assert!(cpu == "25000" || cpu == "25000 100000", "{cpu}");
    drop(running);
    // Its killer leaves the sandbox to the next mayfly of the node.
    place.run(["true"]).finish().code(0);
}

//! From Hello to Ready, and what the armed process is.

use agent::message::{Fault, ToAgent, ToHost, VERSION};

use crate::host::{Host, NOBODIES, eventually, hello, run, sh, status_of};

#[test]
fn a_hello_is_answered_with_its_nonce_and_what_is_seen() {
    let mut host = Host::spawn();
    let ready = host.greet(hello());
    assert_eq!(ready.version, VERSION);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    assert_eq!(ready.boot_id, boot_id.trim());
    assert_eq!(status_of(ready.job.pid, "Name").as_deref(), Some("mayfly-agent"));
    assert_eq!(status_of(ready.job.pid, "PPid"), Some(host.agent.id().to_string()));
}

#[test]
fn another_version_is_refused() {
    let mut host = Host::spawn();
    host.send(0, ToAgent::Hello(agent::message::Hello { version: VERSION + 1, ..hello() }));
    assert_eq!(host.fault(), format!("host speaks version {}, the agent {VERSION}", VERSION + 1));
    assert!(!host.hang_up().success());
}

#[test]
fn anything_before_the_hello_is_refused() {
    let mut host = Host::spawn();
    host.send(1, ToAgent::Run(run(&["true"])));
    assert!(host.fault().contains("not a Hello"));
}

#[test]
fn the_armed_process_has_nothing_left_to_give_up() {
    let mut host = Host::spawn();
    let ready = host.greet(agent::message::Hello { identity: Some(NOBODIES), ..hello() });
    let status = |key| status_of(ready.job.pid, key).expect("it waits");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(status("Uid"), "61002 61002 61002 61002");
    assert_eq!(status("Gid"), "61003 61003 61003 61003");
    assert_eq!(status("Groups"), "");
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("Seccomp"), "2");
    assert_eq!(ready.job.uid, 61_002);
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", ready.job.pid));
    assert_eq!(score.expect("a score").trim(), "1000");
    let mut descriptors: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", ready.job.pid))
        .expect("its descriptors")
        .map(|entry| entry.expect("one").file_name())
        .collect();
    descriptors.sort();
    assert_eq!(descriptors, ["0", "1", "2", "3", "4"]);
}

#[test]
fn the_agent_keeps_only_what_it_needs_for_the_job() {
    let mut host = Host::spawn();
    host.greet(agent::message::Hello { identity: Some(NOBODIES), ..hello() });
    let kill_setgid_setuid = "00000000000000e0";
    assert_eq!(host.status("CapEff"), kill_setgid_setuid);
    assert_eq!(host.status("CapPrm"), kill_setgid_setuid);
    assert_eq!(host.status("CapBnd"), "0000000000000000");
    assert_eq!(host.status("CapInh"), "0000000000000000");
    // Real, effective, saved; and the file system sees the job.
    assert_eq!(host.status("Uid"), "61001 61001 61001 61002");
    assert_eq!(host.status("NoNewPrivs"), "1");
}

#[test]
fn the_job_sees_itself_confined_and_finds_no_descriptor_of_the_agent() {
    let mut host = Host::spawn();
    host.greet(agent::message::Hello { identity: Some(NOBODIES), ..hello() });
    let script = "grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; umask; ls /proc/$$/fd; \
                  echo again > /dev/stdout; cat /proc/$PPID/environ";
    let outcome = host.run(sh(script));
    let text = outcome.text();
    for line in
        ["Uid:\t61002\t61002\t61002\t61002", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains("0022\n"), "{text}");
    // The shell's own descriptors while it waits for `ls`; and its stdout is its own to open again.
    assert!(text.ends_with("\n0\n1\n2\nagain\n"), "{text}");
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("Permission denied"));
    assert_eq!(outcome.code(), 1);
}

#[test]
fn a_read_only_root_is_locked_twice() {
    let mut host = Host::spawn();
    let ready = host.greet(agent::message::Hello { writable_root: false, ..hello() });
    assert!(ready.job.landlock_abi > 0, "this kernel has no Landlock: the test can prove nothing");
    let guard = tempfile::tempdir_in("/var/tmp").expect("a directory outside of /tmp");
    let outside = guard.path().join("file");
    let script = format!(
        "echo no > {}; echo $?; t=$(mktemp -d) && echo yes > $t/x && cat $t/x; rm -r $t",
        outside.display()
    );
    let outcome = host.run(sh(&script));
    assert_eq!(outcome.text(), "2\nyes\n", "{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(!outside.exists());
}

/// A cgroup of the pids controller that goes away again.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn make() -> Self {
        let v1 = std::path::Path::new("/sys/fs/cgroup/pids");
        let parent = if v1.exists() { v1 } else { std::path::Path::new("/sys/fs/cgroup") };
        let path = parent.join(format!("mayfly-agent-test-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// An agent whose job shall be in this cgroup. The descriptor is inherited under its number.
    fn agent(&self) -> Host {
        let tasks = self.0.join("tasks");
        let (option, file) =
            if tasks.exists() { ("--job-tasks", tasks) } else { ("--job-cgroup", self.0.clone()) };
        let redirection = if option == "--job-tasks" { ">" } else { "<" };
        let script = format!("exec \"$0\" {option} 9 9{redirection}\"$1\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_mayfly-agent")]).arg(file);
        Host::spawn_as(command)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that ended is counted for a moment longer.
        eventually("the cgroup is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn the_job_is_in_its_cgroup_and_the_agent_is_not() {
    let cgroup = Cgroup::make();
    let mut host = cgroup.agent();
    let ready = host.greet(hello());
    let members = std::fs::read_to_string(cgroup.0.join("cgroup.procs")).expect("members");
    assert_eq!(members.trim(), ready.job.pid.to_string());
    let open = std::fs::read_dir(format!("/proc/{}/fd", host.agent.id())).expect("its descriptors");
    for descriptor in open {
        let target = std::fs::read_link(descriptor.expect("one").path()).expect("a link");
        assert!(!target.starts_with("/sys"), "the agent still holds {}", target.display());
    }
}

#[test]
fn a_cgroup_that_takes_nobody_is_a_fault() {
    // What every write to is refused stands for the cgroup.
    let mut command = std::process::Command::new("sh");
    let script = "exec \"$0\" --job-tasks 9 9>/dev/full";
    command.args(["-c", script, env!("CARGO_BIN_EXE_mayfly-agent")]);
    let mut host = Host::spawn_as(command);
    host.send(0, ToAgent::Hello(hello()));
    assert_eq!(host.fault(), "join the job's cgroup");
}

#[test]
fn a_descriptor_that_is_not_the_agents_is_a_fault() {
    // Descriptor 0 is the channel: it is never a cgroup, and never taken.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly-agent"));
    command.args(["--job-tasks", "0"]);
    let mut host = Host::spawn_as(command);
    assert!(host.fault().contains("no descriptor above 2"));

    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly-agent"));
    command.args(["--job-tasks", "77"]);
    let mut host = Host::spawn_as(command);
    let Some(agent::codec::Frame { message: ToHost::Fault(Fault { step, errno }), .. }) = host.next() else {
        panic!("no fault");
    };
    assert_eq!((step.as_str(), errno), ("take a descriptor of the command line", libc::EBADF));
}

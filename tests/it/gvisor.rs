//! The docker tier with gVisor: a runtime whose containers have a kernel of their own.
//!
//! The suites look at sandboxes from the host, which cannot see into these. Here is what holds all the same.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use servers::{Dockerd, Scratch};

use crate::harness::{Node, Place, Tier, eventually, result_of, use_by};

const RUNTIME: &str = "[docker]\nruntime = 'gvisor'\n";

/// A daemon that knows gVisor, where it is installed.
fn with_gvisor(test: &str, options: &[&str], behaviour: fn(&Place, &Dockerd)) {
    let runsc = Path::new("/usr/bin/runsc");
    if !Dockerd::is_installed() || !runsc.exists() {
        return servers::skipped(test, "there is no docker daemon, or no runsc");
    }
    let folder = Scratch::new("gvisor").unwrap();
    let program = folder.path().join("gvisor");
    // The way to watch system calls that works in virtual machines too. And no network stack: a sandbox has no interface.
    fs::write(
        &program,
        format!("#!/bin/sh\nexec {} --platform=ptrace --network=none \"$@\"\n", runsc.display()),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let runtime = format!("--add-runtime=gvisor={}", program.display());
    let options: Vec<_> = [runtime.as_str()].iter().chain(options).copied().collect();
    let daemon = Dockerd::start_with(&options).unwrap();
    let place = Place { tier: Tier::Docker, node: use_by(Node::new(), &daemon) };
    behaviour(&place, &daemon);
    eventually("no container is left", || {
        let (_, body) = daemon.ask("GET", "/containers/json?all=true").unwrap();
        (body.trim() == "[]").then_some(())
    });
    place.node.mayfly(["audit", "verify"]).finish().code(0);
    assert_eq!(place.node.leftovers(), [""; 0]);
}

#[test]
fn a_job_in_gvisor_is_a_job_as_any_other_on_another_kernel() {
    with_gvisor("a_job_in_gvisor", &[], |place, _| {
        let config = place.node.write("gvisor.toml", RUNTIME);
        let shell = |script: &str| place.shell(script).env("MAYFLY_CONFIG", &config);

        let result = result_of(shell("uname -r; echo told >&2; exit 7"), 7);
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_ne!(result["stdout"]["text"].as_str().unwrap().trim(), host.trim());
        assert_eq!(result["stderr"]["text"], "told\n");
        let notes = result["notes"].to_string();
        assert!(notes.contains("runtime gvisor: it has a kernel of its own"), "{notes}");

        let (sent, got) = (place.node.write("in", "sent in"), place.node.file("got"));
        let put = format!("{sent}:/job/deep/in");
        let get = format!("/job/deep/out:{}", got.display());
        let script =
            "cat deep/in; cat > deep/out; echo \" $WORD\"; touch /tmp/mine; ls /proc | grep -c '^[0-9]'";
        let finished = shell(script)
            .args(["--put", &put, "--get", &get, "--env", "WORD=given", "--stdin"])
            .stdin("through stdin")
            .finish()
            .code(0);
        // The shell, ls and grep: the agent is not seen.
        assert!(finished.text().starts_with("sent in given\n"), "{}", finished.text());
        assert_eq!(fs::read_to_string(&got).unwrap(), "through stdin");

        let names =
            "ls /job /tmp | wc -l; cat /etc/resolv.conf; ls /sys/class/net 2>/dev/null | grep -v '^lo$'";
        let finished = shell(&format!("{names}; true")).finish().code(0);
        let seen = finished.text();
        assert!(!seen.contains("mine") && !seen.contains("deep"), "{seen}");
        let host_names = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        for server in
            host_names.lines().filter(|line| line.starts_with("nameserver") && !line.contains("127.0.0.1"))
        {
            assert!(!seen.contains(server), "the host's own name server: {seen}");
        }
    });
}

#[test]
fn limits_hold_in_gvisor_and_the_host_sees_which() {
    with_gvisor("limits_hold_in_gvisor", &[], |place, _| {
        let config = place.node.write("gvisor.toml", RUNTIME);
        let shell = |script: &str| place.shell(script).env("MAYFLY_CONFIG", &config);

        let bomb =
            shell("head -c 500000000 /dev/zero | tail -c 400000000 | wc -c").args(["--memory", "32MiB"]);
        let result = result_of(bomb, 137);
        assert_eq!((&result["outcome"], &result["observed_by"]), (&"out_of_memory".into(), &"host".into()));

        let full =
            "dd if=/dev/zero of=/tmp/x bs=1M count=500 2>&1 | grep -o 'No space left' && echo and alive";
        shell(full).finish().code(0);
        shell("echo ready; exec sleep 1000")
            .args(["--timeout", "500ms", "--grace", "100ms"])
            .finish()
            .code(124);
        let left = "sleep 1000 & sleep 1000 & exit 3";
        shell(left).finish().code(3);
        let flood = shell("cat /dev/zero").args(["--output", "1MiB"]);
        assert_eq!(result_of(flood, 137)["outcome"], "output_limit");
    });
}

#[test]
fn what_gvisor_cannot_bound_or_nobody_asked_for_is_refused_with_the_reason() {
    let options = ["--default-runtime=gvisor"];
    with_gvisor("what_gvisor_cannot_bound", &options, |place, _| {
        let unnamed = place.run(["true"]).finish().code(125);
        unnamed.says(&["default runtime \"gvisor\" has a kernel of its own", "used only if it is named"]);
        let config = place.node.write("gvisor.toml", RUNTIME);
        place.node.mayfly(["image", "build", "base-writable"]).finish().code(0);
        let writable = place.run_in("base-writable", ["true"]).env("MAYFLY_CONFIG", &config);
        writable.finish().code(125).says(&["has a writable root", "\"gvisor\""]);
        let doctor = place.node.mayfly(["doctor"]).env("MAYFLY_CONFIG", &config).finish();
        assert!(doctor.text().contains("gvisor"), "{}", doctor.text());
    });
}

//! What people and scripts get wrong. Each message says what, where, and what to do; nothing is started.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::harness::{Finished, Mayfly, Node};

/// Runs `mayfly run` with these words and expects a refusal with these others.
#[track_caller]
fn refused(words: &[&str], message: &[&str]) {
    let node = Node::new();
    let finished: Finished = node.mayfly(["run", "--image", "minimal"]).args(words.iter().copied()).finish();
    let finished = finished.code(125).says(message);
    assert_eq!(finished.text(), "", "stdout is the job's");
    let events: Vec<_> = node.ledger().iter().map(|record| record["event"].clone()).collect();
    assert!(!events.contains(&"consumed".into()), "no sandbox was used: {events:?}");
}

#[test]
fn an_unknown_image_is_named_with_those_that_are_there() {
    let node = Node::new();
    let finished = node.mayfly(["run", "--image", "nope", "--", "true"]).finish().code(125);
    finished.says(&["cannot use image nope", "hint:", "minimal"]);
}

#[test]
fn a_name_that_is_no_image_name_is_refused() {
    for name in ["../etc", "", "Minimal", "minimal@sha256:zz"] {
        let node = Node::new();
        let finished = node.mayfly(["run", "--image", name, "--", "true"]).finish().code(125);
        finished.says(&["image", "hint:"]);
    }
}

#[test]
fn an_image_may_be_pinned_and_another_digest_is_refused() {
    let node = Node::new();
    let image = node.mayfly(["image", "inspect", "minimal", "--json"]).finish().code(0).json();
    let pinned = format!("minimal@{}", image["digest"].as_str().unwrap());
    node.mayfly(["run", "--image", &pinned, "--", "true"]).finish().code(0);
    let other = format!("minimal@sha256:{}", "0".repeat(64));
    node.mayfly(["run", "--image", &other, "--", "true"])
        .finish()
        .code(125)
        .says(&["cannot use image minimal@sha256:0"]);
}

#[test]
fn an_unknown_tier_is_named_with_those_that_there_are() {
    refused(&["--tier", "jail", "--", "true"], &["--tier", "\"jail\"", "chroot, nspawn, docker, vm"]);
}

#[test]
fn a_tier_that_this_host_does_not_offer_is_said_and_never_weakened() {
    let node = Node::new();
    let config = node.write("vm.toml", "[vm]\nallow_emulation = true\nqemu = \"/nowhere/qemu\"\n");
    refused(
        &["--config", &config, "--tier", "vm", "--", "true"],
        &["cannot make a vm sandbox", "there is no /nowhere/qemu on this host", "mayfly doctor"],
    );
}

#[test]
fn an_empty_command_is_refused() {
    refused(&[], &["<CMD>", "Usage: mayfly run"]);
    refused(&["--"], &["<CMD>", "Usage: mayfly run"]);
    refused(&["--", ""], &["command[0]: it is empty", "name a program"]);
}

#[test]
fn a_malformed_duration_is_shown_with_a_good_one() {
    for text in ["5", "soon", "-1s", "1 parsec", ""] {
        refused(&[&format!("--timeout={text}"), "--", "true"], &["--timeout", text, "30s"]);
    }
    refused(&["--grace=x", "--", "true"], &["--grace", "30s"]);
}

#[test]
fn no_time_and_too_much_time_are_refused() {
    refused(&["--timeout", "0s", "--", "true"], &["timeout: no time at all", "30s"]);
    refused(&["--timeout", "10y", "--", "true"], &["timeout:", "above the longest allowed"]);
}

#[test]
fn a_malformed_size_is_shown_with_a_good_one() {
    for option in ["--memory", "--disk", "--output"] {
        for text in ["lots", "5Q", "-1", "", "0x10"] {
            refused(&[&format!("{option}={text}"), "--", "true"], &[option, text, "256MiB"]);
        }
    }
}

#[test]
fn malformed_numbers_and_variables_are_refused() {
    refused(&["--cpus=many", "--", "true"], &["--cpus", "many"]);
    refused(&["--cpus=nan", "--", "true"], &["limits.cpus", "0.5 or 2"]);
    refused(&["--cpus=-1", "--", "true"], &["limits.cpus", "0.5 or 2"]);
    refused(&["--pids=1.5", "--", "true"], &["--pids", "1.5"]);
    refused(&["--env=NOVALUE", "--", "true"], &["--env", "NOVALUE", "NAME=VALUE"]);
    refused(&["--env=1X=y", "--", "true"], &["env.1X", "not the name of an environment variable"]);
    refused(&["--env=MAYFLY_X=y", "--", "true"], &["env.MAYFLY_X", "reserved", "choose another name"]);
}

#[test]
fn limits_below_what_can_start_are_refused_with_the_least() {
    refused(
        &["--memory=1MiB", "--", "true"],
        &["memory of 1048576 bytes", "the least that can start, 8388608 bytes"],
    );
    refused(&["--cpus=0.001", "--", "true"], &["cpus", "below the least that can start"]);
    refused(&["--pids=0", "--", "true"], &["pids of 0", "the least that can start, 1"]);
    refused(&["--disk=1kB", "--", "true"], &["disk of 1000 bytes", "65536 bytes"]);
    refused(
        &["--memory=64MiB", "--disk=64MiB", "--", "true"],
        &["disk", "no room", "less disk or more memory"],
    );
}

#[test]
fn the_least_that_is_allowed_can_start() {
    let node = Node::new();
    let least = ["run", "--image", "minimal", "--memory=8MiB", "--cpus=0.01", "--pids=1", "--disk=64KiB"];
    let finished = node.mayfly(least).job(["echo", "started"]).finish().code(0);
    assert_eq!(finished.text(), "started");
}

#[test]
fn a_malformed_put_is_shown_with_a_good_one() {
    for text in ["file", "file:", "file:relative", ":/job/x", ""] {
        refused(&[&format!("--put={text}"), "--", "true"], &["--put", "LOCAL:PATH", "main.py:/job/main.py"]);
    }
}

#[test]
fn a_malformed_get_is_shown_with_a_good_one() {
    for text in ["/job/x", "/job/x:", ""] {
        refused(
            &[&format!("--get={text}"), "--", "true"],
            &["--get", "PATH:LOCAL", "/job/report.md:report.md"],
        );
    }
}

#[test]
fn a_path_that_leaves_the_sandbox_is_refused() {
    for path in ["/job/../../etc/passwd", "/..", "/job/.."] {
        refused(
            &[&format!("--put=/etc/hostname:{path}"), "--", "true"],
            &["--put", "leaves the sandbox", "/job/input.txt"],
        );
        refused(
            &[&format!("--get={path}:x"), "--", "true"],
            &["--get", "leaves the sandbox", "/job/input.txt"],
        );
        refused(&[&format!("--workdir={path}"), "--", "true"], &["workdir", "leaves the sandbox"]);
    }
}

#[test]
fn a_path_that_is_the_kernels_is_refused() {
    for path in ["/proc/self/fd/3", "/sys/x", "/dev/null", "/proc"] {
        refused(&[&format!("--put=/etc/hostname:{path}"), "--", "true"], &["--put", "the kernel's"]);
        refused(&[&format!("--get={path}:x"), "--", "true"], &["--get", "the kernel's"]);
        refused(&[&format!("--workdir={path}"), "--", "true"], &["workdir", "the kernel's"]);
    }
}

#[test]
fn a_local_file_that_cannot_be_read_is_named() {
    let node = Node::new();
    let (file, fifo) = (node.write("file", ""), node.file("fifo"));
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let cases = [
        ("/no/such/file".to_owned(), "No such file or directory"),
        (format!("{file}/below"), "Not a directory"),
        (fifo.to_str().unwrap().to_owned(), "fifo, a socket or a device"),
    ];
    for (local, why) in cases {
        refused(&[&format!("--put={local}:/job/x"), "--", "true"], &[&local, why, "hint:"]);
    }
}

#[test]
fn a_place_where_no_artifact_could_be_written_is_refused_before_anything_runs() {
    refused(
        &["--get=/job/x:/no/such/dir/x", "--", "true"],
        &["cannot write /no/such/dir/x", "make it first", "nothing was run"],
    );
}

#[test]
fn without_root_it_says_so() {
    let node = Node::new();
    // Where anybody may execute it, whatever the checkout's own permissions are.
    let program = node.file("mayfly");
    fs::copy(env!("CARGO_BIN_EXE_mayfly"), &program).unwrap();
    for directory in [program.parent().unwrap().parent().unwrap(), program.parent().unwrap()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let nobody = Mayfly::program("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let nobody =
        node.place(nobody).args([program.to_str().unwrap(), "run", "--image=minimal"]).current_dir("/");
    let finished = nobody.job(["true"]).finish().code(125);
    finished.says(&["must run as root", "id-mapped mounts and cgroups", "hint:", "sudo"]);
}

#[test]
fn a_refusal_is_a_result_for_programs_too() {
    let node = Node::new();
    let result = node
        .mayfly(["run", "--image=minimal", "--json", "--memory=1MiB", "--", "true"])
        .finish()
        .code(125)
        .json();
    assert_eq!((result["outcome"].as_str(), result["attempt"].as_u64()), (Some("rejected"), Some(0)));
    for part in ["what", "why", "what_to_do"] {
        assert!(!result["error"][part].as_str().unwrap().is_empty(), "{part}");
    }
}

//! Artifacts that want something else than to be kept.

use std::{fs, os::unix::fs::symlink};

use serde_json::Value;

use crate::harness::{Place, by_libvirt_too, on_every_tier};

on_every_tier! {
    a_link_is_never_followed_out_of_the_sandbox
    a_fifo_a_socket_and_a_device_do_not_hold_up_the_collection
    a_job_cannot_make_a_device
    names_that_steer_a_terminal_are_shown_as_text
    more_files_than_are_kept_are_left_out_and_it_is_said
    a_file_that_grows_while_it_is_collected_is_no_trouble
    nothing_is_written_through_a_link_below_the_local_directory
}

by_libvirt_too! {
    a_link_is_never_followed_out_of_the_sandbox
}

/// Runs a script and gets all of /job/out. Gives the result and what came.
fn collect(place: &Place, script: &str) -> (Value, Vec<String>) {
    let back = place.node.file("back");
    let get = format!("/job/out:{}", back.display());
    let script = format!("mkdir /job/out; cd /job/out; {script}");
    let finished = place.shell(&script).args(["--json", "--get", &get]).finish();
    let entries = fs::read_dir(&back).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    (finished.json(), names)
}

/// Why something was left out.
fn reason<'a>(result: &'a Value, path: &str) -> &'a str {
    let skipped = result["skipped"].as_array().unwrap();
    let entry = skipped.iter().find(|entry| entry["path"] == path);
    entry.unwrap_or_else(|| panic!("{path} is not among what was skipped: {skipped:?}"))["reason"]
        .as_str()
        .unwrap()
}

fn a_link_is_never_followed_out_of_the_sandbox(place: &Place) {
    let canary = place.node.write("canary", "the host's secret");
    let script = format!(
        "echo good > good; ln -s {canary} file; ln -s /etc dir; ln -s good near; ln -s . loop; ln -s /proc/1/root root"
    );
    let (result, names) = collect(place, &script);
    assert_eq!(names, ["good"]);
    for name in ["file", "dir", "near", "loop", "root"] {
        assert!(reason(&result, &format!("/job/out/{name}")).contains("symbolic link"), "{name}");
    }

    // The asked path itself, and a directory on the way to it.
    let back = place.node.file("single");
    let script = format!("ln -s {canary} /job/file; ln -s /etc /job/dir");
    for path in ["/job/file", "/job/dir/passwd"] {
        let get = format!("{path}:{}", back.display());
        place.shell(&script).args(["--get", &get]).finish().code(125).says(&[path, "link"]);
        assert!(!back.exists(), "{path}");
    }
}

fn a_fifo_a_socket_and_a_device_do_not_hold_up_the_collection(place: &Place) {
    let script = "echo good > good; mkfifo fifo; nc -l -s local:/job/out/socket -p 0 2>/dev/null & \
                  ln /dev/zero device 2>/dev/null; true";
    let (result, names) = collect(place, script);
    assert_eq!(names, ["good"]);
    assert!(reason(&result, "/job/out/fifo").contains("fifo, a socket or a device"));
    let back = place.node.file("zero");
    let get = format!("/dev/shm/zero:{}", back.display());
    place
        .shell("mkfifo /dev/shm/zero")
        .args(["--get", &get])
        .finish()
        .code(125)
        .says(&["/dev/shm/zero", "fifo"]);
}

fn a_job_cannot_make_a_device(place: &Place) {
    let finished =
        place.shell("mknod /job/mem c 1 1 || mknod /tmp/sda b 8 0 || echo refused").finish().code(0);
    assert_eq!(finished.text(), "refused");
}

fn names_that_steer_a_terminal_are_shown_as_text(place: &Place) {
    let script = r#"touch "$(printf 'clear\033[2J')" "$(printf 'new\nline')" "$(printf 'bad\377')""#;
    let (result, names) = collect(place, script);
    assert_eq!(names.len(), 3);
    let mut paths: Vec<_> =
        result["artifacts"].as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, [r"/job/out/bad\xff", r"/job/out/clear\x1b[2J", r"/job/out/new\x0aline"]);
}

fn more_files_than_are_kept_are_left_out_and_it_is_said(place: &Place) {
    let (result, names) = collect(place, "seq 20000 | xargs touch");
    assert_eq!(result["exit_code"], 0, "{}", result["stderr"]["text"]);
    assert_eq!(names.len(), 10_000);
    assert!(reason(&result, "/job/out").contains("more than 10000 files"));
}

fn a_file_that_grows_while_it_is_collected_is_no_trouble(place: &Place) {
    // A straggler could write on: there is none, because everything is killed before anything is collected.
    let script = "(while :; do echo more >> log; done) & until [ -s log ]; do :; done";
    let (result, names) = collect(place, script);
    assert_eq!(names, ["log"]);
    let kept = fs::metadata(place.node.file("back/log")).unwrap().len();
    assert_eq!(result["artifacts"][0]["size"], kept);
}

fn nothing_is_written_through_a_link_below_the_local_directory(place: &Place) {
    let (outside, back) = (place.node.file("outside"), place.node.file("back"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&back).unwrap();
    symlink(&outside, back.join("sub")).unwrap();
    let (result, _) = collect(place, "mkdir sub; echo bad > sub/file; echo good > good");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(reason(&result, "/job/out/sub/file").contains("cannot be kept"));
    assert_eq!(fs::read_to_string(back.join("good")).unwrap(), "good\n", "the others still come");
}

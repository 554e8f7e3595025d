//! Files in, files out.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::harness::{Place, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    files_go_in_and_come_out_as_they_were
    a_program_that_was_put_in_can_be_executed
    a_directory_goes_in_with_all_below_it_and_a_glob_comes_out
    artifacts_are_kept_from_a_job_that_timed_out
    artifacts_are_kept_from_a_job_that_failed
    what_was_asked_for_and_is_not_there_is_said
    a_file_cannot_be_put_where_the_job_could_not_write
    more_files_than_the_disk_holds_are_refused
}

by_libvirt_too! {
    files_go_in_and_come_out_as_they_were
}

fn files_go_in_and_come_out_as_they_were(place: &Place) {
    for (name, size) in [("empty", 0), ("one", 1), ("window", 256 * 1024), ("odd", 3_000_001)] {
        let bytes: Vec<u8> = (0..size).map(|place: u32| ((place * 31) >> 3) as u8).collect();
        let (local, back) = (place.node.write(name, &bytes), place.node.file(&format!("{name}.back")));
        let put = format!("{local}:/job/deep/er/{name}");
        let get = format!("/job/copy:{}", back.display());
        let copy = place.run(["cp", &format!("/job/deep/er/{name}"), "/job/copy"]);
        let result = result_of(copy.args(["--put", &put, "--get", &get]), 0);
        assert_eq!(fs::read(&back).unwrap(), bytes, "{name}");
        let artifact = &result["artifacts"][0];
        assert_eq!(
            (artifact["path"].as_str(), artifact["size"].as_u64()),
            (Some("/job/copy"), Some(u64::from(size)))
        );
    }
}

fn a_program_that_was_put_in_can_be_executed(place: &Place) {
    let program = place.node.write("program", "#!/bin/sh\necho it runs as $0\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let mayfly = place.run(["/job/program"]).args(["--put", &format!("{program}:/job/program")]);
    assert_eq!(mayfly.finish().code(0).text(), "it runs as /job/program");
}

fn a_directory_goes_in_with_all_below_it_and_a_glob_comes_out(place: &Place) {
    let tree = place.node.file("tree");
    fs::create_dir_all(tree.join("src/deep")).unwrap();
    fs::write(tree.join("src/deep/a.log"), "a").unwrap();
    fs::write(tree.join("b.log"), "b").unwrap();
    fs::write(tree.join("c.txt"), "c").unwrap();
    let back = place.node.file("back");
    let (put, get) = (format!("{}:/job/in", tree.display()), format!("/job/in/**/*.log:{}", back.display()));
    place.run(["true"]).args(["--put", &put, "--get", &get]).finish().code(0);
    assert_eq!(fs::read_to_string(back.join("src/deep/a.log")).unwrap(), "a");
    assert_eq!(fs::read_to_string(back.join("b.log")).unwrap(), "b");
    assert!(!back.join("c.txt").exists(), "it was not asked for");
}

fn artifacts_are_kept_from_a_job_that_timed_out(place: &Place) {
    let back = place.node.file("report");
    let get = format!("/job/report:{}", back.display());
    let mayfly = place.shell("echo half done > /job/report; sleep 60");
    mayfly.args(["--timeout", "1s", "--get", &get]).finish().code(124);
    assert_eq!(fs::read_to_string(&back).unwrap(), "half done\n");
}

fn artifacts_are_kept_from_a_job_that_failed(place: &Place) {
    let back = place.node.file("log");
    let get = format!("/tmp/log:{}", back.display());
    place.shell("echo why > /tmp/log; kill -9 $$").args(["--get", &get]).finish().code(137);
    assert_eq!(fs::read_to_string(&back).unwrap(), "why\n");
}

fn what_was_asked_for_and_is_not_there_is_said(place: &Place) {
    let back = place.node.file("nothing");
    let get = format!("/job/nothing:{}", back.display());
    let finished = place.run(["true"]).args(["--get", &get]).finish().code(125);
    finished.says(&["/job/nothing", "nothing is there"]);
    assert!(!back.exists());
    // The job's own failure says more.
    place.run(["false"]).args(["--get", &get]).finish().code(1);
}

fn a_file_cannot_be_put_where_the_job_could_not_write(place: &Place) {
    let file = place.node.write("file", "x");
    let finished = place.run(["true"]).args(["--put", &format!("{file}:/etc/passwd")]).finish().code(125);
    finished.says(&["cannot put /etc/passwd into the sandbox", "read-only", "/job or /tmp"]);
}

fn more_files_than_the_disk_holds_are_refused(place: &Place) {
    let file = place.node.write("file", vec![1; 2_000_000]);
    let mayfly = place.run(["true"]).args(["--disk", "1MiB", "--put", &format!("{file}:/job/file")]);
    mayfly.finish().code(125).says(&["cannot put /job/file", "disk is full", "--disk"]);
}

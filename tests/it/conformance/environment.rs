//! What is around a job when it starts.

use crate::harness::{Place, Tier, on_every_tier};

on_every_tier! {
    the_environment_is_the_images_and_what_was_named_and_nothing_else
    a_named_variable_goes_before_the_images
    the_working_directory_is_the_images_or_what_was_named
    a_working_directory_that_is_not_there_is_said
    arguments_arrive_as_they_were_given
    a_job_is_no_root_and_has_no_terminal
}

fn the_environment_is_the_images_and_what_was_named_and_nothing_else(place: &Place) {
    let mayfly = place.run(["env"]).args(["--env", "NAMED=a=b c"]).env("HOST_SECRET", "canary");
    let finished = mayfly.finish().code(0);
    let mut lines: Vec<_> = finished.text().lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["HOME=/job", "LANG=C.UTF-8", "NAMED=a=b c", path]);
}

fn a_named_variable_goes_before_the_images(place: &Place) {
    let mayfly = place.shell("echo $HOME").args(["--env", "HOME=/tmp"]);
    assert_eq!(mayfly.finish().code(0).text(), "/tmp");
}

fn the_working_directory_is_the_images_or_what_was_named(place: &Place) {
    assert_eq!(place.run(["pwd"]).finish().code(0).text(), "/job");
    assert_eq!(place.run(["pwd"]).args(["--workdir", "/tmp"]).finish().code(0).text(), "/tmp");
    // A file that was put there makes the directory.
    let file = place.node.write("file", "");
    let put = place.run(["ls"]).args(["--put", &format!("{file}:/job/a/b/file"), "--workdir", "/job/a/b"]);
    assert_eq!(put.finish().code(0).text(), "file");
}

fn a_working_directory_that_is_not_there_is_said(place: &Place) {
    let finished = place.run(["true"]).args(["--workdir", "/job/nowhere"]).finish().code(126);
    finished.says(&[
        "cannot start true",
        "working directory cannot be entered",
        "name a directory that the image has",
    ]);
}

fn arguments_arrive_as_they_were_given(place: &Place) {
    let words =
        ["", " two  words ", "$HOME `id` \\ \"", "--json", "-x", "ünïcode \u{1f41d}", "line\nbreak", "*"];
    let job = ["sh", "-c", "for word; do printf '%s\\0' \"$word\"; done", "sh"].into_iter().chain(words);
    let finished = place.run(job).finish().code(0);
    let arrived: Vec<_> = finished.stdout.split(|byte| *byte == 0).collect();
    let expected: Vec<_> = words.iter().map(|word| word.as_bytes()).chain([b"".as_slice()]).collect();
    assert_eq!(arrived, expected);
}

fn a_job_is_no_root_and_has_no_terminal(place: &Place) {
    let script = "id -u; id -g; tty; (: </dev/tty) 2>/dev/null && echo terminal; hostname";
    let finished = place.shell(script).finish().code(0);
    let lines: Vec<_> = finished.text().lines().collect();
    assert_eq!((place.inside(lines[0]), place.inside(lines[1])), (1000, 1000));
    assert_eq!((lines.len(), lines[2]), (4, "not a tty"));
    // A machine has a name of its own in each of its lives.
    if place.tier == Tier::Vm {
        assert!(lines[3].starts_with("mayfly-"), "{}", lines[3]);
    } else {
        assert_eq!(lines[3], "mayfly");
    }
}

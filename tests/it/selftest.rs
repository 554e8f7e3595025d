//! `mayfly selftest` as a user runs it: what it says of each tier, to whom, and with which exit code. `removed` takes the
//! mechanisms away one by one and sees the probes say so.

mod removed;

use serde_json::Value;

use crate::harness::{Finished, Node, Place, Tier, on, on_every_tier};

fn selftest(place: &Place, words: &[&str]) -> Finished {
    place.node.mayfly(["selftest", "--tier", place.tier.name()]).args(words.iter().copied()).finish()
}

fn findings(report: &Value) -> &Vec<Value> {
    report["tiers"][0]["findings"].as_array().unwrap()
}

/// The whole catalogue, and what a program may rely on in it.
fn everything_that_is_to_hold_holds(place: &Place) {
    let report = selftest(place, &["--json"]).code(0).json();
    let schema = place.node.mayfly(["schema", "selftest"]).finish().code(0).json();
    jsonschema::validate(&schema, &report).unwrap();
    assert_eq!(report["holds"], true);
    let all = findings(&report);
    assert_eq!(all.len(), 80);
    let mut passed = 0;
    for finding in all {
        match finding["verdict"].as_str().unwrap() {
            "blocked" => {
                passed += 1;
                assert_eq!(finding["inside"]["seen"], "held", "{finding}");
                assert_eq!(finding["control"]["seen"], "open", "a control is what makes it count: {finding}");
            }
            // A machine's own kernel may allow what the host's must not.
            "contained" => passed += 1,
            "residual" | "unverified" | "not_applicable" => {
                assert!(!finding["why"].as_str().unwrap().is_empty(), "{finding}");
            }
            verdict => panic!("{verdict}: {finding}"),
        }
    }
    assert!(passed >= 55, "{passed} held: {report:#}");
    // What looks at the door from the host must be able to tell.
    for id in ["I04", "N08", "X05"] {
        let finding = all.iter().find(|finding| finding["id"] == id).unwrap();
        assert_eq!(finding["verdict"], "blocked", "{finding}");
    }
}

on_every_tier!(everything_that_is_to_hold_holds);

#[test]
fn one_probe_is_asked_alone_and_shown_to_a_person() {
    on(Tier::Chroot, |place| {
        let shown = selftest(place, &["--probe", "F01", "--probe", "i05"]).code(0);
        let text = shown.text();
        assert!(text.contains("F01") && text.contains("blocked"), "{text}");
        assert!(
            text.contains("chroot: 1 of 2 held (1 blocked, 0 contained); 0 exposed, 0 void, 1 residual"),
            "{text}"
        );
        assert!(!text.contains("F02"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 132), "{text}");
    });
}

#[test]
fn the_html_report_stands_by_itself() {
    on(Tier::Chroot, |place| {
        let path = place.node.file("report.html");
        selftest(place, &["--probe", "F06", "--html", path.to_str().unwrap()]).code(0);
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page.starts_with("<!doctype html>") && page.contains("F06"), "{page}");
        for loaded in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(loaded), "{loaded} in {page}");
        }
    });
}

#[test]
fn a_probe_that_there_is_not_is_refused_with_those_that_there_are() {
    let node = Node::new();
    node.mayfly(["selftest", "--probe", "Z99"]).finish().code(125).says(&["no such probe", "P01", "M10"]);
}

#[test]
fn a_tier_that_cannot_run_here_is_no_success() {
    let node = Node::new().with("DOCKER_HOST", "unix:///nowhere/docker.sock");
    node.mayfly(["selftest", "--tier", "docker"]).finish().code(125).says(&["docker cannot be tested here"]);
}

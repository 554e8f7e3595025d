//! `mayfly batch`: every job ends once, whatever becomes of the mayfly that runs it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    fs,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Node, Running, eventually};

/// A job file's line.
fn job(id: &str, command: &[&str], more: &Value) -> String {
    let mut job = json!({ "schema_version": 1, "id": id, "image": "minimal", "command": command });
    job.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    job.to_string()
}

/// A batch's two files.
struct Files {
    jobs: String,
    results: String,
}

fn files(node: &Node, name: &str, lines: &[String]) -> Files {
    Files {
        jobs: node.write(&format!("{name}.jsonl"), lines.join("\n")),
        results: node.file(&format!("{name}.results")).to_str().unwrap().to_owned(),
    }
}

impl Files {
    fn words<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["batch", &self.jobs, "-o", &self.results], more].concat()
    }

    /// Every result by its id. Fails if a job has two, or if a line is not whole.
    fn results(&self) -> BTreeMap<String, Value> {
        let mut results = BTreeMap::new();
        for line in fs::read_to_string(&self.results).unwrap().split_inclusive('\n') {
            assert!(line.ends_with('\n'), "a torn line: {line}");
            let result: Value = serde_json::from_str(line).unwrap();
            let id = result["id"].as_str().unwrap().to_owned();
            assert!(results.insert(id.clone(), result).is_none(), "{id} has two results");
        }
        results
    }

    /// Lines in the results file, while it is being written.
    fn ended(&self) -> usize {
        fs::read(&self.results).map_or(0, |bytes| bytes.split(|byte| *byte == b'\n').count() - 1)
    }

    fn has_state(&self) -> bool {
        fs::exists(format!("{}.mayfly", self.results)).unwrap()
    }
}

/// What the process answers by `mayfly status --json`.
fn status(node: &Node, running: &Running) -> Option<Value> {
    let all = node.mayfly(["status", "--json"]).finish().code(0).json();
    all.as_array().unwrap().iter().find(|status| status["pid"] == running.pid()).cloned()
}

/// Waits until the commands of as many jobs run as there are slots.
fn wait_until_busy(node: &Node, running: &Running) -> Value {
    eventually("all slots are taken", || {
        status(node, running).filter(|status| {
            let jobs = status["running"].as_array().unwrap().iter();
            let running = jobs.filter(|job| job["phase"] == "run").count();
            running as u64 == status["slots"].as_u64().unwrap()
        })
    })
}

#[test]
fn every_line_of_a_mixed_batch_ends_with_what_became_of_it() {
    let node = Node::new();
    let lines = [
        job("fine", &["sh", "-c", "echo out; echo err >&2"], &json!({})),
        job("fails", &["sh", "-c", "exit 3"], &json!({})),
        job("slow", &["sleep", "1000"], &json!({ "timeout": "200ms", "grace": "100ms" })),
        job("missing", &["no-such-program"], &json!({})),
        "{ not json".to_owned(),
        String::new(),
        job("fine", &["true"], &json!({})),
        job("unknown-field", &["true"], &json!({ "privileged": true })),
        job("no-image", &["true"], &json!({ "image": "no-such-image" })),
        json!({ "schema_version": 1, "command": ["true"] }).to_string(),
    ];
    let files = files(&node, "mixed", &lines);
    let finished = node.mayfly(files.words(&["--image", "minimal", "--json"])).finish().code(0);

    let results = files.results();
    let outcomes: BTreeMap<_, _> =
        results.iter().map(|(id, result)| (id.as_str(), result["outcome"].as_str().unwrap())).collect();
    let expected = [
        ("fine", "succeeded"),
        ("fails", "failed"),
        ("slow", "timed_out"),
        ("missing", "failed"),
        ("line-5", "rejected"),
        ("line-7", "rejected"),
        ("line-8", "rejected"),
        ("no-image", "rejected"),
        ("line-10", "succeeded"),
    ];
    assert_eq!(outcomes, BTreeMap::from(expected));
    assert_eq!(results["fine"]["stdout"]["text"], "out\n");
    assert_eq!(results["fails"]["exit_code"], 3);
    let error = |id: &str, part: &str| results[id]["error"][part].as_str().unwrap().to_owned();
    assert!(error("line-5", "what").contains("line 5 of"), "{}", error("line-5", "what"));
    assert!(error("line-7", "why").contains("line 1 has the same id"), "{}", error("line-7", "why"));
    assert!(error("line-8", "why").contains("unknown field `privileged`"), "{}", error("line-8", "why"));

    let summary = finished.json();
    assert_eq!((&summary["jobs"], &summary["left"]), (&json!(9), &json!(0)));
    assert_eq!(summary["outcomes"]["rejected"], 4);
    assert!(!files.has_state(), "what is over needs no state");
}

#[test]
fn a_batch_that_is_killed_again_and_again_ends_every_job_once() {
    const JOBS: usize = 300;
    const KILLS: usize = 5;
    let node = Node::new();
    let lines: Vec<_> = (0..JOBS)
        .map(|n| {
            job(
                &format!("job-{n}"),
                &["sh", "-c", "echo $$"],
                &json!({ "idempotent": n % 2 == 0, "max_attempts": 20 }),
            )
        })
        .collect();
    let files = files(&node, "killed", &lines);
    let mut dead = Vec::new();
    for kill in 0..KILLS {
        let running = node.mayfly(files.words(&["--resume", "--jobs", "6"])).start();
        // Each time a little further, and never at the same moment of a group.
        let before = files.ended();
        eventually("some more jobs have ended", || (files.ended() > before + 7 * kill).then_some(()));
        running.signal(Signal::KILL);
        dead.push(format!("{}-", running.pid()));
        assert_eq!(running.finish().ended_by(), Some(9));
        assert!(files.has_state());
    }
    assert!(files.ended() < JOBS, "the kills came too late to show anything");
    node.mayfly(files.words(&["--resume"])).finish().code(0).says(&["300 of 300 jobs have their result"]);

    let results = files.results();
    assert_eq!(results.len(), JOBS);
    let mut starts: HashMap<String, usize> = HashMap::new();
    for record in node.ledger().iter().filter(|record| record["event"] == "consumed") {
        *starts.entry(record["job"]["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    for (n, line) in lines.iter().enumerate() {
        let id = format!("job-{n}");
        let outcome = results[&id]["outcome"].as_str().unwrap();
        let started = starts.get(&id).copied().unwrap_or(0);
        if n % 2 == 0 {
            assert_eq!(outcome, "succeeded", "{line}");
            assert!((1..=1 + KILLS).contains(&started), "{id} was started {started} times");
        } else {
            assert!(started <= 1, "{id} may have started and was started again");
            assert_eq!(outcome == "succeeded", results[&id]["generation"].is_string(), "{}", results[&id]);
            assert!(matches!(outcome, "succeeded" | "sandbox_lost"), "{}", results[&id]);
        }
    }
    let audit = node.mayfly(["audit", "verify", "--json"]).finish().code(0).json();
    assert_eq!(audit["alive"], 0);
    assert!(!files.has_state());
    assert_eq!(node.leftovers(), [""; 0]);
    let sockets = fs::read_dir(Node::run_dir().join("control")).unwrap().flatten();
    let of_the_dead = |name: &str| dead.iter().any(|pid| name.starts_with(pid.as_str()));
    assert!(!sockets.into_iter().any(|entry| of_the_dead(entry.file_name().to_str().unwrap())));
}

#[test]
fn two_batches_and_single_runs_go_on_side_by_side() {
    let node = Node::new();
    let lines: Vec<_> = (0..60).map(|n| job(&format!("job-{n}"), &["true"], &json!({}))).collect();
    let both = [files(&node, "one", &lines), files(&node, "two", &lines)];
    let batches: Vec<_> = both.iter().map(|files| node.mayfly(files.words(&[])).start()).collect();
    let runs: Vec<_> =
        (0..3).map(|_| node.mayfly(["run", "--image", "minimal"]).job(["true"]).start()).collect();
    for running in batches.into_iter().chain(runs) {
        running.finish().code(0);
    }
    for files in &both {
        let results = files.results();
        assert_eq!(results.len(), 60);
        assert!(results.values().all(|result| result["outcome"] == "succeeded"));
    }
    node.mayfly(["audit", "verify"]).finish().code(0);
}

#[test]
fn one_ctrl_c_lets_running_jobs_end_and_keeps_the_rest_for_later() {
    let node = Node::new();
    let lines: Vec<_> = (0..40).map(|n| job(&format!("job-{n}"), &["sleep", "0.3"], &json!({}))).collect();
    let files = files(&node, "stopped", &lines);
    let running = node.mayfly(files.words(&["--jobs", "3"])).start();
    wait_until_busy(&node, &running);
    running.signal(Signal::INT);
    running.finish().code(130).says(&["no more jobs are started", "are left", "--resume"]);
    let first = files.results();
    assert!((1..40).contains(&first.len()), "{} ended", first.len());
    assert!(first.values().all(|result| result["outcome"] == "succeeded"), "{first:?}");

    node.mayfly(files.words(&[])).finish().code(125).says(&["is there already", "--resume"]);
    node.mayfly(files.words(&["--resume"])).finish().code(0);
    assert_eq!(files.results().len(), 40);
    assert!(files.results().values().all(|result| result["outcome"] == "succeeded"));
}

#[test]
fn a_second_ctrl_c_ends_running_jobs_and_repeats_only_those_that_may_be() {
    let node = Node::new();
    let endless = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    let lines = [
        job("once", &endless, &json!({ "timeout": "1h" })),
        job("again", &endless, &json!({ "timeout": "2s", "idempotent": true })),
        job("last", &["true"], &json!({})),
    ];
    let files = files(&node, "aborted", &lines);
    let running = node.mayfly(files.words(&["--jobs", "2"])).start();
    wait_until_busy(&node, &running);
    running.signal(Signal::INT);
    eventually("it is stopping", || {
        status(&node, &running)?["stopping"].as_bool().filter(|stopping| *stopping)
    });
    running.signal(Signal::INT);
    running.finish().code(130);
    let outcomes = |files: &Files| -> Vec<(String, String)> {
        let results = files.results();
        results
            .iter()
            .map(|(id, result)| (id.clone(), result["outcome"].as_str().unwrap().to_owned()))
            .collect()
    };
    assert_eq!(outcomes(&files), [("once".to_owned(), "cancelled".to_owned())]);
    assert_eq!(node.leftovers(), [""; 0]);
    node.mayfly(files.words(&["--resume"])).finish().code(0);
    let all = [("again", "timed_out"), ("last", "succeeded"), ("once", "cancelled")];
    assert_eq!(outcomes(&files), all.map(|(id, outcome)| (id.to_owned(), outcome.to_owned())));
}

#[test]
fn a_live_batch_answers_and_cancels() {
    let node = Node::new();
    let mut lines = vec![job("long", &["sleep", "1000"], &json!({ "timeout": "1h" }))];
    lines.extend((0..3).map(|n| job(&format!("waits-{n}"), &["true"], &json!({}))));
    let files = files(&node, "live", &lines);
    let running = node.mayfly(files.words(&["--jobs", "1"])).start();
    let seen = wait_until_busy(&node, &running);
    assert_eq!(seen["running"][0]["job"]["id"], "long");
    assert_eq!(seen["running"][0]["tier"], "chroot");
    assert_eq!(seen["waiting"], 3);

    node.mayfly(files.words(&["--resume"])).finish().code(125).says(&[&format!("pid {}", running.pid())]);
    let waits = node.mayfly(["status", "waits-1", "--json"]).finish().code(0).json();
    assert_eq!((&waits[0]["state"], &waits[0]["cancelled"]), (&json!("waiting"), &json!(false)));
    assert!(waits[0]["waiting_for"].as_str().unwrap().contains("all 1 slots are taken"), "{waits}");
    let pools = node.mayfly(["pool", "status", "--json"]).finish().code(0).json();
    let leased =
        |kind: &Value| kind["leased"] == 1 && kind["image"].as_str().unwrap().starts_with("minimal@");
    assert!(pools.as_array().unwrap().iter().any(leased), "{pools}");

    node.mayfly(["cancel", "waits-2"]).finish().code(0);
    node.mayfly(["cancel", "local/long"]).finish().code(0);
    node.mayfly(["cancel", "no-such-job"]).finish().code(1);
    running.finish().code(0);
    let mut text = String::new();
    for (id, result) in files.results() {
        write!(text, "{id} {} ", result["outcome"].as_str().unwrap()).unwrap();
    }
    assert_eq!(text.trim(), "long cancelled waits-0 succeeded waits-1 succeeded waits-2 cancelled");
    node.mayfly(["status", "long"]).finish().code(1);
}

#[test]
fn files_that_cannot_be_used_are_refused_before_anything_runs() {
    let node = Node::new();
    let files = files(&node, "refused", &[job("one", &["true"], &json!({}))]);
    let other = node.write("other", "somebody's notes\n");
    for (jobs, results, why) in [
        ("/no/such/file", files.results.as_str(), "cannot read the jobs file"),
        ("/dev/null", &files.results, "not a regular file"),
        (&files.jobs, &other, "is there already"),
        (&files.jobs, "/dev/full", "is there already"),
        (&files.jobs, "/no/such/folder/results", "cannot make"),
    ] {
        node.mayfly(["batch", jobs, "-o", results]).finish().code(125).says(&[why, "hint:"]);
    }
    node.mayfly(["batch", &files.jobs, "-o", &other, "--resume"])
        .finish()
        .code(125)
        .says(&["is no result of mayfly"]);
    assert_eq!(fs::read_to_string(&other).unwrap(), "somebody's notes\n");
    assert_eq!(node.instances(), [""; 0], "no pool was opened for any of them");
}

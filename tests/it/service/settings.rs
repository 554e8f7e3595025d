//! What an operator sets: read again at SIGHUP, and for how long results are kept.

use rustix::process::{Pid, Signal, kill_process};
use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::Version;
use worker::Outcome;

use crate::harness::{Cluster, Host, eventually, script};

fn hang_up(host: &Host) {
    let pid = Pid::from_raw(host.running().pid() as i32).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
}

#[test]
fn tenants_policies_are_read_again_at_sighup_and_a_bad_file_changes_nothing() {
    let test = "service::settings::tenants_policies_are_read_again_at_sighup_and_a_bad_file_changes_nothing";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "longest_timeout = '10m'\n") else { return };
    let mut host = Cluster::idle_host();
    cluster.serve_changed(&mut host, str::to_owned, |mayfly| mayfly);
    let producer = cluster.producer(ReplyBy::Queue);
    let asking = |n: &str| {
        let job = script("true", &json!({ "timeout": "5m" }));
        cluster.answer(cluster.send(&producer, n, job))
    };
    assert_eq!(asking("before").outcome, Outcome::Succeeded);

    let path = host.node.file("changed.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    host.node.write("changed.toml", config.replace("'10m'", "'1m'"));
    hang_up(&host);
    let mut tries = 0..;
    let rejected = eventually("the new policy holds", || {
        let result = asking(&format!("after-{}", tries.next().unwrap()));
        (result.outcome == Outcome::Rejected).then_some(result)
    });
    let why = rejected.error.unwrap().why;
    assert!(why.contains("timeout") && why.contains("60s"), "{why}");

    // Nothing says when a signal has been heeded that changes nothing; the next one has, when it shows.
    host.node.write("changed.toml", "[serve]\nslotz = 3");
    hang_up(&host);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(asking("bad").outcome, Outcome::Rejected);
    host.node.write("changed.toml", config);
    hang_up(&host);
    eventually("the first policy holds again", || {
        (asking(&format!("again-{}", tries.next().unwrap())).outcome == Outcome::Succeeded).then_some(())
    });
    host.stop().code(0).says(&[
        "the configuration cannot be used",
        "slotz",
        "policies are as the configuration says",
    ]);
    host.check();
}

#[test]
fn who_sends_a_job_again_whose_result_is_gone_hears_how_it_ended() {
    let test = "service::settings::who_sends_a_job_again_whose_result_is_gone_hears_how_it_ended";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "") else { return };
    let mut host = Cluster::idle_host();
    let soon = |config: &str| config.replace("[artifacts]", "result_ttl = '1s'\n[artifacts]");
    cluster.serve_changed(&mut host, soon, |mayfly| mayfly);
    let producer = cluster.producer(ReplyBy::Queue);
    let job = script("echo once; exit 3", &json!({}));
    let first = cluster.answer(cluster.send(&producer, "job", job.as_str()));
    assert_eq!((first.outcome, first.stdout.text.as_str()), (Outcome::Failed, "once\n"));
    eventually("the result is gone", || {
        (!cluster.mayfly(&host.node, ["result", &cluster.key("job")]).finish().succeeded()).then_some(())
    });
    let again = cluster.answer(cluster.send(&producer, "job", job.as_str()));
    assert_eq!((again.outcome, again.attempt, again.exit_code), (Outcome::Failed, 1, None));
    assert!(again.stdout.truncated, "there was some");
    let error = again.error.unwrap();
    assert!(error.what.contains("no longer kept") && error.why.contains("ended (failed)"), "{error:?}");
    host.stop().code(0).says(&["stopped; 1 jobs ended here"]);
    host.check();
}

//! `mayfly top`, on a terminal and on none.

use std::io::Read;

use serde_json::json;
use servers::Version;

use crate::{
    harness::{Cluster, Mayfly, eventually, script},
    service::send_many,
};

#[test]
fn a_terminal_is_drawn_on_and_given_back_and_a_pipe_gets_it_once() {
    let test = "service::live::top::a_terminal_is_drawn_on_and_given_back_and_a_pipe_gets_it_once";
    let Some(cluster) = Cluster::new(test, Version::Debian12, "max_running = 1\n") else { return };
    let mut host = cluster.host();
    let failing = script("exit 9", &json!({ "id": "breaks" }));
    cluster.mayfly(&host.node, ["submit", "--wait"]).stdin(failing).finish().code(9);
    let ids = send_many(&cluster, 0, 2, "sleep 1000");
    let (breaks, tenant) = (cluster.key("breaks"), &cluster.tenant);
    let words = [
        "tier    ready  leased  making  quarantined  wanted".to_owned(),
        cluster.key("job-0"),
        "tenant cap 1/1".to_owned(),
        // Of its tenant: one runs and may, one waits, one has ended, and has failed.
        format!("{tenant:<40}1/1       1         1         1"),
        "phase       p50           p95".to_owned(),
        "checkout    ".to_owned(),
        "exit code 9".to_owned(),
        // Among what ended lately, not only among the failures.
        format!("{breaks:<40}failed         chroot  "),
    ];
    eventually("a pipe gets it once", || {
        let said = cluster.mayfly(&host.node, ["top"]).finish().code(0);
        assert!(!said.text().contains('\x1b'), "{}", said.text());
        words.iter().all(|word| said.text().contains(word)).then_some(())
    });

    // `script` gives it a terminal, and hands on what is typed.
    let line = format!("stty rows 60 cols 140; {} top; stty -a", env!("CARGO_BIN_EXE_mayfly"));
    let mut drawn = host.node.place(Mayfly::program("script")).args(["-qfec", &line, "/dev/null"]).start();
    let mut screen = String::new();
    while !words.iter().all(|word| screen.contains(word)) {
        let mut more = [0; 4096];
        let count = drawn.stdout().read(&mut more).unwrap();
        assert!(count > 0, "it ended: {screen}");
        screen.push_str(&String::from_utf8_lossy(&more[..count]));
        // Other tests' processes are on this host too.
        drawn.say("\t");
    }
    assert!(screen.contains("\x1b[?1049h"), "its other screen: {screen:?}");
    drawn.say("q");
    let rest = drawn.finish().code(0);
    let rest = rest.text();
    assert!(rest.contains("\x1b[?1049l") && rest.contains("\x1b[?25h"), "the screen is given back: {rest:?}");
    assert!(
        ["icanon", "echo", "isig"].iter().all(|it| rest.split_whitespace().any(|word| word == *it)),
        "and its keys: {rest:?}"
    );
    super::cancel_all(&cluster, &host, &ids);
    host.stop().code(0);
    host.check();
}

//! A way out for jobs that come by the queue, and the records that must not hold what the host knows.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::{Version, free_port};
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Canary, Cluster, Host, eventually, script};

on_every_broker! {
    a_tenants_job_reaches_what_is_its_tenants_and_its_secrets_are_in_no_record
    a_secret_that_a_lost_job_held_is_shown_and_kept_nowhere
    mayflys_own_page_is_refused_by_name_and_by_address_unless_a_rule_says_so
}

/// Says whether each request has the word.
fn server(injected: Arc<Canary>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = vec![0; 65536];
            let read = stream.read(&mut head).unwrap_or(0);
            let said = injected.is_in(&head[..read]);
            let answer = if said { "with it" } else { "without" };
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n{answer}");
        }
    });
    port
}

fn a_tenants_job_reaches_what_is_its_tenants_and_its_secrets_are_in_no_record(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let mut host = Cluster::idle_host();
    // One that the job gets, one that only a tunnel adds.
    let (held, injected) = (Canary::new(&host.node, "held"), Arc::new(Canary::new(&host.node, "injected")));
    let port = server(injected.clone());
    let door = format!(
        "allow = ['good.test:{port}']\ntunnels = ['model']\n\
         [tunnels.model]\nto = 'good.test:{port}'\nport = 8081\nkind = 'http'\ntls = false\n\
         inject = [{{ header = 'X-Key', secret = 'injected' }}]\n\
         [[secret]]\nname = 'injected'\nfrom = {{ file = '{injected}' }}\n\
         [[secret]]\nname = 'held'\ntenant = '{}'\nfrom = {{ file = '{held}' }}\nto = {{ env = 'HELD' }}\n\
         [network.hosts]\n'good.test' = '127.0.0.1'\n",
        cluster.tenant,
        injected = injected.file,
        held = held.file
    );
    let change = |text: &str| format!("{text}\n{door}");
    cluster.serve_changed(&mut host, change, |mayfly| mayfly.env("MAYFLY_LOG", "debug"));
    let ask = |id: &str, text: &str, more: &serde_json::Value| {
        let mut job = json!({ "id": id, "allow": ["good.test"], "tunnels": ["model"], "secrets": ["held"] });
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        cluster.mayfly(&host.node, ["submit", "--wait"]).stdin(script(text, &job)).finish()
    };
    let text = format!(
        "wget -qO- http://good.test:{port}/; http_proxy= wget -qO- http://$MAYFLY_TUNNEL_MODEL/; echo ${{#HELD}}; \
         wget -qO- http://bad.test/ 2>/dev/null; exit 7"
    );
    let result = ask("reaches", &text, &json!({})).code(7).json();
    assert_eq!(result["stdout"]["text"], format!("withoutwith it{}\n", held.len()), "{result}");
    let egress = &result["egress"];
    assert_eq!(
        (&egress["made"], &egress["refused"], &egress["reasons"]["name"]),
        (&json!(2), &json!(1), &json!(1))
    );
    // What is not the tenant's ends before it begins, and is kept as a dead letter.
    for (field, more) in [
        ("allow[0]: evil.org is not allowed", json!({ "allow": ["evil.org"] })),
        ("tunnels[0]: tenant", json!({ "tunnels": ["other"] })),
        ("secrets[0]: tenant", json!({ "secrets": ["other"] })),
    ] {
        let id = field.split('[').next().unwrap();
        let result = ask(id, "true", &more).code(125).json();
        assert_eq!(result["outcome"], "rejected", "{result}");
        assert!(result["error"]["why"].as_str().unwrap().contains(field), "{result}");
    }
    let dead = cluster.mayfly(&host.node, ["dlq", "ls"]).finish().code(0);
    let (shown, log) = (dead.text().to_owned(), host.stop().code(0).stderr().to_owned());
    let folders = folders(&cluster, &host);
    for canary in [&held, &injected] {
        assert!(!canary.is_in(&shown) && !canary.is_in(&log) && !canary.is_in(result.to_string()));
        assert_eq!(canary.files(&folders), [""; 0]);
    }
    // And the looks do see what is there.
    let name = Canary::of(&host.node, "name", "good.test");
    for folder in [cluster.store.folder(), cluster.broker.folder()].map(Path::to_owned) {
        assert!(
            !name.files(std::slice::from_ref(&folder)).is_empty(),
            "nothing is seen in {}",
            folder.display()
        );
    }
    host.check();
}

/// All that mayfly keeps on the node; all that the store ever wrote; all that the broker has on its disk.
fn folders(cluster: &Cluster, host: &Host) -> Vec<PathBuf> {
    let servers = [cluster.store.folder(), cluster.broker.folder()].map(Path::to_owned);
    host.node.folders().into_iter().chain(servers).collect()
}

fn a_secret_that_a_lost_job_held_is_shown_and_kept_nowhere(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut host, port) = (Cluster::idle_host(), free_port().unwrap());
    let canary = Canary::new(&host.node, "held");
    let secret = format!(
        "[[secret]]\nname = 'held'\ntenant = '{}'\nfrom = {{ file = '{}' }}\nto = {{ env = 'HELD' }}\n",
        cluster.tenant, canary.file
    );
    let change = |text: &str| {
        let text = text.replace("listen = '127.0.0.1:0'", &format!("listen = '127.0.0.1:{port}'"));
        format!("{text}\n{secret}")
    };
    cluster.serve_changed(&mut host, change, |mayfly| mayfly.env("MAYFLY_LOG", "debug"));
    let producer = cluster.producer(ReplyBy::Queue);
    let more = json!({ "id": "lost", "secrets": ["held"], "idempotent": true });
    let sent = cluster.send(&producer, "lost", script("echo holds ${#HELD}; sleep 1000", &more));
    let key = cluster.key("lost");
    let says = |words: &[&str]| {
        let said = cluster.mayfly(&host.node, words.iter().copied().chain([key.as_str()])).finish().code(0);
        assert!(!canary.is_in(&said.stdout) && !canary.is_in(&said.stderr), "{words:?}");
        said.text().to_owned()
    };
    let (holds, page) = (format!("holds {}", canary.len()), format!("/job/{key}"));
    for attempt in 0..scheduler::INFRASTRUCTURE_TRIES {
        let sandbox = eventually("it holds its secret in a sandbox", || {
            host.node
                .sandboxes()
                .into_iter()
                .find(|it| it.job().iter().any(|pid| canary.environments().contains(pid)))
        });
        if attempt == 0 {
            eventually("what it writes is seen", || says(&["logs"]).contains(&holds).then_some(()));
            assert_eq!(canary.arguments(), [0; 0]);
            let job = sandbox.job();
            assert!(canary.environments().iter().all(|pid| job.contains(pid)));
            says(&["status"]);
            for path in ["/", "/metrics", &page] {
                assert!(!canary.is_in(servers::get(port, path, "").unwrap().1), "{path}");
            }
            for (path, word) in [("/events", "lost"), (&format!("/events/{key}"), &holds)] {
                assert!(!canary.is_in(streamed(port, path, word)), "{path}");
            }
            assert_eq!(canary.files(&folders(&cluster, &host)), [""; 0], "while the job holds it");
        }
        for pid in sandbox.agent() {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        eventually("it is gone", || {
            host.node.sandboxes().iter().all(|it| it.generation() != sandbox.generation()).then_some(())
        });
    }
    let result = cluster.answer(sent);
    assert_eq!(result.outcome, Outcome::SandboxLost, "{result:?}");
    assert!(!canary.is_in(serde_json::to_vec(&result).unwrap()));
    assert!(says(&["dlq", "show"]).contains("holds"));
    for words in [&["result"][..], &["status"], &["logs"]] {
        says(words);
    }
    let dead = cluster.mayfly(&host.node, ["dlq", "ls"]).finish().code(0).prints(&[&key]);
    assert!(!canary.is_in(&dead.stdout) && !canary.is_in(servers::get(port, &page, "").unwrap().1));
    assert!(!canary.is_in(host.stop().code(0).stderr()));
    assert_eq!(canary.files(&folders(&cluster, &host)), [""; 0], "when the job is given up");
    host.check();
}

fn mayflys_own_page_is_refused_by_name_and_by_address_unless_a_rule_says_so(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut host, port) = (Cluster::idle_host(), free_port().unwrap());
    let change = |text: &str| {
        let text = text.replace("listen = '127.0.0.1:0'", &format!("listen = '127.0.0.1:{port}'"));
        format!(
            "{text}\nallow = [{{ host = 'localhost:{port}', addresses = ['127.0.0.0/8', '::1/128'] }}, \
             '127.0.0.1:{port}', '*:*']\n"
        )
    };
    cluster.serve_changed(&mut host, change, |mayfly| mayfly);
    let names = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let text = format!(
        "for to in {}; do curl -sS --noproxy '' http://$to/metrics | head -n 1; \
         curl -sp --noproxy '' -o /dev/null -w '%{{http_connect}}\\n' http://$to/metrics; done; true",
        names.join(" ")
    );
    let ask = |allow: &[&str]| {
        let job = script(&text, &json!({ "image": "base", "allow": allow }));
        cluster.mayfly(&host.node, ["submit", "--wait"]).stdin(job).finish().code(0).json()
    };
    let result = ask(&["*:*"]);
    let said = result["stdout"]["text"].as_str().unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("denied: address 127.0.0.1 is not allowed"), "{said}");
    assert_eq!(lines[2], "denied: host localhost leads to a loopback address, which no rule names");
    assert_eq!((lines[1], lines[3], lines.len()), ("403", "403", 4), "{said}");
    assert_eq!(result["egress"]["made"], 0, "{result}");
    // Where a rule says so it is reached, so it was there to be refused.
    let result = ask(&[&names[0], &names[1]]);
    let said = result["stdout"]["text"].as_str().unwrap();
    assert_eq!((said.matches("# HELP mayfly_").count(), said.matches("200\n").count()), (2, 2), "{result}");
    host.stop().code(0);
    host.check();
}

/// What the live page is told as it happens, up to the line with a word.
fn streamed(port: u16, path: &str, word: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").unwrap();
    let (mut told, mut stream) = (String::new(), BufReader::new(stream));
    while !told.contains(word) {
        assert_ne!(stream.read_line(&mut told).unwrap(), 0, "no {word} at {path}: {told}");
    }
    told
}

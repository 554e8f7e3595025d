//! A way out for jobs that come by the queue, and the records that must not hold what the host knows.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    thread,
};

use serde_json::json;
use servers::Version;

use super::on_every_broker;
use crate::harness::{Cluster, script};

on_every_broker! {
    a_tenants_job_reaches_what_is_its_tenants_and_its_secrets_are_in_no_record
}

/// Two secrets: one that the job gets, one that only a tunnel adds.
const HELD: &str = "canary-held-61c0f3";
const INJECTED: &str = "canary-injected-9e27ab";

/// Answers each request with the length of its head.
fn server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = vec![0; 65536];
            let read = stream.read(&mut head).unwrap_or(0);
            let said = String::from_utf8_lossy(&head[..read]).contains(INJECTED);
            let answer = if said { "with it" } else { "without" };
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n{answer}");
        }
    });
    port
}

fn a_tenants_job_reaches_what_is_its_tenants_and_its_secrets_are_in_no_record(test: &str, version: Version) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut host, port) = (Cluster::idle_host(), server());
    let (held, injected) = (host.node.write("held", HELD), host.node.write("injected", INJECTED));
    let door = format!(
        "allow = ['good.test:{port}']\ntunnels = ['model']\n\
         [tunnels.model]\nto = 'good.test:{port}'\nport = 8081\nkind = 'http'\ntls = false\n\
         inject = [{{ header = 'X-Key', secret = 'injected' }}]\n\
         [[secret]]\nname = 'injected'\nfrom = {{ file = '{injected}' }}\n\
         [[secret]]\nname = 'held'\ntenant = '{}'\nfrom = {{ file = '{held}' }}\nto = {{ env = 'HELD' }}\n\
         [network.hosts]\n'good.test' = '127.0.0.1'\n",
        cluster.tenant
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
    assert_eq!(result["stdout"]["text"], format!("withoutwith it{}\n", HELD.len()), "{result}");
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
    for canary in [HELD, INJECTED] {
        assert!(!shown.contains(canary) && !log.contains(canary) && !result.to_string().contains(canary));
        // The ledger and all else on the node; all that the store ever wrote; all that the broker has on its disk.
        for folder in
            [host.node.data_dir().join("ledger").as_path(), cluster.store.folder(), cluster.broker.folder()]
        {
            assert_eq!(holders(folder, canary), [""; 0]);
        }
    }
    // And the looks do see what is there.
    for folder in [cluster.store.folder(), cluster.broker.folder()] {
        assert!(!holders(folder, "good.test").is_empty(), "nothing is seen in {}", folder.display());
    }
    host.check();
}

/// Files below a folder that hold a word.
fn holders(folder: &Path, word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(holders(&path, word));
        } else if fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(word.len()).any(|part| part == word.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

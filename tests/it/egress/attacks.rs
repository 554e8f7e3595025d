//! Jobs that ask for what no job may reach, on a host that has it: a network of the test's own, whose addresses lead to servers.
//! The same jobs reach all of it where a rule names it, so nothing is refused only because nobody would have answered.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::harness::{Mayfly, Place, Tier, on};

/// What a name leads to, and what the job is told of that.
const PLACES: [(&str, &str, &str); 3] = [
    ("metadata.test", "169.254.169.254", "a link-local or metadata"),
    ("private.test", "10.99.0.1", "a private"),
    // A public address that is this host's: its servers would take the job for somebody of the host's.
    ("ours.test", "11.99.0.1", "this host's own"),
];
/// Sends whoever asks on to where he says.
const REDIRECTS: &str = "10.99.0.1:8080";
const NOT_NAMED: &str = "['*:*']";
/// A rule for each place; names may lead there, too.
const NAMED: &str = "[{ host = '*:*', addresses = ['169.254.0.0/16', '10.99.0.1/32', '11.99.0.1/32'] }, \
                     '169.254.169.254', '10.99.0.1', '11.99.0.1']";
/// What a job asks for to which all of that is to be open.
const ASKED: [&str; 4] = ["*:*", "169.254.169.254", "10.99.0.1", "11.99.0.1"];

/// A network, and names, of the test's own.
struct Elsewhere {
    holder: Child,
    reached: Arc<AtomicUsize>,
}

impl Elsewhere {
    fn new(place: &Place) -> Self {
        let lines = PLACES.map(|(name, address, _)| format!("{address} {name}\n"));
        let hosts = place.node.write("hosts", format!("127.0.0.1 localhost\n{}", lines.concat()));
        let script = "hosts=$1; shift; ip link set lo up; for it; do ip address add $it/32 dev lo; done; \
                      mount --bind $hosts /etc/hosts; echo ready; read end";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-ec", script, "sh", &hosts])
            .args(PLACES.map(|(_, address, _)| address))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut word).unwrap();
        assert_eq!(word, "ready\n");
        let elsewhere = Self { holder, reached: Arc::default() };
        elsewhere.serve();
        elsewhere
    }

    /// Servers at all places, which count who comes.
    fn serve(&self) {
        let places = PLACES.map(|(_, address, _)| format!("{address}:80"));
        for listener in self.listeners(places.into_iter().chain([REDIRECTS.to_owned()]).collect()) {
            let (at, reached) = (listener.local_addr().unwrap(), self.reached.clone());
            // It ends with the test's process.
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut head = [0; 4096];
                    let read = stream.read(&mut head).unwrap_or(0);
                    let to = String::from_utf8_lossy(&head[..read])
                        .split(['/', ' '])
                        .nth(2)
                        .unwrap_or("")
                        .to_owned();
                    let answer = if at == REDIRECTS.parse::<SocketAddr>().unwrap() {
                        format!("302 Found\r\nLocation: http://{to}/\r\nContent-Length: 0\r\n\r\n")
                    } else {
                        reached.fetch_add(1, Ordering::SeqCst);
                        "200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned()
                    };
                    let _ = write!(stream, "HTTP/1.1 {answer}");
                }
            });
        }
    }

    /// Bound in there, for whoever serves them.
    fn listeners(&self, places: Vec<String>) -> Vec<TcpListener> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let bind = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            places.into_iter().map(|place| TcpListener::bind(place).unwrap()).collect()
        };
        // A thread is in one network for good.
        thread::spawn(bind).join().unwrap()
    }

    /// What a job is answered that asks for each of these by a request and by CONNECT, and goes where it is sent on; and its
    /// result.
    fn answers(
        &self,
        place: &Place,
        rules: &str,
        allow: &[&str],
        urls: &[String],
    ) -> (Vec<[String; 2]>, Value) {
        let config =
            format!("[tenants.local]\nallow = {rules}\n[network.hosts]\n'first.test' = '10.99.0.1'\n");
        let config = place.node.config(&config);
        let script = "for url; do curl -sSL $url; echo; curl -sp -o /dev/null -w '%{http_connect}\\n' $url; done; true";
        let command =
            ["sh", "-c", script, "sh"].into_iter().map(ToOwned::to_owned).chain(urls.iter().cloned());
        let job = json!({
            "schema_version": 1, "id": "asks", "image": "base", "tier": "chroot", "timeout": "60s",
            "command": command.collect::<Vec<_>>(), "allow": allow,
        });
        let (jobs, results) = (place.node.write("jobs", job.to_string()), place.node.file("results"));
        let (pid, results) = (self.holder.id().to_string(), results.to_str().unwrap());
        let there = ["--target", &pid, "--net", "--mount", env!("CARGO_BIN_EXE_mayfly")];
        let batch = ["batch", &jobs, "-o", results, "--config", &config];
        place.node.place(Mayfly::program("nsenter")).args(there).args(batch).finish().code(0);
        let result: Value = serde_json::from_str(&fs::read_to_string(results).unwrap()).unwrap();
        fs::remove_file(results).unwrap();
        let said = result["stdout"]["text"].as_str().unwrap_or_else(|| panic!("{result}"));
        let lines: Vec<_> = said.lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect();
        assert_eq!(lines.len(), urls.len() * 2, "{result}");
        (lines.chunks(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect(), result)
    }

    fn reached(&self) -> usize {
        self.reached.swap(0, Ordering::SeqCst)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

#[test]
fn what_no_job_may_reach_is_refused_though_it_is_there_and_reached_where_a_rule_names_it() {
    on(Tier::Chroot, |place| {
        let elsewhere = Elsewhere::new(place);
        let urls: Vec<_> = PLACES
            .iter()
            .flat_map(|(name, address, _)| [name, address].map(|to| format!("http://{to}/")))
            .collect();
        let (said, result) = elsewhere.answers(place, NOT_NAMED, &["*:*"], &urls);
        for (pair, (name, address, kind)) in said.chunks(2).zip(PLACES) {
            let by_name = format!("denied: host {name} leads to {kind} address, which no rule names");
            assert_eq!(pair[0], [by_name.as_str(), "403"], "{result}");
            assert!(pair[1][0].starts_with(&format!("denied: address {address} is not allowed")), "{result}");
            assert_eq!(pair[1][1], "403", "{result}");
        }
        let egress = &result["egress"];
        assert_eq!((&egress["made"], &egress["refused"]), (&json!(0), &json!(12)), "{egress}");
        assert_eq!(egress["reasons"], json!({ "address": 6, "literal": 6 }), "{egress}");
        assert_eq!(elsewhere.reached(), 0);
        let (said, result) = elsewhere.answers(place, NAMED, &ASKED, &urls);
        assert!(said.iter().all(|answer| *answer == ["hello", "200"]), "{result}");
        assert_eq!((&result["egress"]["made"], elsewhere.reached()), (&json!(12), 12), "{result}");
    });
}

#[test]
fn who_is_sent_on_to_what_he_may_not_reach_is_refused_there() {
    on(Tier::Chroot, |place| {
        let elsewhere = Elsewhere::new(place);
        let sent_on = |to: &str| format!("http://first.test:8080/{to}");
        let urls: Vec<_> =
            PLACES.iter().flat_map(|(name, address, _)| [name, address].map(|to| sent_on(to))).collect();
        let (said, result) = elsewhere.answers(place, NOT_NAMED, &["*:*"], &urls);
        for ([answer, first], url) in said.iter().zip(&urls) {
            assert!(answer.starts_with("denied: "), "{url}: {answer}");
            assert_eq!(first, "200", "the first of both is reached");
        }
        assert_eq!(result["egress"]["reasons"], json!({ "address": 3, "literal": 3 }), "{result}");
        assert_eq!(elsewhere.reached(), 0);
        let (said, result) = elsewhere.answers(place, NAMED, &ASKED, &urls);
        assert!(said.iter().all(|[answer, _]| answer == "hello"), "{result}");
        assert_eq!(elsewhere.reached(), urls.len());
    });
}

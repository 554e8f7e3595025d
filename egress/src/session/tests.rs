//! The door from the job's side: what is sent to its ports, against real listeners on the loopback.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    Ask, Ended, Hosts, Inject, Limits, Reason, Resolver, Rights, Source, Trust,
    forward::Onward,
    rule::{Host, Target},
};

const TUNNEL: u16 = 8000;

/// A tenant that may reach `test.example`, which is a listener here, at the listener's port.
struct Outside {
    listener: TcpListener,
    rights: Rights,
}

impl Outside {
    async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let hosts = Hosts::from_iter([("test.example".to_owned(), Ipv4Addr::LOCALHOST.into())]);
        let rule = format!("*.example:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let rights = Rights { allow: vec![rule], hosts: Arc::new(hosts), ..Rights::default() };
        Self { listener, rights }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The door of a job that asks for all that there is.
    async fn door(&self) -> Session {
        let tunnels: Vec<_> = self.rights.tunnels.keys().cloned().collect();
        let allow: Vec<_> = self.rights.allow.iter().map(|_| "*.example".to_owned()).collect();
        let plan = self.rights.grant("acme", &Ask { allow: &allow, tunnels: &tunnels, secrets: &[] });
        Session::open(&plan.unwrap().unwrap(), "acme", "job").await.unwrap()
    }

    /// Takes one connection, reads until `head` is over, and answers.
    async fn answers(&self, answer: &str) -> String {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let head = head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        head
    }
}

/// What a job does at one of its ports.
fn connects(door: &Session, port: u16) -> DuplexStream {
    let (job, host) = duplex(64 * 1024);
    door.serve(port, host);
    job
}

/// Reads up to the empty line.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Says something to the proxy and reads all that it answers.
async fn asks(door: &Session, request: &str) -> String {
    let mut job = connects(door, PROXY_PORT);
    // Who is refused early is not listened to any longer.
    let _ = job.write_all(request.as_bytes()).await;
    let _ = job.shutdown().await;
    let mut answer = String::new();
    let _ = job.read_to_string(&mut answer).await;
    answer
}

async fn refusals(door: Session) -> Vec<(String, Reason)> {
    let listed = door.close().await.connections;
    listed.into_iter().filter_map(|it| Some((it.to, it.reason?))).collect()
}

#[tokio::test]
async fn connect_gives_bytes_both_ways_and_is_recorded() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let mut job = connects(&door, PROXY_PORT);
    let request = format!("CONNECT test.example:{} HTTP/1.1\r\nHost: whatever\r\n\r\n", outside.port());
    job.write_all(request.as_bytes()).await.unwrap();
    let (mut stream, _) = outside.listener.accept().await.unwrap();
    assert!(head(&mut job).await.starts_with("HTTP/1.1 200 "));
    job.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    stream.read_exact(&mut four).await.unwrap();
    stream.write_all(b"pong!").await.unwrap();
    drop(stream);
    let mut answer = String::new();
    job.shutdown().await.unwrap();
    job.read_to_string(&mut answer).await.unwrap();
    assert_eq!((&four, answer.as_str()), (b"ping", "pong!"));
    let egress = door.close().await;
    let connection = &egress.connections[0];
    assert_eq!((egress.made, egress.refused, egress.sent, egress.received), (1, 0, 4, 5));
    assert_eq!(connection.to, format!("test.example:{}", outside.port()));
    assert_eq!(connection.address.as_deref(), Some(format!("127.0.0.1:{}", outside.port()).as_str()));
    assert_eq!((connection.via.as_str(), connection.ended), ("proxy", Ended::Closed));
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_at_once_and_says_why() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let port = outside.port();
    let cases = [
        (
            "evil.org:443".to_owned(),
            "403",
            "denied: host evil.org is not allowed for tenant acme",
            Reason::Name,
        ),
        ("test.example:1".to_owned(), "403", "denied: port 1 of host test.example is not", Reason::Port),
        ("169.254.169.254:80".to_owned(), "403", "denied: address 169.254.169.254 is not", Reason::Literal),
        (format!("127.0.0.1:{port}"), "403", "hosts are reached by name", Reason::Literal),
        (format!("[::1]:{port}"), "403", "hosts are reached by name", Reason::Literal),
        (format!("2130706433:{port}"), "400", "denied: ", Reason::Request),
        ("test.example:99999".to_owned(), "400", "denied: has no port", Reason::Request),
        (format!("127.1:{port}"), "400", "denied: ", Reason::Request),
        (format!("nobody.example:{port}"), "502", "cannot be resolved", Reason::Resolve),
    ];
    for (target, status, text, _) in &cases {
        let answer = asks(&door, &format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text),
            "{target}: {answer}"
        );
        let answer =
            asks(&door, &format!("GET http://{target}/ HTTP/1.1\r\nHost: test.example\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text),
            "{target}: {answer}"
        );
    }
    let expected: Vec<_> = cases.iter().flat_map(|case| [case.3, case.3]).collect();
    let found: Vec<_> = refusals(door).await.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_name_that_leads_to_this_host_is_refused_whoever_allowed_it() {
    let mut outside = Outside::new().await;
    let port = outside.port();
    outside.rights.allow = vec![format!("localhost:{port}").parse().unwrap()];
    let allow = ["localhost".to_owned()];
    let plan = outside.rights.grant("acme", &Ask { allow: &allow, tunnels: &[], secrets: &[] }).unwrap();
    let door = Session::open(&plan.unwrap(), "acme", "job").await.unwrap();
    let answer = asks(&door, &format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\n")).await;
    assert!(answer.contains("denied: host localhost leads to a loopback address"), "{answer}");
    assert_eq!(refusals(door).await, [(format!("localhost:{port}"), Reason::Address)]);
}

#[tokio::test]
async fn the_address_that_was_looked_at_is_the_one_that_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut rule: crate::Rule = format!("rebinds.example:{port}").parse().unwrap();
    rule.addresses = vec!["127.0.0.2/32".parse().unwrap()];
    let asked = Arc::new(AtomicU8::new(0));
    let times = asked.clone();
    // First to where it may lead, and from then on to where it may not.
    let look_up = move |_: &str| {
        let first = times.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(vec![if first { [127, 0, 0, 2].into() } else { Ipv4Addr::LOCALHOST.into() }])
    };
    let rights =
        Rights { allow: vec![rule], resolver: Arc::new(Resolver::new(look_up)), ..Rights::default() };
    let allow = ["rebinds.example".to_owned()];
    let plan = rights.grant("acme", &Ask { allow: &allow, tunnels: &[], secrets: &[] }).unwrap();
    let door = Session::open(&plan.unwrap(), "acme", "job").await.unwrap();
    let request = format!("CONNECT rebinds.example:{port} HTTP/1.1\r\n\r\n");
    let mut job = connects(&door, PROXY_PORT);
    job.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut job).await.starts_with("HTTP/1.1 200 "));
    listener.accept().await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let answer = asks(&door, &request).await;
    assert!(answer.contains("leads to a loopback address"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let egress = door.close().await;
    assert_eq!(egress.connections[0].address, Some(format!("127.0.0.2:{port}")));
    assert_eq!((egress.made, egress.reasons), (1, BTreeMap::from([(Reason::Address, 1)])));
}

#[tokio::test]
async fn a_request_goes_on_as_the_host_understood_it_and_not_as_it_came() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let port = outside.port();
    let request = format!(
        "POST http://test.example:{port}/path?q=1 HTTP/1.1\r\nHost: other.example\r\nConnection: x-mine\r\nX-Mine: 1\r\n\
         Proxy-Authorization: Basic x\r\nX-Kept: 2\r\nContent-Length: 4\r\n\r\nbody"
    );
    let answer = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\nX-Theirs: 3\r\n\r\nok";
    let (head, answer) = tokio::join!(outside.answers(answer), asks(&door, &request));
    assert!(head.starts_with("POST /path?q=1 HTTP/1.1\r\n"), "{head}");
    let head = head.to_lowercase();
    assert!(head.contains(&format!("host: test.example:{port}\r\n")) && head.contains("x-kept: 2"), "{head}");
    assert!(
        !head.contains("x-mine") && !head.contains("proxy-") && !head.contains("other.example"),
        "{head}"
    );
    assert!(
        answer.starts_with("HTTP/1.1 201 ") && answer.ends_with("ok") && answer.contains('3'),
        "{answer}"
    );
    assert_eq!(door.close().await.made, 1);
}

#[tokio::test]
async fn an_end_that_hangs_up_without_an_answer_is_counted() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let request = format!("GET http://test.example:{}/ HTTP/1.1\r\n\r\n", outside.port());
    let (_, answer) = tokio::join!(outside.answers(""), asks(&door, &request));
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let egress = door.close().await;
    assert_eq!((egress.made, egress.reasons), (1, BTreeMap::from([(Reason::Connect, 1)])));
    assert_eq!(egress.connections[0].ended, Ended::Failed);
}

#[tokio::test]
async fn what_could_be_two_requests_or_is_none_goes_nowhere() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let url = format!("http://test.example:{}/", outside.port());
    for (what, request) in [
        ("two lengths", format!("POST {url} HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")),
        ("a bad length", format!("POST {url} HTTP/1.1\r\nContent-Length: +1\r\n\r\na")),
        ("a space before the colon", format!("GET {url} HTTP/1.1\r\nX : y\r\n\r\n")),
        ("a giant header", format!("GET {url} HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000))),
        ("many headers", format!("GET {url} HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(500))),
        ("no proxy request", "GET / HTTP/1.1\r\nHost: test.example\r\n\r\n".to_owned()),
        ("a host with a password", url.replace("http://", "GET http://a:b@") + " HTTP/1.1\r\n\r\n"),
        ("encrypted", url.replace("http://", "GET https://") + " HTTP/1.1\r\n\r\n"),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01".to_owned()),
    ] {
        let answer = asks(&door, &request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    let made = door.close().await.made;
    assert_eq!(made, 0, "something was let through");
}

#[tokio::test]
async fn a_length_beside_chunks_is_sent_on_as_chunks_alone() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let request = format!(
        "POST http://test.example:{}/ HTTP/1.1\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        outside.port()
    );
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    let mut job = connects(&door, PROXY_PORT);
    job.write_all(request.as_bytes()).await.unwrap();
    let (first, ()) = tokio::join!(head(&mut job), async {
        // Either it is refused, or what goes on has one length and no other.
        if let Ok(head) = timeout(Duration::from_secs(2), outside.answers(answer)).await {
            let head = head.to_lowercase();
            assert!(
                head.contains("transfer-encoding: chunked") && !head.contains("content-length"),
                "{head}"
            );
        }
    });
    assert!(first.starts_with("HTTP/1.1 204") || first.starts_with("HTTP/1.1 400"), "{first}");
}

#[tokio::test]
async fn a_query_without_a_path_before_it_is_kept() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let request = format!("GET http://test.example:{}?x=1 HTTP/1.1\r\n\r\n", outside.port());
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    let (head, _) = tokio::join!(outside.answers(answer), asks(&door, &request));
    assert!(head.starts_with("GET /?x=1 HTTP/1.1\r\n"), "{head}");
}

/// A tunnel that adds a key to each request.
fn injecting(outside: &Outside, key: &Path) -> Fixed {
    let secret = SecretRule { name: "key".into(), from: Source::File(key.to_owned()), to: None };
    let inject = Inject {
        header: "Authorization".into(),
        before: "Bearer ".into(),
        behind: String::new(),
        secret: Arc::new(secret),
    };
    let to = Target { host: Host::Name("test.example".into()), port: outside.port() };
    let kind = Kind::Http { tls: None, inject: vec![inject] };
    Fixed { name: "model".into(), port: TUNNEL, to, addresses: Vec::new(), kind }
}

#[tokio::test]
async fn a_tunnel_adds_the_key_that_the_job_does_not_hold() {
    let (dir, mut outside) = (tempfile::tempdir().unwrap(), Outside::new().await);
    let key = dir.path().join("key");
    std::fs::write(&key, "s3cret\n").unwrap();
    outside.rights.tunnels.insert("model".into(), Arc::new(injecting(&outside, &key)));
    let door = outside.door().await;
    assert_eq!(door.ports(), [PROXY_PORT, TUNNEL]);
    assert_eq!(door.environment()["MAYFLY_TUNNEL_MODEL"], "127.0.0.1:8000");
    assert!(!format!("{door:?} {:?}", door.environment()).contains("s3cret"));
    let mut job = connects(&door, TUNNEL);
    let request = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer mine\r\nConnection: close\r\n\r\n";
    job.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let answering = outside.answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (head, _) = tokio::join!(answering, job.read_to_string(&mut answer));
    assert!(head.starts_with("GET /v1/models HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains(&format!("host: test.example:{}", outside.port())), "{head}");
    assert!(head.contains("Bearer s3cret") && !head.contains("mine"), "{head}");
    assert!(answer.ends_with("ok") && !answer.contains("s3cret"), "{answer}");
    let egress = door.close().await;
    assert_eq!((egress.made, egress.connections[0].via.as_str()), (1, "model"));
    assert!(!format!("{egress:?}").contains("s3cret"));
}

/// A door with a tunnel to the listener outside that adds the key `s3cret`, and the folder in which that lies.
async fn door_with_key(outside: &mut Outside, tls: Option<Trust>) -> (Session, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "s3cret").unwrap();
    let mut fixed = injecting(outside, &key);
    if let Kind::Http { tls: mine, .. } = &mut fixed.kind {
        *mine = tls;
    }
    outside.rights.tunnels.insert("model".into(), Arc::new(fixed));
    (outside.door().await, dir)
}

#[tokio::test]
async fn a_job_cannot_have_the_key_told_by_an_echo_of_its_request() {
    let mut outside = Outside::new().await;
    let (door, _dir) = door_with_key(&mut outside, None).await;
    let mut job = connects(&door, TUNNEL);
    job.write_all(b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    job.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("takes no TRACE"), "{answer}");
    let egress = door.close().await;
    assert_eq!((egress.made, egress.reasons), (0, BTreeMap::from([(Reason::Request, 1)])));
}

#[tokio::test]
async fn a_job_cannot_strip_the_key_by_calling_it_a_header_of_its_connection() {
    let mut outside = Outside::new().await;
    let (door, _dir) = door_with_key(&mut outside, None).await;
    let mut job = connects(&door, TUNNEL);
    let request =
        "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: mine\r\nConnection: close, authorization\r\n\r\n";
    job.write_all(request.as_bytes()).await.unwrap();
    let head = outside.answers("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(head.contains("Bearer s3cret") && !head.contains("mine"), "{head}");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_never_begins_tls_is_given_up_and_that_is_counted() {
    let mut outside = Outside::new().await;
    let (door, _dir) = door_with_key(&mut outside, Some(Trust::load(None).unwrap())).await;
    let mut job = connects(&door, TUNNEL);
    job.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let (_silent, _) = outside.listener.accept().await.unwrap();
    let (began, mut answer) = (tokio::time::Instant::now(), String::new());
    job.read_to_string(&mut answer).await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(10), "given up after {:?}", began.elapsed());
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("no TLS stood within 10s"), "{answer}");
    let egress = door.close().await;
    assert_eq!((egress.made, egress.reasons), (1, BTreeMap::from([(Reason::Connect, 1)])));
    assert_eq!(egress.connections[0].ended, Ended::Failed);
}

#[tokio::test]
async fn an_end_that_speaks_no_tls_is_counted() {
    let mut outside = Outside::new().await;
    let (door, _dir) = door_with_key(&mut outside, Some(Trust::load(None).unwrap())).await;
    let mut job = connects(&door, TUNNEL);
    job.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut plain, _) = outside.listener.accept().await.unwrap();
    plain.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    job.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let egress = door.close().await;
    assert_eq!((egress.made, egress.reasons), (1, BTreeMap::from([(Reason::Connect, 1)])));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_not_waited_for_longer_than_its_time() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let began = tokio::time::Instant::now();
    let mut job = connects(&door, PROXY_PORT);
    job.write_all(b"GET http://test.example/ HTTP/1.1\r\n").await.unwrap();
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if job.write_all(b"X: y\r\n").await.is_err() {
                break;
            }
        }
    };
    assert!(timeout(Duration::from_secs(60), drip).await.is_ok(), "it is listened to for ever");
    assert!((30..=31).contains(&began.elapsed().as_secs()), "closed after {:?}", began.elapsed());
    assert_eq!(door.close().await.made, 0);
}

#[test]
fn only_the_schemes_own_port_is_left_out_of_the_host() {
    let host = |port, unsaid_port| {
        let target = Target { host: Host::Name("a.b".into()), port };
        Onward { target: &target, unsaid_port, headers: &[] }.authority()
    };
    assert_eq!((host(80, 80), host(443, 443)), ("a.b".to_owned(), "a.b".to_owned()));
    assert_eq!((host(80, 443), host(443, 80)), ("a.b:80".to_owned(), "a.b:443".to_owned()));
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_opens_no_door() {
    let mut outside = Outside::new().await;
    outside.rights.tunnels.insert("model".into(), Arc::new(injecting(&outside, Path::new("/nowhere"))));
    let ask = Ask { allow: &[], tunnels: &["model".to_owned()], secrets: &[] };
    let plan = outside.rights.grant("acme", &ask).unwrap().unwrap();
    let error = Session::open(&plan, "acme", "job").await.unwrap_err().to_string();
    assert!(error.starts_with("secret key: cannot read /nowhere"), "{error}");
}

#[tokio::test]
async fn a_job_has_so_many_connections_and_so_many_bytes_and_no_more() {
    let mut outside = Outside::new().await;
    outside.rights.limits = Limits { connections: 2, bytes: 1000, ..Limits::default() };
    let door = outside.door().await;
    let connect = format!("CONNECT test.example:{} HTTP/1.1\r\n\r\n", outside.port());
    let mut jobs = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut job = connects(&door, PROXY_PORT);
        job.write_all(connect.as_bytes()).await.unwrap();
        assert!(head(&mut job).await.starts_with("HTTP/1.1 200 "));
        streams.push(outside.listener.accept().await.unwrap().0);
        jobs.push(job);
    }
    let answer = asks(&door, &connect).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("as many connections"), "{answer}");
    streams[0].write_all(&[b'x'; 5000]).await.unwrap();
    let mut received = Vec::new();
    let _ = jobs[0].read_to_end(&mut received).await;
    assert!(received.len() <= 1000, "{} bytes came through", received.len());
    let answer = asks(&door, &connect).await;
    assert!(answer.contains("allowance of 1000 bytes is used up"), "{answer}");
    let egress = door.close().await;
    let reasons: Vec<_> = egress.connections.iter().filter_map(|it| it.reason).collect();
    assert_eq!(reasons, [Reason::Bytes, Reason::Connections, Reason::Bytes]);
    assert_eq!(egress.reasons, BTreeMap::from([(Reason::Bytes, 2), (Reason::Connections, 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_hammers_at_the_door_is_told_so_and_heard_again_later() {
    let mut outside = Outside::new().await;
    outside.rights.limits.attempts = 1;
    let door = outside.door().await;
    let request = "CONNECT evil.org:443 HTTP/1.1\r\n\r\n";
    for _ in 0..5 {
        assert!(asks(&door, request).await.starts_with("HTTP/1.1 403 "));
    }
    let answer = asks(&door, request).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("faster than it may"), "{answer}");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(asks(&door, request).await.starts_with("HTTP/1.1 403 "));
    let reasons = door.close().await.reasons;
    assert_eq!(reasons, BTreeMap::from([(Reason::Name, 6), (Reason::Attempts, 1)]));
}

#[tokio::test]
async fn a_job_that_is_tried_again_goes_on_with_what_is_left_of_its_bytes() {
    let mut outside = Outside::new().await;
    outside.rights.limits.bytes = 10;
    let allow = ["*.example".to_owned()];
    let plan = outside.rights.grant("acme", &Ask { allow: &allow, tunnels: &[], secrets: &[] }).unwrap();
    let plan = plan.unwrap();
    let connect = format!("CONNECT test.example:{} HTTP/1.1\r\n\r\n", outside.port());
    let first = Session::open(&plan, "acme", "job").await.unwrap();
    let mut job = connects(&first, PROXY_PORT);
    job.write_all(connect.as_bytes()).await.unwrap();
    let (mut stream, _) = outside.listener.accept().await.unwrap();
    head(&mut job).await;
    job.write_all(b"ten bytes!").await.unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
    assert_eq!(first.close().await.sent, 10);
    let second = Session::open(&plan, "acme", "job").await.unwrap();
    let mut job = connects(&second, PROXY_PORT);
    job.write_all(connect.as_bytes()).await.unwrap();
    let answer = head(&mut job).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("mayfly-denied: bytes"), "{answer}");
}

/// The first bytes of TLS for a name.
fn hello(name: &str) -> Vec<u8> {
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn where_a_rule_asks_for_it_tls_must_be_for_the_name_that_was_asked_for() {
    let mut outside = Outside::new().await;
    outside.rights.allow[0].sni = true;
    let door = outside.door().await;
    let connect = format!("CONNECT test.example:{} HTTP/1.1\r\n\r\n", outside.port());
    for (begins, passes) in [
        (hello("test.example"), true),
        (hello("other.example"), false),
        (hello("127.0.0.1"), false),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false),
    ] {
        let mut job = connects(&door, PROXY_PORT);
        job.write_all(connect.as_bytes()).await.unwrap();
        assert!(head(&mut job).await.starts_with("HTTP/1.1 200 "));
        let mut stream = outside.listener.accept().await.unwrap().0;
        // In two pieces, as a network may bring it.
        job.write_all(&begins[..3]).await.unwrap();
        job.write_all(&begins[3..]).await.unwrap();
        let mut arrived = vec![0; begins.len()];
        assert_eq!(stream.read_exact(&mut arrived).await.is_ok(), passes);
        assert!(!passes || arrived == begins, "it is changed on the way");
    }
    let plain = format!("GET http://test.example:{}/ HTTP/1.1\r\n\r\n", outside.port());
    let answer = asks(&door, &plain).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("by TLS alone"), "{answer}");
    let egress = door.close().await;
    let reasons: Vec<_> = egress.connections.iter().filter_map(|it| it.reason).collect();
    assert_eq!(reasons, [Reason::Sni; 4]);
    assert_eq!((egress.made, egress.refused), (4, 4), "what is plain is refused before it is connected");
    assert_eq!(egress.reasons, BTreeMap::from([(Reason::Sni, 4)]));
}

#[tokio::test]
async fn a_door_that_closes_leaves_no_connection() {
    let outside = Outside::new().await;
    let door = outside.door().await;
    let mut job = connects(&door, PROXY_PORT);
    let request = format!("CONNECT test.example:{} HTTP/1.1\r\n\r\n", outside.port());
    job.write_all(request.as_bytes()).await.unwrap();
    let (mut tunnel, _) = outside.listener.accept().await.unwrap();
    let plain = format!("GET http://test.example:{}/ HTTP/1.1\r\n\r\n", outside.port());
    let mut other = connects(&door, PROXY_PORT);
    other.write_all(plain.as_bytes()).await.unwrap();
    let (mut request, _) = outside.listener.accept().await.unwrap();
    head(&mut request).await;
    let egress = door.close().await;
    for stream in [&mut tunnel, &mut request] {
        let ended: Result<usize, _> = TcpStream::read(stream, &mut [0]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "it is open still");
    }
    let ended: Vec<_> = egress.connections.iter().map(|it| it.ended).collect();
    assert_eq!(ended, [Ended::JobEnded, Ended::JobEnded]);
}

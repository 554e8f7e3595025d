//! Connections by the hundred, connections that are full, what is no connection at all, and what becomes of one whose job is over.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Barrier, Condvar, Mutex, mpsc},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::door::{Outside, TUNNEL, egress};
use crate::harness::{Place, Tier, eventually, in_guest, on_every_tier, result_of};

on_every_tier! {
    hundreds_of_connections_are_open_at_once
    garbage_in_every_descriptor_and_at_the_door_harms_nobody
    a_full_tunnel_holds_up_nothing_else_of_its_job
    a_tunnel_goes_with_its_job_however_that_ends_while_mayfly_goes_on
    what_a_cancelled_job_reached_is_in_its_result
}

/// Where a machine is emulated everything takes its time.
fn is_slow(place: &Place) -> bool {
    place.tier == Tier::Vm || in_guest()
}

fn hundreds_of_connections_are_open_at_once(place: &Place) {
    let count = if is_slow(place) { 100 } else { 250 };
    let all = Arc::new(Barrier::new(count));
    let outside = Outside::serving(move |mut stream, _| {
        let mut word = String::new();
        if stream.read_line(&mut word).is_ok_and(|read| read > 0) {
            // Nobody is answered before all are there.
            all.wait();
            let _ = stream.get_mut().write_all(word.as_bytes());
        }
    });
    let program = format!(
        "
import socket
socks = [socket.create_connection(('127.0.0.1', 8100)) for _ in range({count})]
for n, s in enumerate(socks):
    s.sendall(b'%d\\n' % n)
for n, s in enumerate(socks):
    assert s.makefile('rb').readline() == b'%d\\n' % n
print('all')
"
    );
    let config = format!("{TUNNEL}[network]\nconnections = 256\n");
    let job = place.python(&program).args(["--tunnel", "there", "--timeout", "100s"]);
    let result = result_of(outside.run(place, job, &config), 0);
    assert_eq!(result["stdout"]["text"], "all\n", "{result}");
    let egress = egress(&result);
    assert_eq!((&egress["made"], &egress["refused"]), (&count.into(), &0.into()), "{egress}");
}

fn garbage_in_every_descriptor_and_at_the_door_harms_nobody(place: &Place) {
    let outside = Outside::serving(|mut stream, kept| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        kept.push(format!("{} bytes", all.len()));
    });
    // Frames as the agent and the host write them, of each kind, for streams of the channel, of the job and of tunnels.
    let program = "
import os, random, socket, struct
dice = random.Random(7)
frames = b''.join(
    struct.pack('<IBBH', len(load), kind, 0, stream) + load
    for kind in range(256) for stream in (0, 1, 2, 3, 0x8000, 0x8001) for load in (b'', b'\\0' * 8)
)
noise = dice.randbytes(200000)
for fd in range(1024):
    if fd != 1:
        try:
            os.set_blocking(fd, False)
            for load in (frames, noise[:5000]):
                os.write(fd, load)
        except OSError:
            pass
def say(port, load):
    said = b''
    with socket.create_connection(('127.0.0.1', port)) as s:
        try:
            s.sendall(load)
            s.shutdown(socket.SHUT_WR)
            while piece := s.recv(65536):
                said += piece
        except OSError:
            pass
    return said
for load in (frames, noise, b'\\xff' * 8, b'\\0' * 100000, b'CONNECT ', b'GET /\\r\\n'):
    said = say(3128, load)
    assert said == b'' or said.startswith(b'HTTP/1.1 4'), said
say(8100, frames)
print(say(3128, b'CONNECT bad.test:80 HTTP/1.1\\r\\nHost: bad.test\\r\\n\\r\\n').split(b'\\r\\n')[0].decode())
";
    let job = place.python(program).args(["--tunnel", "there", "--allow", "good.test", "--timeout", "100s"]);
    let result = result_of(outside.run(place, job, TUNNEL), 0);
    assert_eq!(
        (result["stdout"]["text"].as_str(), &result["exit_code"]),
        (Some("HTTP/1.1 403 Forbidden\n"), &json!(0)),
        "{result}"
    );
    // What is sent to a tunnel is what arrives, whatever it looks like; the proxy makes nothing of it, and goes on.
    let egress = egress(&result);
    assert_eq!((&egress["made"], &egress["sent"]), (&1.into(), &FRAMES.into()), "{egress}");
    assert_eq!(egress["reasons"]["name"], 1, "{egress}");
    let heads =
        eventually("the other end has heard all", || Some(outside.heads()).filter(|heads| !heads.is_empty()));
    assert_eq!(heads, [format!("{FRAMES} bytes")]);
}

/// How long the frames of the test above are: each once without and once with eight bytes behind its head.
const FRAMES: usize = 256 * 6 * (8 + 16);

fn a_full_tunnel_holds_up_nothing_else_of_its_job(place: &Place) {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let outside = Outside::serving(move |mut stream, _| {
        // Whoever waits for this one's reading waits until the test has seen the job's output.
        let _ = released.lock().unwrap().recv();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let _ = write!(stream.get_mut(), "{} bytes", all.len());
        let _ = stream.get_mut().shutdown(Shutdown::Write);
    });
    let program = format!(
        "
import select, socket
s = socket.create_connection(('127.0.0.1', 8100))
s.setblocking(False)
sent = 0
while sent < {MOST} and select.select([], [s], [], 2)[1]:
    sent += s.send(b'x' * 65536)
print('full', sent, flush=True)
for _ in range(1024):
    print('y' * 1023)
print('still here', flush=True)
s.setblocking(True)
s.shutdown(socket.SHUT_WR)
print(sent, 'of', s.makefile().read())
"
    );
    let job = place.python(&program).args(["--tunnel", "there", "--timeout", "110s"]);
    let mut running = outside.run(place, job, TUNNEL).start();
    let line = running.line();
    let sent: usize = line.strip_prefix("full ").unwrap().parse().unwrap();
    assert!(sent < MOST, "nobody reads, and it goes on");
    for _ in 0..1024 {
        assert_eq!(running.line().len(), 1023);
    }
    assert_eq!(running.line(), "still here");
    release.send(()).unwrap();
    assert_eq!(running.finish().code(0).text(), format!("{sent} of {sent} bytes"));
}

/// More than all buffers on the way can hold.
const MOST: usize = 64 * 1024 * 1024;

/// Waits in a job until its connection is there, and does something then.
fn held(name: &str, then: &str) -> String {
    format!(
        "(echo {name}; exec sleep 1000) | nc 127.0.0.1 8100 >/tmp/yes & \
         until [ -s /tmp/yes ]; do sleep 0.05; done; cat /tmp/yes; {then}"
    )
}

/// Those whose end was heard outside.
#[derive(Default)]
struct Heard {
    ended: Mutex<Vec<String>>,
    changed: Condvar,
    /// This side of each is left open: the job's end is what ends it.
    open: Mutex<Vec<BufReader<TcpStream>>>,
}

impl Heard {
    /// Answers a job's word, and notes when the other side has ended. `last` is answered only after all
    /// others have ended.
    fn serve(&self, mut stream: BufReader<TcpStream>, others: usize) {
        let mut name = String::new();
        if !stream.read_line(&mut name).is_ok_and(|read| read > 0) {
            return;
        }
        let name = name.trim().to_owned();
        if name == "last" {
            let ended = self.ended.lock().unwrap();
            let wait = self.changed.wait_timeout_while(ended, PATIENCE, |ended| ended.len() < others);
            drop(wait.unwrap());
            // Its client ends with this.
            return;
        }
        let _ = stream.get_mut().write_all(b"yes\n");
        let _ = stream.read_to_end(&mut Vec::new());
        self.open.lock().unwrap().push(stream);
        self.ended.lock().unwrap().push(name);
        self.changed.notify_all();
    }
}

/// Longer than a test may take: whoever waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

fn a_tunnel_goes_with_its_job_however_that_ends_while_mayfly_goes_on(place: &Place) {
    // By then each is connected.
    let timeout = if is_slow(place) { "20s" } else { "5s" };
    let daemon = "(setsid sh -c '(echo daemon; exec sleep 1000) | nc 127.0.0.1 8100 >/tmp/yes' &); \
                  until [ -s /tmp/yes ]; do sleep 0.05; done; cat /tmp/yes";
    let jobs = [
        ("timed-out", held("timed-out", "exec sleep 1000"), timeout, "timed_out"),
        ("killed", format!("trap '' TERM; {}", held("killed", "exec sleep 1000")), timeout, "timed_out"),
        ("bomb", held("bomb", "exec dd if=/dev/zero of=/dev/null bs=1G count=1"), "100s", "out_of_memory"),
        ("daemon", daemon.to_owned(), "100s", "succeeded"),
    ];
    let heard = Arc::new(Heard::default());
    let (told, others) = (heard.clone(), jobs.len());
    let outside = Outside::serving(move |stream, _| told.serve(stream, others));
    // It is there from the first moment, so mayfly is when it is answered.
    let last = ("last", "echo last | nc 127.0.0.1 8100".to_owned(), "100s", "succeeded");
    let line = |(id, script, timeout, _): &(&str, String, &str, &str)| {
        let job = json!({
            "schema_version": 1, "id": id, "image": "minimal", "tier": place.tier.name(), "tunnels": ["there"],
            "command": ["sh", "-c", script], "timeout": timeout, "grace": "300ms", "limits": { "memory": "32MiB" },
        });
        job.to_string()
    };
    let lines: Vec<_> = jobs.iter().chain([&last]).map(line).collect();
    let config =
        format!("{TUNNEL}[tenants.local]\ntunnels = ['there']\n").replace("PORT", &outside.port.to_string());
    let (file, results) = (place.node.write("jobs", lines.join("\n")), place.node.file("results"));
    let words = [
        "batch",
        &file,
        "-o",
        results.to_str().unwrap(),
        "--config",
        &place.node.config(&config),
        "--jobs",
        "5",
    ];
    place.node.mayfly(words).finish().code(0);
    let text = fs::read_to_string(results).unwrap();
    let results = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let results: BTreeMap<_, _> = results.map(|it| (it["id"].as_str().unwrap().to_owned(), it)).collect();
    assert_eq!(
        results["last"]["outcome"], "succeeded",
        "the others' ends were heard before its own: {results:#?}"
    );
    for (id, _, _, outcome) in &jobs {
        let result = &results[*id];
        assert_eq!(
            (&result["outcome"], &result["stdout"]["text"]),
            (&json!(outcome), &json!("yes\n")),
            "{result}"
        );
        let egress = egress(result);
        assert_eq!((&egress["made"], &egress["refused"]), (&json!(1), &json!(0)), "{id}: {egress}");
        assert_eq!(
            (&egress["sent"], &egress["received"]),
            (&json!(id.len() + 1), &json!(4)),
            "{id}: {egress}"
        );
        // Whether its process or its sandbox went first is a matter of chance.
        let ended = egress["connections"][0]["ended"].as_str().unwrap();
        assert!(["job_ended", "failed"].contains(&ended), "{id}: {egress}");
    }
}

fn what_a_cancelled_job_reached_is_in_its_result(place: &Place) {
    let (say, heard) = mpsc::channel();
    let outside = Outside::serving(move |mut stream, _| {
        let mut word = String::new();
        let _ = stream.read_line(&mut word);
        say.send(word).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let job =
        place.shell("(echo held; exec sleep 1000) | nc 127.0.0.1 8100").args(["--tunnel", "there", "--json"]);
    let running = outside.run(place, job, TUNNEL).start();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "held\n");
    running.signal(Signal::INT);
    let result = running.finish().code(130).json();
    assert_eq!(result["outcome"], "cancelled", "{result}");
    let egress = egress(&result);
    assert_eq!((&egress["made"], &egress["sent"]), (&json!(1), &json!(5)), "{egress}");
}

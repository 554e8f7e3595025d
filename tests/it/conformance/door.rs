//! What a job reaches through its way out, and what it does not. Outside is a server of the test's own, on the loopback.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use crate::harness::{Canary, Mayfly, Place, Tier, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    a_host_that_is_allowed_is_reached_and_any_other_is_refused
    a_tunnel_leads_to_its_place_and_each_way_ends_by_itself
    a_key_is_added_outside_and_never_seen_inside
    a_secret_reaches_the_job_and_no_record
    a_secret_is_nowhere_on_the_host_but_in_its_sandbox
    a_job_that_was_given_no_way_out_has_none
    a_hundred_connections_at_once_carry_what_they_should
    bulk_arrives_whole_while_the_jobs_own_output_goes_on
    a_connection_that_is_open_at_the_end_goes_with_its_job
}

by_libvirt_too! {
    a_host_that_is_allowed_is_reached_and_any_other_is_refused
    a_key_is_added_outside_and_never_seen_inside
    a_secret_is_nowhere_on_the_host_but_in_its_sandbox
}

/// A key that is to be seen nowhere but outside.
const CANARY: &str = "canary-7f3d9c52e1";

/// Somebody outside. What it was asked is kept.
pub(super) struct Outside {
    pub(super) port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Outside {
    /// Answers each connection in a thread of its own.
    pub(super) fn serving(
        answer: impl Fn(BufReader<TcpStream>, &mut Vec<String>) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (heads.clone(), Arc::new(answer));
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, answer) = (kept.clone(), answer.clone());
                thread::spawn(move || {
                    let mut head = Vec::new();
                    answer(BufReader::new(stream), &mut head);
                    kept.lock().unwrap().extend(head);
                });
            }
        });
        Self { port, heads }
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// A run with this configuration, in which `PORT` is the server's port.
    pub(super) fn run(&self, place: &Place, mayfly: Mayfly, config: &str) -> Mayfly {
        let config = place.node.config(&config.replace("PORT", &self.port.to_string()));
        mayfly.args(["--config", &config])
    }
}

/// One request, one answer.
fn says_hello(mut stream: BufReader<TcpStream>, kept: &mut Vec<String>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    kept.push(head);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
    let _ = stream.get_mut().write_all(answer);
}

/// Reads to the end, then says how much it was.
fn counts(mut stream: BufReader<TcpStream>, _: &mut Vec<String>) {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let _ = write!(stream.get_mut(), "{} bytes", all.len());
    let _ = stream.get_mut().shutdown(Shutdown::Write);
}

pub(super) fn egress(result: &Value) -> &Value {
    &result["egress"]
}

fn a_host_that_is_allowed_is_reached_and_any_other_is_refused(place: &Place) {
    let outside = Outside::serving(says_hello);
    let url = |host: &str| format!("http://{host}:{}/", outside.port);
    let job = [
        "sh",
        "-c",
        "curl -sS $1; curl -sSp $1; curl -sS $2; curl -s --noproxy '' -o /dev/null -w '%{http_code} ' $3; \
         curl -sSp $2 2>&1; curl -s --noproxy '*' $1 || echo no network; ls /sys/class/net 2>/dev/null; true",
        "sh",
        &url("good.test"),
        &url("bad.test"),
        &url("127.0.0.1"),
    ];
    let run = place.run_in("base", job).args(["--allow", &format!("good.test:{}", outside.port)]);
    let hosts = "[network.hosts]\n'good.test' = '127.0.0.1'\n'bad.test' = '127.0.0.1'\n";
    let result = result_of(outside.run(place, run, hosts).args(["--timeout", "60s"]), 0);
    let said = result["stdout"]["text"].as_str().unwrap();
    let refusal = "denied: host bad.test is not allowed for tenant local";
    assert!(said.starts_with(&format!("hello\nhello\n{refusal}\n")), "{said}\n{result}");
    assert!(said.contains("403 ") && said.contains("no network"), "{said}");
    let interfaces = said.split("no network\n").nth(1).unwrap();
    assert!(["", "lo\n"].contains(&interfaces), "{interfaces}");
    assert_eq!(outside.heads().len(), 2, "{:?}", outside.heads());
    let egress = egress(&result);
    assert_eq!((&egress["made"], &egress["refused"]), (&2.into(), &3.into()), "{egress}");
    let first = &egress["connections"][0];
    assert_eq!(first["to"], format!("good.test:{}", outside.port));
    assert_eq!((first["via"].as_str(), first["ended"].as_str()), (Some("proxy"), Some("closed")), "{egress}");
    let reasons: Vec<_> = egress["connections"].as_array().unwrap().iter().map(|it| &it["reason"]).collect();
    assert_eq!(reasons.iter().filter(|reason| ***reason == "name").count(), 2, "{egress}");
    assert_eq!(reasons.iter().filter(|reason| ***reason == "literal").count(), 1, "{egress}");
}

pub(super) const TUNNEL: &str = "[tunnels.there]\nto = '127.0.0.1:PORT'\nport = 8100\n";

fn a_tunnel_leads_to_its_place_and_each_way_ends_by_itself(place: &Place) {
    let outside = Outside::serving(counts);
    let job = place.shell("echo $MAYFLY_TUNNEL_THERE; head -c 100000 /dev/zero | nc 127.0.0.1 8100");
    let run = outside.run(place, job, TUNNEL).args(["--tunnel", "there"]);
    let result = result_of(run, 0);
    assert_eq!(result["stdout"]["text"], "127.0.0.1:8100\n100000 bytes", "{result}");
    let egress = egress(&result);
    assert_eq!((&egress["sent"], &egress["received"]), (&100_000.into(), &12.into()), "{egress}");
    assert_eq!(egress["connections"][0]["via"], "there");
}

fn a_key_is_added_outside_and_never_seen_inside(place: &Place) {
    let outside = Outside::serving(says_hello);
    let key = place.node.write("key", CANARY);
    let config = format!(
        "[tunnels.model]\nto = 'model.test:PORT'\nport = 8101\nkind = 'http'\ntls = false\n\
         inject = [{{ header = 'Authorization', value = 'Bearer {{secret}}', secret = 'key' }}]\n\
         [[secret]]\nname = 'key'\nfrom = {{ file = '{key}' }}\n[network.hosts]\n'model.test' = '127.0.0.1'\n"
    );
    let job = place.shell(
        "wget -qO- http://$MAYFLY_TUNNEL_MODEL/v1; env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'",
    );
    let result = result_of(outside.run(place, job, &config).args(["--tunnel", "model"]), 0);
    assert!(result["stdout"]["text"].as_str().unwrap().starts_with("hello\n"), "{result}");
    assert!(!result.to_string().contains(CANARY), "{result}");
    let head = &outside.heads()[0];
    let expected = format!("bearer {CANARY}\r\n");
    assert!(head.starts_with("GET /v1 HTTP/1.1\r\n") && head.to_lowercase().contains(&expected), "{head}");
    assert!(head.contains(&format!("model.test:{}", outside.port)), "{head}");
}

fn a_secret_reaches_the_job_and_no_record(place: &Place) {
    let config = place.node.config(&format!(
        "[[secret]]\nname = 'variable'\ntenant = 'local'\nfrom = {{ env = 'WHERE_IT_IS' }}\nto = {{ env = 'API_KEY' }}\n\
         [[secret]]\nname = 'file'\ntenant = 'local'\nfrom = {{ command = ['printf', '{}', '{CANARY}'] }}\n\
         to = {{ file = '/job/.key' }}\n",
        "%s"
    ));
    let check = format!(
        "[ \"$API_KEY\" = {CANARY} ] && [ \"$(cat /job/.key)\" = {CANARY} ] && stat -c %a /job/.key; echo $WHERE_IT_IS"
    );
    // Not in the job's own words, which are shown.
    let check = check.replace(CANARY, "$(printf '%s%s' canary-7f3d 9c52e1)");
    let run = place.shell(&check).args(["--config", &config, "--secret", "variable", "--secret", "file"]);
    let result = result_of(run.env("WHERE_IT_IS", CANARY), 0);
    assert_eq!(result["stdout"]["text"], "600\n\n", "{result}");
    assert!(!result.to_string().contains(CANARY), "{result}");
    let ledger = serde_json::to_string(&place.node.ledger()).unwrap();
    assert!(!ledger.contains(CANARY), "{ledger}");
}

fn a_secret_is_nowhere_on_the_host_but_in_its_sandbox(place: &Place) {
    let canary = Canary::new(&place.node, "secret");
    let config = place.node.config(&format!(
        "[[secret]]\nname = 'variable'\ntenant = 'local'\nfrom = {{ file = '{0}' }}\nto = {{ env = 'API_KEY' }}\n\
         [[secret]]\nname = 'file'\ntenant = 'local'\nfrom = {{ command = ['cat', '{0}'] }}\n\
         to = {{ file = '/job/.key' }}\n",
        canary.file
    ));
    let script = format!(
        "[ ${{#API_KEY}} = {} ] && [ \"$API_KEY\" = \"$(cat /job/.key)\" ] && echo ready && read word && cat",
        canary.len()
    );
    let run = place.shell(&script).args(["--config", &config, "--secret", "variable", "--secret", "file"]);
    let (mut running, sandbox) = place.start(run.args(["--stdin", "--timeout", "110s"]));
    assert_eq!(canary.arguments(), [0; 0]);
    let (own_kernel, job) = (place.tier == Tier::Vm, sandbox.job());
    let (holders, others): (Vec<_>, Vec<_>) =
        canary.environments().into_iter().partition(|pid| job.contains(pid) && !own_kernel);
    assert_eq!(others, [0; 0], "their environment has it, and they are not the job");
    assert_eq!(holders.is_empty(), own_kernel, "the job has it, so the look would see it");
    let told = place.node.told_by_daemons();
    let by_libvirt = fs::read_to_string(place.node.config("")).unwrap().contains("libvirt");
    assert_eq!(told.is_empty(), place.tier != Tier::Docker && !by_libvirt, "{told:?}");
    assert!(!told.iter().any(|told| canary.is_in(told)), "{told:?}");
    let folders = place.node.folders();
    assert_eq!(canary.files(&folders), [""; 0], "while the job holds it");
    running.say("go on\n");
    let finished = running.finish().code(0);
    assert!(!canary.is_in(&finished.stdout) && !canary.is_in(&finished.stderr));
    assert_eq!(canary.files(&folders), [""; 0], "when the job is over");
    // And the look does see what is there.
    let own = Path::new(&canary.file).parent().unwrap().to_owned();
    assert_eq!(canary.files(&[own]), [canary.file]);
}

fn a_job_that_was_given_no_way_out_has_none(place: &Place) {
    let script = "env | grep -i proxy; nc -w 1 127.0.0.1 3128 </dev/null && echo open; echo done";
    let result = result_of(place.shell(script), 0);
    assert_eq!(result["stdout"]["text"], "done\n");
    assert!(result["egress"].is_null(), "{result}");
    let finished = place.run(["true"]).args(["--tunnel", "model"]).finish().code(125);
    finished.says(&["there is no [tunnels.model]; there is none"]);
}

fn a_hundred_connections_at_once_carry_what_they_should(place: &Place) {
    let outside = Outside::serving(counts);
    let program = "
import socket
socks = [socket.create_connection(('127.0.0.1', 8100)) for _ in range(100)]
for n, s in enumerate(socks):
    s.sendall(b'x' * (1000 * n))
for s in socks:
    s.shutdown(socket.SHUT_WR)
for n, s in enumerate(socks):
    said = b''
    while piece := s.recv(100):
        said += piece
    assert said == b'%d bytes' % (1000 * n), (n, said)
print('all')
";
    let run =
        outside.run(place, place.python(program), TUNNEL).args(["--tunnel", "there", "--timeout", "60s"]);
    let result = result_of(run, 0);
    assert_eq!(result["stdout"]["text"], "all\n", "{result}");
    assert_eq!(egress(&result)["made"], 100);
}

fn bulk_arrives_whole_while_the_jobs_own_output_goes_on(place: &Place) {
    const BYTES: usize = 16 * 1024 * 1024;
    let outside = Outside::serving(|mut stream, _| {
        let piece: Vec<u8> = (0..=250).collect();
        let all: Vec<u8> = piece.iter().copied().cycle().take(BYTES).collect();
        let _ = stream.get_mut().write_all(&all);
    });
    // The second reader never reads: its stream fills up, and everything else goes on.
    let program = format!(
        "
import socket
full = socket.create_connection(('127.0.0.1', 8100))
s = socket.create_connection(('127.0.0.1', 8100))
print('begun', flush=True)
at = 0
while piece := s.recv(65536):
    assert all(byte == (at + n) % 251 for n, byte in enumerate(piece[:300]))
    at += len(piece)
    print(at)
assert at == {BYTES}, at
"
    );
    let run =
        outside.run(place, place.python(&program), TUNNEL).args(["--tunnel", "there", "--timeout", "120s"]);
    let result = result_of(run, 0);
    let said = result["stdout"]["text"].as_str().unwrap();
    assert!(said.starts_with("begun\n") && said.ends_with(&format!("\n{BYTES}\n")), "{result}");
}

fn a_connection_that_is_open_at_the_end_goes_with_its_job(place: &Place) {
    let outside = Outside::serving(|mut stream, kept| {
        let mut all = Vec::new();
        let ended = stream.read_to_end(&mut all);
        kept.push(format!("{} bytes, {}", all.len(), if ended.is_ok() { "ended" } else { "reset" }));
    });
    let job = place.python("import socket, os; s = socket.create_connection(('127.0.0.1', 8100)); s.sendall(b'last words'); os._exit(0)");
    let result = result_of(outside.run(place, job, TUNNEL).args(["--tunnel", "there"]), 0);
    assert_eq!(egress(&result)["sent"], 10, "{result}");
    let heads = crate::harness::eventually("the other end hears of it", || {
        let heads = outside.heads();
        (!heads.is_empty()).then_some(heads)
    });
    assert!(heads[0].starts_with("10 bytes"), "{heads:?}");
}

//! The door beyond what every behaviour of a sandbox is: the example with a model, and what a way out costs.

mod attacks;
mod bench;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use crate::harness::{Mayfly, Node, Place, Tier, by_libvirt_too, on, on_every_tier, result_of};

on_every_tier! {
    an_agent_calls_a_model_with_a_key_that_it_never_holds
    the_example_runs_as_it_is_written
}

by_libvirt_too! {
    an_agent_calls_a_model_with_a_key_that_it_never_holds
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/model-agent");
const KEY: &str = "sk-canary-2b9d41";

/// The stub of a model's API.
struct Model {
    process: Child,
    port: u16,
}

impl Model {
    fn start(key: &str) -> Self {
        let model = format!("{EXAMPLE}/model.py");
        let mut process = Command::new("python3")
            .args([&model, key])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { process, port: port.trim().parse().expect("the model says its port") }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server that speaks TLS with a certificate of its own making, for `model.test`.
struct Encrypted {
    process: Child,
    port: u16,
    certificate: String,
}

impl Encrypted {
    fn start(place: &Place) -> Self {
        let (certificate, key) = (place.node.file("cert.pem"), place.node.file("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=model.test"])
            .args([
                "-addext",
                "subjectAltName=DNS:model.test",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-out",
            ])
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl is there").success());
        let server = "
import http.server, ssl, sys
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'encrypted')
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hello)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
";
        let mut process = Command::new("python3")
            .args(["-I", "-c", server])
            .args([&certificate, &key])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is there");
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let certificate = certificate.to_str().unwrap().to_owned();
        Self { process, port: port.trim().parse().expect("the server says its port"), certificate }
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_tunnel_speaks_tls_outside_with_whom_its_authority_vouches_for_and_with_nobody_else() {
    on(Tier::Chroot, |place| {
        let server = Encrypted::start(place);
        let run = |to: &str, authority: &str| {
            let config = place.node.config(&format!(
                "[tunnels.model]\nto = '{to}:{}'\nport = 8081\nkind = 'http'\n{authority}\n\
                 [network.hosts]\n'model.test' = '127.0.0.1'\n'other.test' = '127.0.0.1'\n",
                server.port
            ));
            let job = place.shell("wget -qO- http://$MAYFLY_TUNNEL_MODEL/; true");
            result_of(job.args(["--config", &config, "--tunnel", "model"]), 0)
        };
        let own = format!("ca_file = '{}'", server.certificate);
        let result = run("model.test", &own);
        assert_eq!(result["stdout"]["text"], "encrypted", "{result}");
        for (to, authority) in [("other.test", own.as_str()), ("model.test", "")] {
            let result = run(to, authority);
            assert_eq!(result["stdout"]["text"], "", "{result}");
            let connection = &result["egress"]["connections"][0];
            assert_eq!(
                (connection["ended"].as_str(), connection["reason"].as_str()),
                (Some("failed"), Some("connect"))
            );
            assert!(connection["why"].as_str().unwrap().contains("certificate"), "{result}");
        }
    });
}

#[test]
fn doctor_says_where_tunnels_lead_and_which_secrets_cannot_be_had() {
    let node = Node::new();
    let key = node.write("key", KEY);
    let config = node.config(&format!(
        "[tunnels.good]\nto = 'model.test:443'\nport = 8081\n[tunnels.bad]\nto = 'localhost:443'\nport = 8082\n\
         [[secret]]\nname = 'here'\nfrom = {{ file = '{key}' }}\n[[secret]]\nname = 'gone'\nfrom = {{ file = '/nowhere' }}\n\
         [network.hosts]\n'model.test' = '192.0.2.7'\n"
    ));
    let finished = node.mayfly(["doctor", "--config", &config]).finish();
    let said = finished.text();
    for expected in [
        "good leads to model.test:443 (192.0.2.7)",
        "tunnel bad: denied: host localhost leads to a loopback address",
        "here can be had, for anybody's tunnels",
        "secret gone: cannot read /nowhere",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    assert!(!said.contains(KEY), "{said}");
}

fn an_agent_calls_a_model_with_a_key_that_it_never_holds(place: &Place) {
    let key = place.node.write("key", format!("{KEY}\n"));
    let model = Model::start(&key);
    let config = |secret: &str| {
        place.node.config(&format!(
            "[tunnels.model]\nto = 'model.test:{}'\nport = 8081\nkind = 'http'\ntls = false\n\
             inject = [{{ header = 'Authorization', value = 'Bearer {{secret}}', secret = 'model-key' }}]\n\
             [[secret]]\nname = 'model-key'\nfrom = {{ file = '{secret}' }}\n\
             [network.hosts]\n'model.test' = '127.0.0.1'\n",
            model.port
        ))
    };
    let run = |config: &str| {
        let agent = format!("{EXAMPLE}/agent.py:/job/agent.py");
        let words = ["--config", config, "--tunnel", "model", "--put", &agent, "--timeout", "120s"];
        place.run_in("base", ["python3", "/job/agent.py"]).args(words)
    };
    let result = result_of(run(&config(&key)), 0);
    let said = result["stdout"]["text"].as_str().unwrap();
    assert!(said.ends_with("answer  The 50th Fibonacci number is 12586269025.\n"), "{result}");
    assert!(!result.to_string().contains(KEY), "{result}");
    assert_eq!(result["egress"]["made"], 2, "one for each of the model's turns: {result}");
    // The model does want the key: with another one the same agent gets nowhere.
    let wrong = place.node.write("wrong", "sk-wrong");
    let refused = result_of(run(&config(&wrong)), 1);
    assert!(refused["stderr"]["text"].as_str().unwrap().contains("401"), "{refused}");
}

fn the_example_runs_as_it_is_written(place: &Place) {
    let example = place.node.place(Mayfly::program(&format!("{EXAMPLE}/run")));
    let finished = example.args([env!("CARGO_BIN_EXE_mayfly"), place.tier.name()]).finish().code(0);
    assert!(finished.text().ends_with("answer  The 50th Fibonacci number is 12586269025."), "{finished:?}");
}

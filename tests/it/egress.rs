//! The door beyond what every behaviour of a sandbox is: the example with a model, and what a way out costs.

mod bench;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use crate::harness::{Place, by_libvirt_too, on_every_tier, result_of};

on_every_tier! {
    an_agent_calls_a_model_with_a_key_that_it_never_holds
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

//! The producers of `docs/producers.md`, word for word: each sends its job and prints its result.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use servers::Version;

use crate::harness::Cluster;

const DOCS: &str = include_str!("../../../docs/producers.md");
const EXAMPLE: &str = include_str!("../../../scheduler/examples/producer.rs");

/// The one block of code in a language.
fn code(language: &str) -> &'static str {
    let begin = format!("```{language}\n");
    DOCS.split_once(&begin).and_then(|(_, rest)| rest.split_once("```")).expect("a block of code").0
}

/// Runs a producer as the tenant, and checks what it prints.
fn produce(test: &str, mut producer: Command, name: &str) {
    for version in Version::ALL {
        let Some(cluster) = Cluster::new(test, version, "") else { return };
        let mut host = cluster.host();
        producer.env("AMQP_URL", cluster.url()).env("TENANT", &cluster.tenant);
        let ran = producer.output().unwrap();
        let (said, complaint) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        let expected = [format!("from-{name}"), "succeeded".to_owned(), format!("from {name}")];
        assert!(
            ran.status.success() && expected.iter().all(|word| said.contains(word)),
            "on {}: {said}{complaint}",
            version.name()
        );
        host.stop().code(0);
        host.check();
    }
}

#[test]
fn in_python() {
    let test = "service::producers::in_python";
    let found = Command::new("/usr/bin/python3").args(["-c", "import pika"]).output();
    if !found.is_ok_and(|ran| ran.status.success()) {
        return servers::skipped(test, "python3-pika is not installed");
    }
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", code("python")]);
    produce(test, python, "python");
}

#[test]
fn in_javascript() {
    let test = "service::producers::in_javascript";
    let packages = target().join("servers/npm");
    let installed = packages.join("node_modules/amqplib").is_dir() || {
        let install =
            ["install", "--no-audit", "--no-fund", "--prefix", packages.to_str().unwrap(), "amqplib"];
        Command::new("npm").args(install).output().is_ok_and(|ran| ran.status.success())
    };
    if !installed {
        let why = "node or npm is not here, or npm cannot install amqplib";
        return servers::tell_skipped(test, why);
    }
    let mut node = Command::new("node");
    node.args(["-e", code("javascript")]).env("NODE_PATH", packages.join("node_modules"));
    produce(test, node, "javascript");
}

#[test]
fn in_rust() {
    let (_, example) = EXAMPLE.split_once("\n\n").expect("a head");
    assert_eq!(example, code("rust"), "the example is what the documentation shows");
    let example = target().join("debug/examples/producer");
    produce("service::producers::in_rust", Command::new(example), "rust");
}

/// Where cargo builds: the binary under test is in `debug` there.
fn target() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_mayfly")).ancestors().nth(2).expect("it lies in target/debug").to_owned()
}

//! The order of the crates, as the design has it: agent ← images ← pool ← egress ← worker ← scheduler ← selftest ← mayfly.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Each may depend on those before it, and on none behind it.
const ORDER: [&str; 9] =
    ["agent", "images", "libvirt-protocol", "pool", "egress", "worker", "scheduler", "selftest", "mayfly"];

/// Linked into nothing: the servers of the tests, what `images` embeds for the selftest, and the program between mayfly
/// and libvirt.
const APART: [&str; 3] = ["servers", "prober", "libvirt-engine"];

/// Crates outside of the workspace that only one place may know, or that one must not: (where, crates).
const NOT_IN: [(&str, &[&str]); 9] = [
    ("agent", &["tokio", "clap", "reqwest", "lapin", "redis", "axum", "bollard", "virt"]),
    ("images", &["tokio", "clap", "lapin", "redis", "axum", "bollard", "virt", "nix"]),
    ("libvirt-engine", &["pool", "tokio", "clap"]),
    ("egress", &["agent", "pool", "nix", "libc", "rustix", "lapin", "redis", "clap", "prometheus"]),
    ("pool", &["lapin", "redis", "axum", "hyper", "clap", "prometheus", "virt"]),
    (
        "worker",
        &[
            "nix",
            "libc",
            "rustix",
            "bollard",
            "virt",
            "lapin",
            "redis",
            "axum",
            "hyper",
            "prometheus",
            "clap",
        ],
    ),
    ("scheduler", &["nix", "libc", "bollard", "virt", "clap"]),
    ("selftest", &["bollard", "virt", "lapin", "redis", "axum", "hyper", "prometheus", "clap"]),
    ("mayfly", &["nix", "libc", "bollard", "virt", "lapin", "redis", "axum", "hyper", "prometheus"]),
];

/// What each crate of the workspace needs to be built for others: name → dependencies.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // Tests may use what they like: only what is built into the product counts.
    let built = |package: &Value| -> Vec<String> {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| text(&dependency["name"]))
            .inspect(|name| assert!(!APART.contains(&name.as_str()), "{name} is built into the product"))
            .collect()
    };
    packages.iter().map(|package| (text(&package["name"]), built(package))).collect()
}

#[test]
fn dependencies_run_one_way() {
    let all = dependencies();
    for (place, name) in ORDER.iter().enumerate() {
        let behind = &ORDER[place..];
        for dependency in &all[*name] {
            assert!(
                !behind.contains(&dependency.as_str()),
                "{name} depends on {dependency}, which comes after it"
            );
        }
    }
}

#[test]
fn every_crate_of_the_workspace_has_its_place_in_the_order() {
    for name in dependencies().keys() {
        assert!(
            ORDER.contains(&name.as_str()) || APART.contains(&name.as_str()),
            "{name} has no place in the order"
        );
    }
}

#[test]
fn a_crate_does_not_know_what_is_not_its_business() {
    let all = dependencies();
    for (name, strangers) in NOT_IN {
        for stranger in strangers {
            assert!(!all[name].iter().any(|dependency| dependency == stranger), "{name} knows {stranger}");
        }
    }
}

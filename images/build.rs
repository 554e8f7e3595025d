//! Builds the agent and the prober as static programs of their own and leaves them where `programs.rs` embeds them.
//!
//! A second cargo call, because `+crt-static` in the common RUSTFLAGS would break proc-macros and make every
//! program static. It has its own target directory, so that the two cargos never wait for each other's lock.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "agent";
/// Package, program, and the variable by which the library finds it.
const PROGRAMS: [[&str; 3]; 2] =
    [["agent", "mayfly-agent", "MAYFLY_AGENT"], ["prober", "mayfly-prober", "MAYFLY_PROBER"]];
/// What cargo and its wrappers (clippy, coverage) tell a build script about the *outer* build.
const OUTER: &[&str] = &[
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "DEBUG",
    "LLVM_PROFILE_FILE",
    "OPT_LEVEL",
    "PROFILE",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "TARGET",
];
const OUTER_PREFIXES: &[&str] =
    &["CARGO_BIN_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PROFILE_"];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = here.parent().expect("the crate lies in the workspace");
    watch(&here, workspace);

    let target_dir = out.join("agent");
    for [package, program, variable] in PROGRAMS {
        let status =
            inner_cargo(workspace, &target_dir, package, program).status().expect("cargo can be started");
        assert!(status.success(), "building {program} failed: {status}");

        let built = target_dir.join(TARGET).join(PROFILE).join(program);
        let embedded = out.join(program);
        fs::copy(&built, &embedded)
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", built.display()));
        println!("cargo::rustc-env={variable}={}", embedded.display());
    }
}

fn inner_cargo(workspace: &Path, target_dir: &Path, package: &str, program: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    for (name, _) in env::vars_os().filter(|(name, _)| is_outer(name)) {
        cargo.env_remove(name);
    }
    cargo.current_dir(workspace).args(["build", "--package", package, "--bin", program]);
    cargo.args(["--profile", PROFILE, "--target", TARGET, "--target-dir"]).arg(target_dir);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(workspace));
    cargo
}

/// The paths are cut out of panic messages, so that the same sources give the same agent, and with it the same
/// image digests, wherever they are built.
fn rustflags(workspace: &Path) -> String {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.push(format!("--remap-path-prefix={}=mayfly", workspace.display()));
    flags.extend(cargo.map(|cargo| format!("--remap-path-prefix={}=cargo", cargo.display())));
    flags.join("\x1f")
}

fn is_outer(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    OUTER.contains(&name) || OUTER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Only what exists is named: cargo takes a missing path for a changed one, at every build.
fn watch(here: &Path, workspace: &Path) {
    let parts = ["agent", "prober"]
        .iter()
        .flat_map(|program| fs::read_dir(here.join(program)).expect("the sources lie beside this file"));
    let sources = parts.flatten().map(|part| part.path()).filter(|path| {
        // A fuzzer's corpus and a stray target directory are no sources, and they change all the time.
        !["fuzz", "target", "tests"].iter().any(|name| path.ends_with(name))
    });
    let settings = [workspace.join("Cargo.lock"), workspace.join("Cargo.toml")];
    for path in sources.chain(settings).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
}

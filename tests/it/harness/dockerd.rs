//! The docker daemon that the tests of its tier share, started by whoever comes first.
//!
//! Its runtime is whatever the host has; one below the floor is allowed, as an operator would have to.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

use serde_json::Value;
use servers::Dockerd;

use super::Node;

/// What a mayfly is told about a daemon.
const ALLOWED: &str = "\n[docker]\nallow_old_runtime = true\n";

/// The daemon of all, while the tests run: it ends with this process. None where there is none to start.
pub(crate) fn shared() -> Option<&'static Dockerd> {
    static SHARED: OnceLock<Option<Dockerd>> = OnceLock::new();
    let start = || Dockerd::is_installed().then(|| Dockerd::start().unwrap());
    SHARED.get_or_init(start).as_ref()
}

/// The same, if anybody has started it: looking for a container starts none.
fn running() -> Vec<String> {
    daemons().lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn daemons() -> &'static Mutex<Vec<String>> {
    static SOCKETS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    &SOCKETS
}

/// Has the mayflies of a node use a daemon.
pub(crate) fn use_by(node: Node, daemon: &Dockerd) -> Node {
    let socket = daemon.socket().to_str().unwrap().to_owned();
    let mut daemons = daemons().lock().unwrap_or_else(PoisonError::into_inner);
    if !daemons.contains(&socket) {
        daemons.push(socket);
    }
    drop(daemons);
    let host = daemon.host();
    node.with("DOCKER_HOST", &host).configured(ALLOWED)
}

/// Which life each container of an instance is: its id at the daemon → the generation.
pub(crate) fn lives(instance: &str) -> HashMap<String, String> {
    let filter = format!("%7B%22label%22%3A%5B%22mayfly.instance%3D{instance}%22%5D%7D");
    let path = format!("/containers/json?all=true&filters={filter}");
    let answers =
        running().into_iter().filter_map(|socket| servers::ask_docker(socket.as_ref(), "GET", &path).ok());
    let lists = answers.filter_map(|(_, body)| serde_json::from_str::<Vec<Value>>(&body).ok());
    let containers = lists.flatten();
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    containers
        .filter_map(|one| Some((text(&one["Id"])?, text(&one["Labels"]["mayfly.generation"])?)))
        .collect()
}

/// What daemons tell of each container of an instance.
pub(crate) fn told(instance: &str) -> Vec<String> {
    let lives = lives(instance);
    let paths = lives.keys().map(|id| format!("/containers/{id}/json"));
    let ask = |path: String| {
        let answers =
            running().into_iter().map(move |socket| servers::ask_docker(socket.as_ref(), "GET", &path));
        answers.filter_map(|answer| answer.ok().filter(|(status, _)| *status == 200).map(|(_, body)| body))
    };
    paths.flat_map(ask).collect()
}

/// Where the daemon of all keeps its files, if anybody has started it.
pub(crate) fn folder() -> Option<&'static Path> {
    (!running().is_empty()).then(shared)?.map(Dockerd::folder)
}

/// Everything that daemons still have of these instances.
pub(crate) fn leftovers(instances: &[String]) -> Vec<String> {
    if running().is_empty() {
        return Vec::new();
    }
    let lives = instances.iter().flat_map(|instance| lives(instance));
    lives.map(|(id, generation)| format!("container {id} of {generation}")).collect()
}

//! The libvirt daemon that the tests of its engine share, started by whoever comes first.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

use servers::Libvirtd;

use super::Node;

/// The daemon of all, while the tests run: it ends with this process. None where there is none to start.
pub(crate) fn shared() -> Option<&'static Libvirtd> {
    static SHARED: OnceLock<Option<Libvirtd>> = OnceLock::new();
    let start = || Libvirtd::is_installed().then(|| Libvirtd::start().unwrap());
    SHARED.get_or_init(start).as_ref()
}

fn daemons() -> &'static Mutex<Vec<String>> {
    static DAEMONS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    &DAEMONS
}

/// The same, if anybody has started it: looking for a machine starts none.
fn running() -> Vec<String> {
    daemons().lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What a mayfly is told about a daemon.
pub(crate) fn config(daemon: &Libvirtd) -> String {
    format!(
        "\n[vm]\nengine = \"libvirt\"\nlibvirt_uri = \"{}\"\naccel = \"tcg\"\nallow_emulation = true\n",
        daemon.uri()
    )
}

/// Has the mayflies of a node make machines at a daemon.
pub(crate) fn use_by(node: Node, daemon: &Libvirtd) -> Node {
    // A machine's process is nobody on this host, and finds its files below the node's directory.
    let folder = node.data_dir().parent().unwrap().to_owned();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).unwrap();
    let mut daemons = daemons().lock().unwrap_or_else(PoisonError::into_inner);
    if !daemons.contains(&daemon.uri()) {
        daemons.push(daemon.uri());
    }
    drop(daemons);
    node.configured(config(daemon))
}

/// Everything that daemons still have of these instances, whether it runs or not.
pub(crate) fn leftovers(instances: &[String]) -> Vec<String> {
    machines(instances).into_iter().map(|(_, name)| format!("machine {name}")).collect()
}

/// The daemon and the name of each machine of these instances.
fn machines(instances: &[String]) -> Vec<(String, String)> {
    let of = |uri: String| {
        let names = servers::virsh(&uri, &["list", "--all", "--name"]).unwrap_or_default();
        let names: Vec<_> = names.split_whitespace().map(ToOwned::to_owned).collect();
        names.into_iter().map(move |name| (uri.clone(), name))
    };
    let ours = |name: &str| instances.iter().any(|instance| name.contains(instance.as_str()));
    running().into_iter().flat_map(of).filter(|(_, name)| ours(name)).collect()
}

/// What daemons tell of each machine of an instance, and of each of its snapshots.
pub(crate) fn told(instance: &str) -> Vec<String> {
    let mut told = Vec::new();
    for (uri, name) in machines(&[instance.to_owned()]) {
        told.extend(servers::virsh(&uri, &["dumpxml", "--security-info", &name]));
        let snapshots = servers::virsh(&uri, &["snapshot-list", "--name", &name]).unwrap_or_default();
        let dump = |of: &str| servers::virsh(&uri, &["snapshot-dumpxml", "--security-info", &name, of]);
        told.extend(snapshots.split_whitespace().flat_map(dump));
    }
    told
}

/// Where the daemon of all keeps its files, if anybody has started it.
pub(crate) fn folder() -> Option<&'static Path> {
    (!running().is_empty()).then(shared)?.map(Libvirtd::folder)
}

//! The libvirt daemon that the tests of its engine share, started by whoever comes first.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
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
    // Looking for a machine starts no daemon.
    let daemons = daemons().lock().unwrap_or_else(PoisonError::into_inner).clone();
    let ask = |uri: &String| servers::virsh(uri, &["list", "--all", "--name"]).ok();
    let names: Vec<String> = daemons.iter().filter_map(ask).collect();
    let names = names.iter().flat_map(|names| names.split_whitespace());
    let ours = names.filter(|name| instances.iter().any(|instance| name.contains(instance.as_str())));
    ours.map(|name| format!("machine {name}")).collect()
}

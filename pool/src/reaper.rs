//! Finds and ends what dead mayfly processes left on this host.
//!
//! It goes by the marks that every process makes before it makes anything else (see `instance.rs`): only
//! marks of this node, and only those whose lock is free. What it cannot end it leaves marked.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroup::{Hierarchy, read_pids},
    id::InstanceId,
    instance::{self, Owner},
    ledger::{self, Ledger},
    uids,
};

/// How long the processes of a dead mayfly may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends everything that dead processes of this node left. A failure is logged and tried again next time.
pub(crate) fn sweep(run_dir: &Path, node: &Path, hierarchy: &Hierarchy, ledger: &Ledger) {
    let Ok(entries) = fs::read_dir(instance::instances(run_dir)) else { return };
    for entry in entries.flatten() {
        let place = entry.path();
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<InstanceId>().ok()) else { continue };
        match dead(&place, node) {
            Ok(None) => {}
            // The lock stays held until the mark is gone, so that two reapers never work on one.
            Ok(Some(_lock)) => {
                if let Err(error) = reap(id, &place, run_dir, node, hierarchy, ledger) {
                    tracing::warn!(instance = %id, %error, "cannot end all that a dead mayfly left");
                }
            }
            Err(error) => tracing::warn!(instance = %id, %error, "cannot tell whether a mayfly is dead"),
        }
    }
}

/// The lock of a process that is dead and of this node.
fn dead(place: &Path, node: &Path) -> io::Result<Option<Flock<File>>> {
    let file = match File::open(place.join("lock")) {
        Ok(file) => file,
        // It has ended well meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
    match fs::read(place.join("owner")) {
        Ok(owner) => Ok((serde_json::from_slice::<Owner>(&owner)?.node == node).then_some(lock)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Destroys first, forgets after.
fn reap(
    id: InstanceId,
    place: &Path,
    run_dir: &Path,
    node: &Path,
    hierarchy: &Hierarchy,
    ledger: &Ledger,
) -> io::Result<()> {
    let name = instance::cgroup_name(id);
    for root in hierarchy.roots() {
        end_tree(&root.join(&name))?;
    }
    uids::release_claims_of(&instance::uids(run_dir), id)?;
    ledger::recover(node, id, ledger).map_err(io::Error::other)?;
    fs::remove_dir_all(place)?;
    tracing::info!(instance = %id, "ended what a dead mayfly left");
    Ok(())
}

/// Kills what is in a cgroup and below, and removes it.
fn end_tree(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let started = Instant::now();
    loop {
        let directories = below(directory)?;
        let pids: Vec<i32> = directories.iter().flat_map(|path| read_pids(&path.join("cgroup.procs"))).collect();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        match directories.iter().try_for_each(fs::remove_dir) {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A directory and all below it, deepest first.
fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(below(&entry.path())?);
        }
    }
    found.push(directory.to_owned());
    Ok(found)
}

/// Removes the cgroup that held a process's sandboxes, once they are gone.
pub(crate) fn remove_instance_cgroups(name: &Path, hierarchy: &Hierarchy) -> io::Result<()> {
    for root in hierarchy.roots() {
        match fs::remove_dir(root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

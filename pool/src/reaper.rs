//! Finds and ends what dead mayfly processes left on this host.
//!
//! It goes by the marks that every process makes before it makes anything else (see `instance.rs`): only
//! marks of this node, and only those whose lock is free. It looks at start and every few seconds, at what is
//! really there. What it cannot end stays marked, and is tried again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;

use crate::{
    cgroup::{Hierarchy, every_tree, read_pids},
    docker,
    id::InstanceId,
    instance::{self, Owner},
    ledger::{self, Ledger},
    uids,
    vm::libvirt::leftovers as libvirt,
    witness::{Happening, Witness},
};

/// How long the processes of a dead mayfly may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// A mark that its process never finished making is left alone for this long.
const NASCENT: Duration = Duration::from_secs(60);

/// What a dead process left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The process's name.
    pub instance: InstanceId,
    /// Its pid, which may be another's by now.
    pub pid: u32,
    /// Processes of its sandboxes that still run.
    pub processes: usize,
    /// Its cgroups.
    pub cgroups: usize,
    /// Its containers at the docker daemon.
    pub containers: usize,
    /// Its machines at libvirt.
    pub domains: usize,
    /// Ranges of user ids that it holds.
    pub uid_ranges: usize,
}

/// A dead process's mark, locked so that two reapers never work on one.
#[derive(Debug)]
pub(crate) struct Dead {
    instance: InstanceId,
    owner: Owner,
    place: PathBuf,
    _lock: Flock<File>,
}

/// The places that a reaper looks at.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) run_dir: PathBuf,
    /// The data directory: only its processes' things are touched.
    pub(crate) node: PathBuf,
    pub(crate) hierarchy: Hierarchy,
}

impl Ground {
    /// Ends everything that dead processes of this node left, and says what that was.
    ///
    /// A failure is logged; the mark stays, so that the next sweep tries again.
    pub(crate) fn sweep(&self, ledger: &Ledger, witness: &dyn Witness) -> Vec<Leftover> {
        let (mut ended, mut stuck) = (Vec::new(), 0);
        for dead in self.find() {
            let leftover = self.describe(&dead);
            match self.end(&dead, ledger) {
                Ok(()) => {
                    tracing::info!(?leftover, "ended what a dead mayfly left");
                    ended.push(leftover);
                }
                Err(error) => {
                    tracing::warn!(?leftover, %error, "cannot end all that a dead mayfly left");
                    stuck += 1;
                }
            }
        }
        witness.hear(Happening::Swept { ended: &ended, stuck });
        ended
    }

    /// The dead processes of this node. They cannot come back, so the list can only become too short.
    pub(crate) fn find(&self) -> Vec<Dead> {
        let Ok(entries) = fs::read_dir(instance::instances(&self.run_dir)) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            match name.parse() {
                Ok(instance) => match self.dead(instance, entry.path()) {
                    Ok(dead) => found.extend(dead),
                    Err(error) => tracing::warn!(%instance, %error, "cannot tell whether a mayfly is dead"),
                },
                Err(_) if name.starts_with('.') => remove_nascent(&entry.path()),
                Err(_) => {}
            }
        }
        found
    }

    fn dead(&self, instance: InstanceId, place: PathBuf) -> io::Result<Option<Dead>> {
        let Some(lock) = try_lock(&place)? else { return Ok(None) };
        match fs::read(place.join("owner")) {
            Ok(owner) => {
                let owner: Owner = serde_json::from_slice(&owner)?;
                Ok((owner.node == self.node).then_some(Dead { instance, owner, place, _lock: lock }))
            }
            // It retired between the two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn describe(&self, dead: &Dead) -> Leftover {
        Leftover {
            instance: dead.instance,
            pid: dead.owner.pid,
            processes: self.processes_of(dead.instance).len(),
            cgroups: self.cgroups_of(dead.instance).len(),
            containers: docker::noted(&dead.place).map_or(0, |daemon| docker::count(&daemon, dead.instance)),
            domains: libvirt::noted(&dead.place)
                .map_or(0, |settings| libvirt::count(&settings, dead.instance)),
            uid_ranges: uids::claims_of(&instance::uids(&self.run_dir), dead.instance)
                .map_or(0, |claims| claims.len()),
        }
    }

    /// Every process in an instance's sandboxes.
    pub(crate) fn processes_of(&self, instance: InstanceId) -> Vec<i32> {
        let cgroups = self.cgroups_of(instance);
        let mut pids: Vec<i32> =
            cgroups.iter().flat_map(|path| read_pids(&path.join("cgroup.procs"))).collect();
        pids.sort_unstable();
        // On cgroup v1 a process is in one cgroup of each tree.
        pids.dedup();
        pids
    }

    fn cgroups_of(&self, instance: InstanceId) -> Vec<PathBuf> {
        let names = [instance::cgroup_name(instance), instance::containers_cgroup_name(instance)];
        let roots = self.roots_of(instance);
        let places = roots.iter().flat_map(|root| names.iter().map(|name| root.join(name)));
        places.flat_map(|place| below(&place).unwrap_or_default()).collect()
    }

    /// Below which directories an instance's cgroups are.
    fn roots_of(&self, instance: InstanceId) -> Vec<PathBuf> {
        let base = self.base_of(instance);
        self.hierarchy.roots().into_iter().map(|root| root.join(&base)).collect()
    }

    fn base_of(&self, instance: InstanceId) -> PathBuf {
        instance::base(&instance::instances(&self.run_dir).join(instance.to_string()))
    }

    /// Destroys first, forgets after. A scope that systemd made for the instance goes when it is empty.
    fn end(&self, dead: &Dead, ledger: &Ledger) -> io::Result<()> {
        let name = instance::cgroup_name(dead.instance);
        for root in self.roots_of(dead.instance) {
            end_tree(&root.join(&name))?;
        }
        if let Some(daemon) = docker::noted(&dead.place) {
            // What runs is ended whether or not the daemon is there; what it keeps, by itself.
            let name = instance::containers_cgroup_name(dead.instance);
            for root in self.roots_of(dead.instance) {
                end_processes(&root.join(&name))?;
            }
            docker::remove(&daemon, dead.instance).map_err(io::Error::other)?;
            let base = self.base_of(dead.instance);
            for tree in every_tree()? {
                end_tree(&tree.join(&base).join(&name))?;
            }
        }
        if let Some(settings) = libvirt::noted(&dead.place) {
            // Their processes were in the cgroups above; what libvirt knows of them goes with their files.
            libvirt::remove(&settings, &self.node, dead.instance).map_err(io::Error::other)?;
        }
        uids::release_claims_of(&instance::uids(&self.run_dir), dead.instance)?;
        ledger::recover(&self.node, dead.instance, ledger).map_err(io::Error::other)?;
        fs::remove_dir_all(&dead.place)
    }

    /// Removes the cgroup that held an instance's sandboxes, once they are gone.
    pub(crate) fn remove_cgroups_of(&self, instance: InstanceId) -> io::Result<()> {
        for root in self.roots_of(instance) {
            match fs::remove_dir(root.join(instance::cgroup_name(instance))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        docker::remove_cgroups_of(instance, &self.base_of(instance))
    }
}

/// Whether a process of this host lives: it holds the lock of its mark for as long as it does.
pub(crate) fn lives(run_dir: &Path, instance: InstanceId) -> bool {
    let place = instance::instances(run_dir).join(instance.to_string());
    place.exists() && matches!(try_lock(&place), Ok(None))
}

/// The lock of a mark whose process is dead, or nothing if it lives or is gone.
fn try_lock(place: &Path) -> io::Result<Option<Flock<File>>> {
    match File::open(place.join("lock")) {
        Ok(file) => Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a mark whose maker died before it was in its place: nothing was made under it yet.
fn remove_nascent(place: &Path) {
    let age = fs::metadata(place)
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    if age.is_some_and(|age| age > NASCENT)
        && let Err(error) = fs::remove_dir_all(place)
    {
        tracing::warn!(path = %place.display(), %error, "cannot remove a mark that was never finished");
    }
}

/// Kills what is in a cgroup and below.
fn end_processes(directory: &Path) -> io::Result<()> {
    for pid in below(directory)?.iter().flat_map(|path| read_pids(&path.join("cgroup.procs"))) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

/// Kills what is in a cgroup and below, and removes it.
fn end_tree(directory: &Path) -> io::Result<()> {
    let started = Instant::now();
    loop {
        let directories = below(directory)?;
        end_processes(directory)?;
        match directories.iter().try_for_each(fs::remove_dir) {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A directory and all below it, deepest first; nothing if it is not there.
fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(below(&entry.path())?);
        }
    }
    found.push(directory.to_owned());
    Ok(found)
}

//! This process among the mayfly processes of the host.
//!
//! ```text
//! <run dir>/instances/<instance>/lock    held for as long as the process lives
//! <run dir>/instances/<instance>/owner   node (data directory), pid, boot: what the reaper goes by
//! <run dir>/instances/<instance>/name    the instance, by which its claims are signed
//! <run dir>/instances/<instance>/docker  the daemon at which it makes containers, if it makes any
//! <run dir>/instances/<instance>/base    the cgroup that its sandboxes' cgroups are below, if not the top of the tree
//! <run dir>/instances/<instance>/libvirt where it makes machines at libvirt, if it makes any
//! <run dir>/uids/<range>                 a link to the name of the instance that holds a range of user ids
//! <run dir>/root, <run dir>/disk         empty directories that sandboxes mount on, each in its own mount namespace
//! ```

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{Id, InstanceId};

/// The file of a mark that names a cgroup.
const BASE: &str = "base";

/// The run directory cannot be used.
#[derive(Debug, Error)]
#[error("cannot use {path} to mark this process as alive")]
pub struct InstanceError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub error: io::Error,
}

/// Who an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The data directory: names the node.
    pub(crate) node: PathBuf,
    pub(crate) pid: u32,
    pub(crate) boot: String,
}

/// This process, alive for as long as the last clone is.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: InstanceId,
    boot: String,
    run_dir: PathBuf,
    /// Freed when the process ends, however it ends. The mark itself stays for the reaper unless this process
    /// retires: forgetting comes after destroying.
    _lock: Flock<File>,
}

impl Instance {
    pub(crate) fn register(run_dir: &Path, node: &Path) -> Result<Self, InstanceError> {
        for directory in [
            run_dir.to_owned(),
            instances(run_dir),
            uids(run_dir),
            run_dir.join("root"),
            run_dir.join("disk"),
        ] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(|error| InstanceError { path: directory, error })?;
        }
        let id = Id::random();
        // Made beside its place and locked before it appears there, so that a reaper never meets it unlocked.
        let nascent = instances(run_dir).join(format!(".{id}"));
        let place = instances(run_dir).join(id.to_string());
        let (lock, boot) = lay_out(&nascent, id, node)
            .and_then(|laid| fs::rename(&nascent, &place).map(|()| laid))
            .map_err(|error| InstanceError { path: nascent, error })?;
        Ok(Self { inner: Arc::new(Inner { id, boot, run_dir: run_dir.to_owned(), _lock: lock }) })
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.inner.id
    }

    /// The kernel's name for this boot of the machine.
    pub(crate) fn boot(&self) -> &str {
        &self.inner.boot
    }

    /// Removes the mark. Everything that this process made must be gone.
    pub(crate) fn retire(&self) {
        let place = self.mark();
        if let Err(error) = fs::remove_dir_all(&place) {
            tracing::warn!(path = %place.display(), %error, "cannot remove this process's mark");
        }
    }

    /// The directory that says that this process lives.
    pub(crate) fn mark(&self) -> PathBuf {
        instances(&self.inner.run_dir).join(self.inner.id.to_string())
    }

    /// Notes below which cgroup sandboxes have theirs. Before the first of them: whoever finds this process dead looks
    /// there.
    pub(crate) fn note_base(&self, base: &Path) -> Result<(), InstanceError> {
        let path = self.mark().join(BASE);
        fs::write(&path, base.as_os_str().as_bytes()).map_err(|error| InstanceError { path, error })
    }

    /// The file with this process's name.
    pub(crate) fn signature(&self) -> PathBuf {
        self.mark().join("name")
    }

    /// Where ranges of user ids are claimed.
    pub(crate) fn uids(&self) -> PathBuf {
        uids(&self.inner.run_dir)
    }

    /// The empty directory that a sandbox, in its own mount namespace, puts its root on.
    pub(crate) fn root_point(&self) -> PathBuf {
        self.inner.run_dir.join("root")
    }

    /// The same for its throw-away disk.
    pub(crate) fn disk_point(&self) -> PathBuf {
        self.inner.run_dir.join("disk")
    }

    /// What systemd calls the scope of this instance, where it has one.
    pub(crate) fn scope(&self) -> String {
        format!("mayfly-{}.scope", self.inner.id)
    }

    /// The name of this instance's cgroup below each controller.
    pub(crate) fn cgroup(&self) -> PathBuf {
        cgroup_name(self.inner.id)
    }
}

fn lay_out(directory: &Path, id: InstanceId, node: &Path) -> io::Result<(Flock<File>, String)> {
    DirBuilder::new().mode(0o700).create(directory)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let owner = Owner { node: node.to_owned(), pid: std::process::id(), boot: boot.clone() };
    fs::write(directory.join("name"), id.to_string())?;
    fs::write(directory.join("owner"), serde_json::to_vec(&owner)?)?;
    let lock = File::create(directory.join("lock"))?;
    let lock =
        Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io::Error::from(errno))?;
    Ok((lock, boot))
}

/// The cgroup that an instance's cgroups are below, from the top of each tree.
pub(crate) fn base(mark: &Path) -> PathBuf {
    fs::read(mark.join(BASE)).map(|bytes| OsString::from_vec(bytes).into()).unwrap_or_default()
}

pub(crate) fn cgroup_name(id: InstanceId) -> PathBuf {
    format!("mayfly-{id}").into()
}

/// The cgroup above those of an instance's containers. Not the same, as a container engine sets limits of its own.
pub(crate) fn containers_cgroup_name(id: InstanceId) -> PathBuf {
    format!("mayfly-{id}-docker").into()
}

pub(crate) fn instances(run_dir: &Path) -> PathBuf {
    run_dir.join("instances")
}

pub(crate) fn uids(run_dir: &Path) -> PathBuf {
    run_dir.join("uids")
}

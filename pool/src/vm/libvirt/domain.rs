//! One machine as libvirt knows it: its files, its channel, and how a life in it begins.
//!
//! It is booted once and kept, in memory, at the point where its agent waits; every life begins exactly there. What a life's
//! process could write to is a copy of what was kept, and ends with it: the one that later lives begin from is root's
//! alone, and no process in which a guest has run has ever had it open since it was made.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use libvirt_protocol::Ask;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    net::{UnixListener, UnixStream},
    process::Command,
    task::spawn_blocking,
};

use super::{
    engine::Engine,
    error::LibvirtError,
    stable::Stable,
    xml::{self, Files, Owner, Place},
};
use crate::{
    body::DestroyError,
    failpoint,
    id::GenerationId,
    ledger::Ended,
    uids::UidRange,
    vm::{Accelerator, machine::Machine},
};

/// The one snapshot.
const SNAPSHOT: &str = "clean";

/// How long libvirt may take to start a machine, or to bring it to where it was kept. Alone it takes half a second.
const STARTING: Duration = Duration::from_secs(20);
const KEEPING: Duration = Duration::from_secs(30);
const REMOVING: Duration = Duration::from_secs(20);

const KVM: &str = "/dev/kvm";

/// A machine. Dropped, it is one that nobody can vouch for: it is ended and forgotten when libvirt can be asked.
#[derive(Debug)]
pub(crate) struct Domain {
    stable: Arc<Stable>,
    own: Option<Own>,
}

/// All that is one machine's.
#[derive(Debug)]
pub(super) struct Own {
    name: String,
    folder: PathBuf,
    files: Files,
    /// Which machines are as good as this one.
    pub(super) kind: String,
    listener: UnixListener,
    uids: UidRange,
    gid: u32,
    /// Whether the life that it has now began as it must, so that the next may begin there too.
    sound: bool,
}

/// A machine's process, which opened its channel by itself.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) stream: UnixStream,
    pub(super) pid: i32,
    pub(super) handle: OwnedFd,
}

impl Own {
    /// Lays out a machine's files. Libvirt hears nothing of it yet.
    pub(super) async fn lay_out(
        folder: PathBuf,
        name: String,
        kind: String,
        machine: &Machine,
        uids: UidRange,
    ) -> Result<Self, LibvirtError> {
        let files = Files::below(&folder);
        enterable(&folder)?;
        let (form, there) = (machine.form.clone(), files.clone());
        let sources =
            [(form.kernel, there.kernel), (form.initramfs, there.initramfs), (form.disk, there.image)];
        let linked = spawn_blocking(move || sources.iter().try_for_each(|(from, to)| show(from, to))).await;
        linked.unwrap_or_else(|error| {
            Err(LibvirtError::File { doing: "show", path: folder.clone(), error: error.into() })
        })?;
        make_disk(&files.state).await?;
        let listener =
            UnixListener::bind(&files.socket).map_err(LibvirtError::file("listen at", &files.socket))?;
        for path in [&files.state, &files.socket] {
            give(path, uids.base()).map_err(LibvirtError::file("give away", path))?;
        }
        let gid = match machine.accelerator {
            // Its group is how nobody may open it.
            Accelerator::Kvm => {
                use std::os::unix::fs::MetadataExt;
                fs::metadata(KVM).map_err(LibvirtError::file("look at", KVM))?.gid()
            }
            Accelerator::Tcg => uids.base(),
        };
        Ok(Self { name, folder, files, kind, listener, uids, gid, sound: false })
    }

    /// Waits until the machine's process opens its channel.
    async fn opened(&self) -> Result<Process, LibvirtError> {
        let failed = || LibvirtError::file("listen at", &self.files.socket);
        let (stream, _) = self.listener.accept().await.map_err(failed())?;
        let peer = stream.peer_cred().map_err(failed())?;
        let pid = peer.pid().filter(|_| peer.uid() == self.uids.base());
        let pid = pid.ok_or(LibvirtError::Stranger(peer.uid()))?;
        let id = Pid::from_raw(pid).ok_or(LibvirtError::Stranger(peer.uid()))?;
        let handle = pidfd_open(id, PidfdFlags::empty()).map_err(io::Error::from).map_err(failed())?;
        Ok(Process { stream, pid, handle })
    }

    /// Makes the disk that the next life's process may write to.
    async fn put_clean_disk(&self) -> Result<(), LibvirtError> {
        let (clean, state, uid) = (self.files.clean.clone(), self.files.state.clone(), self.uids.base());
        let copied = spawn_blocking(move || {
            forget(&state)?;
            fs::copy(&clean, &state)?;
            give(&state, uid)
        });
        let copied = copied.await.unwrap_or_else(|error| Err(error.into()));
        copied.map_err(LibvirtError::file("copy", &self.files.clean))
    }

    /// Takes away what a life could write to. The first time that is what all later ones begin from: its process has ended,
    /// and no job was ever in it.
    fn lay_to_rest(&self) -> io::Result<()> {
        let Files { state, clean, .. } = &self.files;
        if clean.exists() {
            return forget(state);
        }
        chown(state, Some(0), Some(0))?;
        fs::set_permissions(state, fs::Permissions::from_mode(0o400))?;
        failpoint::pass("vm-resting");
        fs::rename(state, clean)
    }

    /// Ends the machine and forgets it.
    pub(super) async fn remove(&self, engine: &Engine) -> Result<(), LibvirtError> {
        engine.ask(Ask::Remove { domain: self.name.clone() }, REMOVING).await?;
        failpoint::pass("vm-forgotten");
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LibvirtError::file("remove", &self.folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// What may still run keeps its ids beyond this process.
    pub(super) fn keep_ids(self) {
        self.uids.keep();
    }
}

impl Domain {
    pub(super) fn of(stable: &Arc<Stable>, own: Own) -> Self {
        Self { stable: Arc::clone(stable), own: Some(own) }
    }

    fn own(&self) -> &Own {
        self.own.as_ref().expect("only an end takes it")
    }

    pub(crate) fn name(&self) -> &str {
        &self.own().name
    }

    pub(crate) fn uids(&self) -> &UidRange {
        &self.own().uids
    }

    /// The group of its process.
    pub(crate) fn gid(&self) -> u32 {
        self.own().gid
    }

    /// The life in it began as it must.
    pub(crate) fn be_sound(&mut self) {
        if let Some(own) = &mut self.own {
            own.sound = true;
        }
    }

    /// Starts it for the first time.
    pub(super) async fn boot(&self, machine: &Machine, owner: Owner<'_>) -> Result<Process, LibvirtError> {
        let own = self.own();
        let place = Place { name: &own.name, owner, files: &own.files, uid: own.uids.base(), gid: own.gid };
        let boot = self.stable.engine.ask(Ask::Boot { xml: xml::domain(machine, &place) }, STARTING);
        let (_, process) = tokio::try_join!(boot, own.opened())?;
        Ok(process)
    }

    /// Keeps it as it is now, for all lives to come.
    pub(super) async fn keep(&self) -> Result<(), LibvirtError> {
        let ask = Ask::Keep { domain: self.own().name.clone(), snapshot: SNAPSHOT.to_owned() };
        self.stable.engine.ask(ask, KEEPING).await.map(drop)
    }

    /// Has it go on from where it was kept, in a process of its own. Nobody has told it yet that it is another.
    pub(super) async fn revert(&self) -> Result<Process, LibvirtError> {
        let own = self.own();
        own.put_clean_disk().await?;
        failpoint::pass("vm-copied");
        // Of a start that nobody waited for.
        while own.listener.accept().now_or_never().is_some() {}
        let ask = Ask::Revert { domain: own.name.clone(), snapshot: SNAPSHOT.to_owned() };
        let (_, process) = tokio::try_join!(self.stable.engine.ask(ask, STARTING), own.opened())?;
        // Open in its process it lives on, and ends with it.
        forget(&own.files.state).map_err(LibvirtError::file("remove", &own.files.state))?;
        Ok(process)
    }

    /// Says at libvirt which sandbox it is in this life.
    pub(super) async fn label(&self, owner: Owner<'_>, life: GenerationId) -> Result<(), LibvirtError> {
        let ask = Ask::Label { domain: self.own().name.clone(), element: owner.label(life) };
        self.stable.engine.ask(ask, STARTING).await.map(drop)
    }

    /// Its process has ended. One that was sound rests where it was kept; any other one is ended and forgotten.
    pub(crate) async fn end(mut self) -> Result<Ended, DestroyError> {
        let own = self.own.take().expect("only an end takes it");
        if !own.sound {
            return self.stable.remove(own).await.map(|()| Ended::Destroyed);
        }
        if let Err(error) = own.lay_to_rest() {
            tracing::error!(domain = own.name, %error, "a machine cannot be put back to where it was kept");
            return self.stable.remove(own).await.map(|()| Ended::Destroyed);
        }
        if let Some(surplus) = self.stable.rest(Own { sound: false, ..own })
            && let Err(error) = self.stable.remove(surplus).await
        {
            tracing::error!(%error, "a machine that is not needed cannot be ended: it is tried again");
        }
        Ok(Ended::Reverted)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            self.stable.condemn(own);
        }
    }
}

/// Makes a directory that can be entered and not listed, below others that can be entered.
fn enterable(folder: &Path) -> Result<(), LibvirtError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o711);
    // The last machine of another process may have taken the directory above away.
    let made = (0..3).map(|_| builder.create(folder)).find(Result::is_ok);
    made.unwrap_or_else(|| builder.create(folder)).map_err(LibvirtError::file("make", folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))
        .map_err(LibvirtError::file("open", folder))?;
    match shut(folder) {
        Some(path) => Err(LibvirtError::Closed(path.to_owned())),
        None => Ok(()),
    }
}

/// The directory on the way to a place that only some may enter.
pub(super) fn shut(folder: &Path) -> Option<&Path> {
    let open = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
    folder.ancestors().filter(|path| path.exists()).find(|path| !open(path))
}

/// Shows a machine's process a file of the store, which lies where nobody can go. The same file, where that can be.
fn show(from: &Path, to: &Path) -> Result<(), LibvirtError> {
    let readable = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0);
    if readable(from) && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map_err(LibvirtError::file("copy", from))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o444)).map_err(LibvirtError::file("show", to))
}

/// The smallest disk: a snapshot of the whole machine must be somewhere, and nothing else is.
async fn make_disk(path: &Path) -> Result<(), LibvirtError> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg("1M").stdin(Stdio::null());
    let output = command.output().await.map_err(|error| LibvirtError::Disk(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(LibvirtError::Disk(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn give(path: &Path, uid: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    chown(path, Some(uid), Some(uid))
}

fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
impl Own {
    /// One that libvirt has never heard of.
    pub(super) fn unknown(folder: PathBuf, uids: UidRange) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let (name, kind) = (folder.display().to_string(), String::new());
        let (files, gid) = (Files::below(&folder), uids.base());
        let listener = UnixListener::bind(&files.socket).unwrap();
        Self { name, folder, files, kind, listener, uids, gid, sound: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_nobody_may_enter_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("machines/instance/1");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let refused = enterable(&place).unwrap_err();
        assert!(matches!(&refused, LibvirtError::Closed(path) if path == folder.path()), "{refused}");
        assert!(refused.fix().unwrap().contains("chmod o+x"));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        enterable(&place).unwrap();
    }

    #[test]
    fn a_file_of_the_store_is_shown_and_stays_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        fs::write(&from, "image").unwrap();
        for (mode, shown) in [(0o644, 0o644), (0o600, 0o444)] {
            fs::set_permissions(&from, fs::Permissions::from_mode(mode)).unwrap();
            show(&from, &to).unwrap();
            let found = fs::metadata(&to).unwrap().permissions().mode() & 0o777;
            assert_eq!((found, fs::read(&to).unwrap().as_slice()), (shown, b"image".as_slice()));
            assert_eq!(fs::metadata(&from).unwrap().permissions().mode() & 0o777, mode);
            fs::remove_file(&to).unwrap();
        }
    }
}

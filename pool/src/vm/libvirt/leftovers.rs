//! The machines of dead processes, for the reaper: it works without an async runtime, or beside one.
//!
//! A process that is about to make its first machine writes down where libvirt is, in its mark. Only such marks lead here, so a
//! host without libvirt is never asked for it.

use std::{
    fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use libvirt_protocol::{Answer, Ask};
use tokio::runtime::Builder;

use super::{engine::Engine, error::LibvirtError};
use crate::{id::InstanceId, vm::settings::Libvirt as Settings};

/// The file in a process's mark.
const FILE: &str = "libvirt";

/// The directory of a node's machines, one below it for each process.
const MACHINES: &str = "machines";

const PATIENCE: Duration = Duration::from_secs(20);

/// Where a process has its machines' files.
pub(super) fn folder(node: &Path, instance: InstanceId) -> PathBuf {
    node.join(MACHINES).join(instance.to_string())
}

/// Removes a process's directory, and the one above if it was the last.
pub(super) fn clear(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    if let Some(above) = folder.parent() {
        // Another process's may be there.
        let _ = fs::remove_dir(above);
    }
}

/// Notes in a process's mark that it makes machines at libvirt.
pub(super) fn note(mark: &Path, settings: &Settings) -> Result<(), LibvirtError> {
    let path = mark.join(FILE);
    let text = serde_json::to_vec(settings).expect("paths and strings are always JSON");
    fs::write(&path, text).map_err(LibvirtError::file("write", &path))
}

/// Where a process made machines, if it made any.
pub(crate) fn noted(mark: &Path) -> Option<Settings> {
    serde_json::from_slice(&fs::read(mark.join(FILE)).ok()?).ok()
}

/// How many machines a dead process left; none known where libvirt does not answer.
pub(crate) fn count(settings: &Settings, instance: InstanceId) -> usize {
    wait(async { Ok(of_instance(&Engine::new(settings)?, instance).await?.len()) }).unwrap_or(0)
}

/// Ends and forgets the machines of a dead process, with their files.
pub(crate) fn remove(settings: &Settings, node: &Path, instance: InstanceId) -> Result<(), LibvirtError> {
    wait(async {
        let engine = Engine::new(settings)?;
        for domain in of_instance(&engine, instance).await? {
            engine.ask(Ask::Remove { domain }, PATIENCE).await?;
        }
        Ok(())
    })?;
    clear(&folder(node, instance));
    Ok(())
}

/// Which libvirt and which QEMU there are, for `mayfly doctor`.
pub(crate) fn inspect(settings: &Settings) -> Result<(String, String), LibvirtError> {
    wait(async {
        match Engine::new(settings)?.ask(Ask::Host, PATIENCE).await? {
            Answer::Host { libvirt, qemu } => Ok((libvirt, qemu)),
            _ => Err(LibvirtError::Died),
        }
    })
}

async fn of_instance(engine: &Engine, instance: InstanceId) -> Result<Vec<String>, LibvirtError> {
    match engine.ask(Ask::List { instance: instance.to_string() }, PATIENCE).await? {
        Answer::Domains(names) => Ok(names),
        _ => Err(LibvirtError::Died),
    }
}

/// Runs a conversation to its end on a thread of its own: the caller's may be one of a runtime, which must not wait so.
fn wait<T: Send>(talk: impl Future<Output = Result<T, LibvirtError>> + Send) -> Result<T, LibvirtError> {
    let failed = |error: io::Error| LibvirtError::file("start a conversation with", "libvirt")(error);
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(talk)
        });
        talking.join().unwrap_or_else(|_| Err(failed(io::Error::other("the thread for it panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_said_so_has_machines() {
        let mark = tempfile::tempdir().unwrap();
        assert_eq!(noted(mark.path()), None);
        let settings = Settings { program: Some("/usr/bin/mayfly-libvirt".into()), ..Settings::default() };
        note(mark.path(), &settings).unwrap();
        assert_eq!(noted(mark.path()), Some(settings));
    }
}

//! The containers of dead processes, for the reaper: it works without an async runtime, or beside one.
//!
//! A process that is about to make its first container writes down where the daemon is, in its mark. Only such marks lead
//! here, so a host without Docker is never asked for it.

use std::{fs, future::Future, io, path::Path, thread};

use tokio::runtime::Builder;

use super::{DockerError, engine, fleet, settings::Docker};
use crate::id::InstanceId;

/// The file in a process's mark.
const FILE: &str = "docker";

/// Notes in a process's mark that it makes containers at a daemon.
pub(crate) fn note(mark: &Path, settings: &Docker) -> Result<(), DockerError> {
    let path = mark.join(FILE);
    fs::write(&path, &settings.host).map_err(|error| DockerError::Mark { path, error })
}

/// The daemon at which a process made containers, if it made any.
pub(crate) fn noted(mark: &Path) -> Option<Docker> {
    let host = fs::read_to_string(mark.join(FILE)).ok()?;
    Some(Docker { host, ..Docker::default() })
}

/// How many containers a dead process left; none known where the daemon does not answer.
pub(crate) fn count(settings: &Docker, instance: InstanceId) -> usize {
    let counted =
        wait(async { Ok(fleet::of_instance(&engine::connect(settings).await?, instance).await?.len()) });
    counted.unwrap_or(0)
}

/// Ends and removes the containers of a dead process.
pub(crate) fn remove(settings: &Docker, instance: InstanceId) -> Result<(), DockerError> {
    wait(async { fleet::remove_all_of(&engine::connect(settings).await?, instance).await })
}

/// What a daemon is, for `mayfly doctor`.
pub(crate) fn inspect(settings: &Docker) -> Result<engine::Engine, DockerError> {
    wait(async { engine::ask(&engine::connect(settings).await?, settings).await })
}

/// Runs a conversation to its end on a thread of its own: the caller's may be one of a runtime, which must not wait so.
fn wait<T: Send>(talk: impl Future<Output = Result<T, DockerError>> + Send) -> Result<T, DockerError> {
    let failed =
        |error: io::Error| DockerError::request("start a conversation with the docker daemon")(error.into());
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(talk)
        });
        talking.join().unwrap_or_else(|_| Err(failed(io::Error::other("the thread for it panicked"))))
    })
}

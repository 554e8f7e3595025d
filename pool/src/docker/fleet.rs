//! The containers of this process: each is known before the daemon hears of it, and forgotten when the daemon has it no more.
//!
//! A container ends twice. Its processes end by a signal through a pidfd, which needs no daemon; what the daemon keeps of
//! it goes with its first process (auto-remove), and is asked for besides. A daemon that does not answer holds nobody up:
//! its record, and the ids where it may still run, are then left to the sweep, which goes by the labels.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bollard::{
    errors::Error,
    query_parameters::{ListContainersOptions, RemoveContainerOptions},
};
use tokio::time::{sleep, timeout};

use super::{DockerError, labels};
use crate::{
    body::DestroyError,
    id::{GenerationId, InstanceId},
    uids::UidRange,
};

/// How long the daemon may take to remove a container whose processes are dead.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(10);

/// How long a daemon that does not answer is waited for.
const ABSENCE: Duration = Duration::from_secs(1);

const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// A container that the daemon is still making when nobody wants it any more.
const STRAY: Duration = Duration::from_secs(150);

/// What became of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The daemon has it no more.
    Gone,
    /// The daemon did not answer.
    Left,
}

/// All containers of this process at one daemon.
#[derive(Debug)]
pub(crate) struct Fleet {
    client: bollard::Docker,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Those that somebody has.
    held: HashSet<GenerationId>,
    /// Those that the daemon may still have, since when, with the ids that they may still use.
    left: HashMap<GenerationId, (Instant, UidRange)>,
}

/// One container, from before it is made. Ends with [`Container::remove`].
#[derive(Debug)]
pub(crate) struct Container {
    fleet: Arc<Fleet>,
    generation: GenerationId,
}

impl Fleet {
    pub(super) fn new(client: bollard::Docker) -> Arc<Self> {
        Arc::new(Self { client, known: Mutex::default() })
    }

    pub(super) fn client(&self) -> &bollard::Docker {
        &self.client
    }

    pub(super) fn announce(self: &Arc<Self>, generation: GenerationId) -> Container {
        self.known().held.insert(generation);
        Container { fleet: Arc::clone(self), generation }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics between two halves of a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the daemon may still have something of this process.
    pub(crate) fn leaves_something(&self) -> bool {
        let known = self.known();
        !known.left.is_empty() || !known.held.is_empty()
    }

    /// Removes what the daemon has of this process and nobody here holds.
    pub(super) async fn sweep(&self, instance: InstanceId) -> Result<(), DockerError> {
        // Before the list: what is announced after it cannot be in it, and what is given up before it is.
        let waiting: Vec<_> = self.known().left.keys().copied().collect();
        let found = of_instance(&self.client, instance).await?;
        for (id, generation) in &found {
            let held = generation.is_some_and(|generation| self.known().held.contains(&generation));
            if !held {
                let removed = self.client.remove_container(id, Some(by_force())).await;
                tracing::info!(container = id, removed = removed.is_ok(), "a container that nobody holds");
            }
        }
        let mut known = self.known();
        for generation in waiting {
            let gone = !found.iter().any(|(_, found)| *found == Some(generation));
            let stale = known.left.get(&generation).is_some_and(|(since, _)| since.elapsed() > STRAY);
            if gone && stale {
                known.left.remove(&generation);
            }
        }
        Ok(())
    }
}

impl Container {
    pub(super) fn client(&self) -> &bollard::Docker {
        &self.fleet.client
    }

    /// Its name at the daemon.
    pub(super) fn name(&self) -> String {
        format!("mayfly-{}", self.generation)
    }

    /// Has the daemon remove it, whatever it does.
    pub(crate) async fn remove(&self) -> Result<Removed, DestroyError> {
        let started = Instant::now();
        let name = self.name();
        loop {
            let asked = self.client().remove_container(&name, Some(by_force()));
            let error = match timeout(REMOVAL_DEADLINE, asked).await {
                // It may be on its way out only: the next answer tells.
                Ok(Ok(())) if started.elapsed() < REMOVAL_DEADLINE => continue,
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => Error::RequestTimeoutError,
            };
            match DockerError::status(&error) {
                Some(404) => return Ok(Removed::Gone),
                // By its first process's end the daemon is removing it already; or it cannot.
                Some(_) if started.elapsed() > REMOVAL_DEADLINE => {
                    return Err(DestroyError::Container { name, error: Box::new(error) });
                }
                None if started.elapsed() > ABSENCE => return Ok(Removed::Left),
                _ => sleep(BETWEEN_TRIES).await,
            }
        }
    }

    /// Leaves it to the sweep, with the ids that it may still use.
    pub(crate) fn leave(self, uids: UidRange) {
        self.fleet.known().left.insert(self.generation, (Instant::now(), uids));
    }
}

impl Drop for Known {
    /// What may still run keeps its ids beyond this process: the reaper gives them back.
    fn drop(&mut self) {
        self.left.drain().for_each(|(_, (_, uids))| uids.keep());
    }
}

impl Drop for Container {
    /// Nobody has it any more: what the daemon still has of it is for the sweep.
    fn drop(&mut self) {
        self.fleet.known().held.remove(&self.generation);
    }
}

fn by_force() -> RemoveContainerOptions {
    RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() }
}

/// The ids of an instance's containers, in whatever state, and which lives they are.
pub(super) async fn of_instance(
    client: &bollard::Docker,
    instance: InstanceId,
) -> Result<Vec<(String, Option<GenerationId>)>, DockerError> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{}={instance}", labels::INSTANCE)])]);
    let options =
        ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
    let found = client.list_containers(Some(options)).await;
    let found = found.map_err(DockerError::request("list the docker daemon's containers"))?;
    let life = |labels: HashMap<String, String>| labels.get(labels::GENERATION)?.parse().ok();
    Ok(found.into_iter().filter_map(|one| Some((one.id?, one.labels.and_then(life)))).collect())
}

/// Removes what a dead process left at the daemon, and waits until it is gone.
pub(super) async fn remove_all_of(client: &bollard::Docker, instance: InstanceId) -> Result<(), DockerError> {
    let started = Instant::now();
    loop {
        let found = of_instance(client, instance).await?;
        let Some((first, _)) = found.first() else { return Ok(()) };
        let mut last = None;
        for (id, _) in &found {
            match client.remove_container(id, Some(by_force())).await {
                Err(error) if DockerError::status(&error) != Some(404) => last = Some(error),
                _ => {}
            }
        }
        if started.elapsed() > REMOVAL_DEADLINE {
            let error = last.unwrap_or_else(|| io::Error::other(format!("{first} is still there")).into());
            return Err(DockerError::request("remove the containers of a dead mayfly")(error));
        }
        sleep(BETWEEN_TRIES).await;
    }
}

//! Where machines rest between two lives, and what becomes of those that nobody vouches for.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use libvirt_protocol::{Answer, Ask};

use super::{
    domain::{Domain, Own},
    engine::Engine,
    error::LibvirtError,
    leftovers,
};
use crate::{body::DestroyError, instance::Instance, vm::settings::Libvirt as Settings};

/// How many machines rest at most, of all kinds together: each is a file as large as the memory that a guest uses.
const MOST_AT_REST: usize = 32;

/// How long libvirt may take to say which it is.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// All machines of this process at one libvirt.
#[derive(Debug)]
pub(crate) struct Stable {
    pub(super) engine: Engine,
    /// The directory of this process's machines.
    folder: PathBuf,
    instance: Instance,
    numbers: AtomicU32,
    machines: Mutex<Machines>,
}

#[derive(Debug, Default)]
struct Machines {
    /// At rest, the one that has rested longest first.
    idle: Vec<Own>,
    /// To be ended and forgotten: no life begins in them any more.
    condemned: Vec<Own>,
}

impl Stable {
    pub(super) async fn open(
        settings: &Settings,
        instance: &Instance,
        node: &Path,
    ) -> Result<Arc<Self>, LibvirtError> {
        let engine = Engine::new(settings)?;
        if let Answer::Host { libvirt, qemu } = engine.ask(Ask::Host, FIRST_WORD).await? {
            tracing::debug!(libvirt, qemu, "libvirt answers");
        }
        // Before the first machine: whoever finds this process dead looks there.
        leftovers::note(&instance.mark(), &engine.settings())?;
        let folder = leftovers::folder(node, instance.id());
        let (instance, numbers, machines) = (instance.clone(), AtomicU32::new(1), Mutex::default());
        Ok(Arc::new(Self { engine, folder, instance, numbers, machines }))
    }

    /// A name and a directory for another machine.
    pub(super) fn another(&self) -> (String, PathBuf) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        (format!("mayfly-{}-{number}", self.instance.id()), self.folder.join(number.to_string()))
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        // Nothing panics between two halves of a change.
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine of a kind that rests.
    pub(super) fn take(self: &Arc<Self>, kind: &str) -> Option<Domain> {
        let mut machines = self.machines();
        // The one whose files were read last.
        let found = machines.idle.iter().rposition(|own| own.kind == kind)?;
        let own = machines.idle.remove(found);
        drop(machines);
        Some(Domain::of(self, own))
    }

    /// Lets a machine rest, and gives one that has rested too long.
    pub(super) fn rest(&self, own: Own) -> Option<Own> {
        let mut machines = self.machines();
        machines.idle.push(own);
        (machines.idle.len() > MOST_AT_REST).then(|| machines.idle.remove(0))
    }

    /// No life begins in it any more.
    pub(super) fn condemn(&self, own: Own) {
        self.machines().condemned.push(own);
    }

    /// Ends and forgets a machine, or leaves it for another time.
    pub(super) async fn remove(&self, own: Own) -> Result<(), DestroyError> {
        let removed = own.remove(&self.engine).await;
        removed.map_err(|error| {
            self.condemn(own);
            DestroyError::Domain(error.into())
        })
    }

    /// Ends and forgets those that were set aside.
    pub(crate) async fn sweep(&self) {
        let condemned = std::mem::take(&mut self.machines().condemned);
        for own in condemned {
            if let Err(error) = self.remove(own).await {
                tracing::error!(%error, "a machine that was set aside cannot be ended: it is tried again");
            }
        }
    }

    /// Ends and forgets all. Gives whether something is left.
    pub(crate) async fn close(&self) -> bool {
        {
            let mut machines = self.machines();
            let idle = std::mem::take(&mut machines.idle);
            machines.condemned.extend(idle);
        }
        self.sweep().await;
        let left = !self.machines().condemned.is_empty();
        if !left {
            leftovers::clear(&self.folder);
        }
        left
    }
}

impl Drop for Stable {
    fn drop(&mut self) {
        let machines = std::mem::take(self.machines.get_mut().unwrap_or_else(PoisonError::into_inner));
        machines.idle.into_iter().chain(machines.condemned).for_each(Own::keep_ids);
    }
}

/// Whether a machine's process could find its files below a node's directory.
pub(crate) fn shut(node: &Path) -> Option<PathBuf> {
    let node = fs::canonicalize(node).ok()?;
    super::domain::shut(&node).map(Path::to_owned)
}

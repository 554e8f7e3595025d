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

/// How many machines that could not be ended there may be before no other is booted.
const MOST_UNENDED: usize = 8;

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

    /// Refuses another machine while too many could not be ended.
    pub(super) async fn make_room(&self) -> Result<(), LibvirtError> {
        if self.unended() >= MOST_UNENDED {
            self.sweep().await;
        }
        match self.unended() {
            unended if unended >= MOST_UNENDED => Err(LibvirtError::Unended(unended)),
            _ => Ok(()),
        }
    }

    fn unended(&self) -> usize {
        self.machines().condemned.len()
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
        let left = self.unended() > 0;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uids::UidRange;

    /// Refuses while there is a file of that name, then does all that it is asked.
    const STUBBORN: &str = r#"#!/bin/sh
echo '{"protocol":2}'
while read -r line; do
  id=${line#*'"id":'} id=${id%%,*}
  if [ -e FOLDER/refuses ]; then echo "{\"id\":$id,\"answer\":{\"refused\":{\"step\":\"end it\",\"why\":\"no\"}}}"
  else echo "{\"id\":$id,\"answer\":\"done\"}"; fi
done
"#;

    #[tokio::test]
    async fn machines_that_cannot_be_ended_are_few_and_are_ended_once_they_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let script = STUBBORN.replace("FOLDER", &folder.path().to_string_lossy());
        fs::write(file("engine"), script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(file("engine"), executable).unwrap();
        fs::write(file("refuses"), "").unwrap();
        let settings = Settings { program: Some(file("engine")), ..Settings::default() };
        let instance = Instance::register(&file("run"), &file("data")).unwrap();
        let stable = Stable {
            engine: Engine::new(&settings).unwrap(),
            folder: file("machines"),
            instance: instance.clone(),
            numbers: AtomicU32::new(1),
            machines: Mutex::default(),
        };
        for number in 0..MOST_UNENDED {
            stable.make_room().await.unwrap();
            let uids = UidRange::claim(&instance.uids(), &instance.signature()).unwrap();
            let own = Own::unknown(file("machines").join(number.to_string()), uids);
            stable.remove(own).await.unwrap_err();
        }
        let refused = stable.make_room().await.unwrap_err();
        assert!(matches!(refused, LibvirtError::Unended(MOST_UNENDED)), "{refused}");
        assert!(refused.fix().unwrap().contains("virsh list"));

        fs::remove_file(file("refuses")).unwrap();
        stable.make_room().await.unwrap();
        assert_eq!((stable.unended(), fs::read_dir(file("machines")).unwrap().count()), (0, 0));
        instance.retire();
    }
}

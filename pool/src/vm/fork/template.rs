//! A template: the memory of a machine that was booted once and waits for its first word, sealed, and the state of its
//! devices.
//!
//! On disk it is three files below the image's form. It is used only if it was made by the same program on the same kind of
//! CPU, and if its bytes, read into memory and sealed there, still have the digest that they had when they were made. Every
//! other one is made anew. What is in memory cannot change any more, by anybody.
//!
//! ```text
//! SHAPE.lock                    held while one is made, shared while one is read
//! SHAPE/memory, state           as the machine left them; pages of zeroes are holes
//! SHAPE/template.json           what they depend on, and their digest
//! ```

mod store;

pub(crate) use self::store::forget_unfinished;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use agent::message::Bounds;
use rustix::fs::{MemfdFlags, Mode, SealFlags};
use serde_json::json;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{Begin, Complaints, Machine, Running, VmError, ignore_shared, open, start};
use crate::{
    failpoint,
    id::Id,
    limits::Limits,
    sandbox::Sandbox,
    tier::Tier,
    vm::{BOOT_DEADLINE, bounds_of, freshness, qmp::QmpError},
    workshop::{MakeError, Workshop},
};

const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What clones begin from.
#[derive(Debug)]
pub(crate) struct Template {
    memory: OwnedFd,
    state: OwnedFd,
}

impl Template {
    /// The sealed memory.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The devices' state, from its beginning, for one reader.
    pub(super) fn state(&self) -> io::Result<OwnedFd> {
        reopened(&self.state).map(Into::into)
    }

    /// Closes memory and state to every change. Fails while anybody could still write to them.
    fn seal(self) -> io::Result<Self> {
        for file in [&self.memory, &self.state] {
            let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(file, all)?;
        }
        Ok(self)
    }
}

/// Another description of the same file, with a position of its own.
fn reopened(file: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// A file in memory that can be sealed. Whoever runs a machine opens it again, as a user of its own.
fn memory_file(name: &str, size: u64) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o666))?;
    rustix::fs::ftruncate(&file, size)?;
    Ok(file)
}

/// The template from the disk if it is good, else from a machine that is booted now.
pub(super) async fn load_or_boot(
    workshop: &Workshop,
    machine: &Machine,
    bounds: Bounds,
) -> Result<std::sync::Arc<Template>, MakeError> {
    let place = store::Place::of(machine);
    let reading = place.clone();
    let read = spawn_blocking(move || reading.read()).await.map_err(VmError::Stopped)?;
    if let Some(template) = read? {
        return Ok(template.into());
    }
    let locking = place.clone();
    let lock = spawn_blocking(move || locking.lock_to_make()).await.map_err(VmError::Stopped)??;
    // Another process may have made it while this one waited for the lock.
    let again = place.clone();
    let read = spawn_blocking(move || again.load()).await.map_err(VmError::Stopped)?;
    if let Some(template) = read? {
        return Ok(template.into());
    }
    let template = boot(workshop, machine, bounds).await?;
    failpoint::pass("vm-kept");
    let kept = spawn_blocking(move || {
        if let Err(error) = place.write(&template) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "only this process has this template: the next one boots a machine again");
        }
        template
    });
    let template = kept.await.map_err(VmError::Stopped)?;
    drop(lock);
    Ok(template.into())
}

/// Boots a machine, waits until its agent has answered once, and stops it there.
async fn boot(workshop: &Workshop, machine: &Machine, bounds: Bounds) -> Result<Template, MakeError> {
    let failed = |doing| VmError::template(doing, machine.shape());
    let memory = memory_file("mayfly-memory", machine.memory).map_err(failed("make memory for"))?;
    let state = memory_file("mayfly-state", 0).map_err(failed("make the state of"))?;
    let generation = Id::random();
    let disk = open(machine)?;
    let file = |path| File::open(path).map_err(failed("open what boots"));
    let (kernel, initramfs) = (file(&machine.form.kernel)?, file(&machine.form.initramfs)?);
    let files = [memory.as_fd(), disk.as_fd(), kernel.as_fd(), initramfs.as_fd()];
    let remains = workshop.lay_out(Tier::Vm, generation, &machine.boot_limits())?;
    let mut sandbox = Sandbox::new(remains, &workshop.undertaker);
    let complaints = Complaints::new()?;
    let started = async {
        let Running { mut channel, mut monitor } =
            start(workshop, &mut sandbox, machine, Begin::Boot, &files, &complaints).await?;
        failpoint::pass("vm-booting");
        let renewed = freshness::renew_first(&mut channel, generation, bounds);
        tokio::select! {
            renewed = renewed => renewed.map_err(VmError::from)?,
            // A guest that cannot run says nothing, for ever.
            stopped = monitor.stopped() => return Err(VmError::from(stopped).into()),
        }
        stop(&mut monitor, &state).await.map_err(VmError::from)?;
        Ok::<_, MakeError>(())
    };
    let started = timeout(BOOT_DEADLINE, started).await.unwrap_or(Err(VmError::Late(BOOT_DEADLINE).into()));
    started.map_err(|error| complaints.explain(error))?;
    sandbox.destroy().await.map_err(|error| failed("end the machine of")(io::Error::other(error)))?;
    Ok(Template { memory, state }.seal().map_err(failed("seal"))?)
}

/// Whether a machine boots at all.
pub(crate) async fn boots(workshop: &Workshop, machine: &Machine) -> Result<(), MakeError> {
    let least = Limits { memory: Limits::LEAST_MEMORY, disk: Limits::LEAST_DISK, ..Limits::default() };
    boot(workshop, machine, bounds_of(&least)).await.map(drop)
}

/// Has a machine stop and keeps the state of its devices. It stops at the end of that, as one that ran: so a clone runs.
async fn stop(monitor: &mut super::Monitor, state: &OwnedFd) -> Result<(), QmpError> {
    ignore_shared(monitor).await?;
    monitor.give("state", state.as_fd()).await?;
    monitor.ask("migrate", json!({ "uri": "fd:state" })).await?;
    loop {
        let state = monitor.ask("query-migrate", json!({})).await?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => return Err(QmpError::Migration("keep the state of a template")),
            _ => sleep(BETWEEN_LOOKS).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_sealed_can_be_read_and_never_written() {
        let file = |name| memory_file(name, 8192).unwrap();
        let (memory, state) = (file("memory"), file("state"));
        let writer = File::from(memory.try_clone().unwrap());
        writer.write_all_at(b"template", 0).unwrap();
        let template = Template { memory, state }.seal().unwrap();
        // Through the descriptor that a clone gets, and through one that it opens by it, as QEMU does.
        let path = format!("/proc/self/fd/{}", template.memory().as_raw_fd());
        let reopened = File::options().read(true).write(true).open(path);
        for file in [writer, reopened.unwrap()] {
            let refused = file.write_all_at(b"poison", 0).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"template");
        }
    }
}

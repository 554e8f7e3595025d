//! The vm tier: a sandbox with a kernel, memory and disk of its own, made by QEMU.
//!
//! What every engine shares lies beside this file: the machine and its limits, which accelerator runs it, the channel
//! through its serial port, and the gate that makes each life a new one. How a machine comes to be clean is an engine's:
//! `vm/fork.rs` begins many lives in the memory of one that was booted once, `vm/libvirt.rs` reverts one to where it was kept.
//!
//! The agent is the machine's first process and makes the sandbox inside, hardened as on the other tiers. The host sees
//! one process, QEMU, in the job's cgroup, and nothing of what is in it: where it cannot look, the guest's word is marked as such.

mod accelerator;
mod error;
mod fork;
mod freshness;
pub(crate) mod libvirt;
mod machine;
mod qemu;
mod qmp;
mod settings;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use images::{Image, RootMode, Silent, Store};
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

pub use self::{
    accelerator::Accelerator,
    error::VmError,
    libvirt::{LibvirtError, check_local},
    settings::{Accel, Engine, Kernel, Libvirt as LibvirtSettings, Sharing, Vm},
};
use self::{
    accelerator::Judge,
    fork::{Fork, Started},
    libvirt::{Begun, Libvirt, Stable},
    machine::Machine,
};
pub(crate) use self::{
    accelerator::{Outlook, outlook},
    fork::launch::{Launch, launch},
    machine::bounds_of,
};
use crate::{
    body::Body,
    failpoint, greeting,
    lease::Proof,
    limits::Limits,
    proof,
    workshop::{MAKING_DEADLINE, MakeError, Workshop, identity},
};

/// How long a machine may take from its first instruction until its agent answers. Under software emulation on a busy
/// host that takes many times what it takes alone.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// Makes machines on this host.
#[derive(Debug)]
pub(crate) struct Tier {
    workshop: Arc<Workshop>,
    store: Store,
    settings: Vm,
    /// Asked when the first machine is wanted, for most pools never want one, and again when QEMU is another.
    host: Mutex<Option<Host>>,
    judge: Judge,
    maker: Maker,
}

/// What makes them.
#[derive(Debug)]
enum Maker {
    Fork(Fork),
    Libvirt(Libvirt),
}

/// What machines run on.
#[derive(Debug, Clone)]
struct Host {
    qemu: qemu::Installed,
    accelerator: Accelerator,
}

impl Tier {
    pub(crate) fn new(
        workshop: Arc<Workshop>,
        store: Store,
        settings: Vm,
        run_dir: &Path,
        node: &Path,
    ) -> Self {
        let maker = match &settings.engine {
            Engine::Fork => Maker::Fork(Fork::new(Arc::clone(&workshop))),
            Engine::Libvirt(libvirt) => {
                Maker::Libvirt(Libvirt::new(Arc::clone(&workshop), libvirt.clone(), node))
            }
        };
        Self { workshop, store, settings, host: Mutex::default(), judge: Judge::new(run_dir), maker }
    }

    /// Whether a machine of one owner is none that another could have.
    pub(crate) fn keeps_owners_apart(&self) -> bool {
        // A domain's memory is its own: nothing of it is anybody else's.
        self.settings.sharing == Sharing::Owner && matches!(self.maker, Maker::Fork(_))
    }

    /// Makes a sandbox and proves that it is clean.
    pub(crate) async fn make(
        &self,
        image: Arc<Image>,
        limits: Limits,
        owner: Option<&str>,
    ) -> Result<Proof, MakeError> {
        let started = Instant::now();
        let form = self.form(&image).await?;
        let Host { qemu, accelerator } = self.look(&form).await?;
        let machine = Machine::of(form, &image, &limits, qemu, accelerator);
        let begun = match &self.maker {
            Maker::Fork(fork) => self.begin(fork, &machine, &image, &limits, owner).await?,
            Maker::Libvirt(libvirt) => libvirt.make(&machine, &image, &limits).await?,
        };
        let Begun { generation, sandbox, channel, ready } = begun;
        failpoint::pass("vm-clean");
        let body = Body::Vm { sandbox, accelerator };
        Ok(Proof { generation, image, limits, ready, making: started.elapsed(), channel, body })
    }

    /// Has a machine go on from a template and proves that it is somebody new.
    async fn begin(
        &self,
        fork: &Fork,
        machine: &Machine,
        image: &Image,
        limits: &Limits,
        owner: Option<&str>,
    ) -> Result<Begun, MakeError> {
        let template = fork.template(machine, bounds_of(limits), owner).await?;
        let began = Instant::now();
        let Started { generation, sandbox, complaints, running } =
            fork.start(&template, machine, limits, owner).await?;
        let settled = async {
            let mut channel = running.go_on().await?;
            let cloned = began.elapsed();
            failpoint::pass("vm-begun");
            freshness::renew(&mut channel, generation, bounds_of(limits)).await.map_err(VmError::from)?;
            let renewed = began.elapsed();
            let writable_root = image.config.root == RootMode::Writable;
            let ready =
                greeting::greet(&mut channel, Some(identity(image)), writable_root, MAKING_DEADLINE).await?;
            let ready_after = began.elapsed();
            tracing::debug!(%generation, ?cloned, ?renewed, ?ready_after, "a machine begins");
            proof::check_machine(&sandbox).map_err(MakeError::Unconfined)?;
            Ok::<_, MakeError>((channel, ready))
        };
        let settled =
            timeout(MAKING_DEADLINE, settled).await.unwrap_or(Err(VmError::Late(MAKING_DEADLINE).into()));
        let (channel, ready) = settled.map_err(|error| complaints.explain(error))?;
        Ok(Begun { generation, sandbox, channel, ready })
    }

    /// Ends what has waited for too long, or could not be ended before.
    pub(crate) async fn sweep(&self) {
        match &self.maker {
            Maker::Fork(fork) => fork.sweep(),
            Maker::Libvirt(libvirt) => {
                if let Some(stable) = libvirt.stable() {
                    stable.sweep().await;
                }
            }
        }
    }

    /// Ends what waits for a life that will not come.
    pub(crate) async fn close(&self) {
        if let Maker::Fork(fork) = &self.maker {
            fork.close().await;
        }
    }

    /// The machines that rest, where there are such.
    pub(crate) fn stable(&self) -> Option<Arc<Stable>> {
        match &self.maker {
            Maker::Fork(_) => None,
            Maker::Libvirt(libvirt) => libvirt.stable().cloned(),
        }
    }

    /// What machines run on now: packages are upgraded under a host that serves.
    async fn look(&self, form: &images::MachineForm) -> Result<Host, MakeError> {
        let qemu = qemu::find(&self.settings)?;
        let mut host = self.host.lock().await;
        if let Some(host) = host.as_ref().filter(|host| host.qemu == qemu) {
            return Ok(host.clone());
        }
        let accelerator = self.judge.choose(&self.settings, &qemu, form, &self.workshop).await?;
        Ok(host.insert(Host { qemu, accelerator }).clone())
    }

    async fn form(&self, image: &Arc<Image>) -> Result<images::MachineForm, VmError> {
        let (store, image, kernel) = (self.store.clone(), Arc::clone(image), self.settings.kernel.source());
        let made = spawn_blocking(move || store.machine_form(&image, &kernel, &mut Silent)).await;
        Ok(made.map_err(VmError::Stopped)??)
    }
}

/// The programs that the tier needs, if they are here. Runs nothing.
pub(crate) fn tools(settings: &Vm) -> Result<qemu::Installed, VmError> {
    let qemu = qemu::find(settings)?;
    images::machine_tools().map_err(|error| VmError::Form(error.into()))?;
    Ok(qemu)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Takes away templates that dead processes had begun to write.
pub(crate) fn forget_unfinished(images: &Path) {
    for templates in images::machine_templates(images) {
        if let Err(error) = fork::forget_unfinished(&templates) {
            tracing::warn!(templates = %templates.display(), %error, "cannot remove an unfinished template");
        }
    }
}

//! One kind of machine: what it is made of, how large it is, and QEMU's command line for it.
//!
//! Two devices and no more: the image's files as a read-only disk, and a serial port to the agent. No network, no display,
//! no USB, no shared folder, no monitor but ours. The writable layer is the guest's own memory, so nothing of it is ever a
//! file of the host's.

use agent::message::{Bounds, Identity};
use images::{Image, MachineForm, RootMode};

use super::{Accelerator, qemu};
use crate::{limits::Limits, workshop::identity};

const MIB: u64 = 1024 * 1024;

/// What a guest's kernel and agent need beside the job, in bytes: a part that is always the same, and the kernel's own
/// record of each page.
const GUEST_NEEDS: u64 = 72 * MIB;
const PAGE_RECORDS: u64 = 32;

/// Memory of the smallest machine.
const SMALLEST: u64 = 128 * MIB;

/// What QEMU itself may use beside the guest's memory: its code's translations, devices, buffers.
const TRANSLATIONS_MIB: u64 = 32;
const QEMU_NEEDS: u64 = (TRANSLATIONS_MIB + 160) * MIB;

/// What a guest's kernel would do and nobody asks it for: security modules without a policy, watching for pressure and for
/// hangs of its own, groups of terminals, tidying its memory while it waits, sums of counters each second. Emulated, all of
/// that is translated in each life anew.
const UNUSED: &str = "lsm=landlock,lockdown,yama psi=0 nowatchdog noautogroup \
                      sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=3600";

/// What the CPU of a guest does not have. No machine within the machine; and emulated, an address space as small as most
/// hosts' own, and no promise that moving memory byte by byte is fast: each byte takes a turn, and without the promise kernel
/// and libraries move words.
const LACKING: [&str; 2] = ["vmx", "svm"];
const LACKING_EMULATED: [&str; 4] = ["svm", "la57", "erms", "fsrm"];

/// Threads of one QEMU: its loop, one for each CPU, and its helpers, which alone may be 64 while a snapshot is written. It
/// dies where one is refused.
const QEMU_THREADS: u32 = 96;

/// Descriptors of QEMU's by their number: [`launch`](super::launch) lays them out in this order.
pub(super) const AGENT_FD: i32 = 3;
pub(super) const MONITOR_FD: i32 = 4;
pub(super) const MEMORY_FD: i32 = 5;
pub(super) const DISK_FD: i32 = 6;
/// Of a machine that boots, the kernel and its first files; of one that goes on, the state to go on from.
pub(super) const STATE_FD: i32 = 7;
pub(super) const KERNEL_FD: i32 = 7;
pub(super) const INITRAMFS_FD: i32 = 8;

/// One kind of machine.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) form: MachineForm,
    pub(super) qemu: qemu::Installed,
    pub(super) accelerator: Accelerator,
    pub(super) memory: u64,
    pub(super) cpus: u32,
    identity: Identity,
    writable_root: bool,
}

/// How a machine's process begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// From power on, in memory that is to be kept.
    Boot,
    /// From the state of another, in a private copy of its memory.
    Resume,
}

impl Machine {
    pub(super) fn of(
        form: MachineForm,
        image: &Image,
        limits: &Limits,
        qemu: qemu::Installed,
        accelerator: Accelerator,
    ) -> Self {
        Self {
            form,
            qemu,
            accelerator,
            memory: memory_for(limits.memory),
            cpus: cpus_for(limits.cpu_millis),
            identity: identity(image),
            writable_root: image.config.root == RootMode::Writable,
        }
    }

    /// One in which no job will be.
    pub(super) fn smallest(form: MachineForm, qemu: qemu::Installed, accelerator: Accelerator) -> Self {
        let (identity, writable_root) = (Identity { agent: 0, uid: 0, gid: 0 }, false);
        Self { form, qemu, accelerator, memory: SMALLEST, cpus: 1, identity, writable_root }
    }

    /// Its name among those of one image.
    pub(super) fn shape(&self) -> String {
        format!("{}-{}cpu-{}mib", self.accelerator, self.cpus, self.memory / MIB)
    }

    /// What tells its lives from those of every other kind. One QEMU's state is not another's.
    pub(super) fn kind(&self) -> String {
        format!("{} {} {} {}", self.form.digest, self.shape(), self.kernel_command_line(), self.qemu.identity)
    }

    /// What its process may use on the host.
    pub(super) fn host_limits(&self, limits: &Limits) -> Limits {
        Limits { memory: self.memory + QEMU_NEEDS, pids: QEMU_THREADS + self.cpus, ..*limits }
    }

    /// The same while it boots: nobody's share of the CPUs counts yet.
    pub(super) fn boot_limits(&self) -> Limits {
        self.host_limits(&Limits { cpu_millis: 1000 * (self.cpus + 1), ..Limits::default() })
    }

    /// Everything that its memory's content depends on but the image, which the form's digest covers.
    pub(super) fn command_line(&self) -> String {
        self.args(Begin::Boot).join(" ")
    }

    /// QEMU's arguments.
    pub(super) fn args(&self, begin: Begin) -> Vec<String> {
        let (accelerator, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm".to_owned(), "host"),
            // One thread for all CPUs of a guest with one: nothing of the generated code need be atomic.
            Accelerator::Tcg if self.cpus == 1 => {
                (format!("tcg,thread=single,tb-size={TRANSLATIONS_MIB}"), "max")
            }
            Accelerator::Tcg => (format!("tcg,tb-size={TRANSLATIONS_MIB}"), "max"),
        };
        let cpu = self.lacking().iter().fold(cpu.to_owned(), |cpu, feature| format!("{cpu},-{feature}"));
        let share = if begin == Begin::Boot { "on" } else { "off" };
        let mut args: Vec<String> = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "none",
            "-parallel",
            "none",
            "-no-reboot",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine",
            "q35,memory-backend=ram,usb=off,vmport=off,smbus=off,sata=off,hpet=off,graphics=off,dump-guest-core=off",
            "-cpu",
            &cpu,
            "-accel",
            &accelerator,
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &format!("{}M", self.memory / MIB),
            "-object",
            &format!(
                "memory-backend-file,id=ram,size={}M,mem-path=/proc/self/fd/{MEMORY_FD},share={share}",
                self.memory / MIB
            ),
            "-add-fd",
            &format!("fd={DISK_FD},set=1"),
            "-blockdev",
            "driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename=/dev/fdset/1,file.locking=off",
            "-device",
            "virtio-blk-pci,drive=disk",
            "-device",
            "virtio-serial-pci,max_ports=2",
            "-chardev",
            &format!("socket,id=agent,fd={AGENT_FD}"),
            "-device",
            "virtserialport,chardev=agent,nr=1,name=mayfly",
            "-chardev",
            &format!("socket,id=monitor,fd={MONITOR_FD}"),
            "-mon",
            "chardev=monitor,mode=control",
        ]
        .map(ToOwned::to_owned)
        .into();
        let more = match begin {
            Begin::Boot => [
                "-kernel".to_owned(),
                format!("/proc/self/fd/{KERNEL_FD}"),
                "-initrd".to_owned(),
                format!("/proc/self/fd/{INITRAMFS_FD}"),
                "-append".to_owned(),
                self.kernel_command_line(),
            ]
            .into(),
            // What the guest's kernel was loaded from is in its memory: none of it is read again.
            Begin::Resume => vec!["-incoming".to_owned(), "defer".to_owned()],
        };
        args.extend::<Vec<_>>(more);
        args
    }

    /// What its CPU shall not have, by names that QEMU and libvirt share.
    pub(super) fn lacking(&self) -> &'static [&'static str] {
        match self.accelerator {
            Accelerator::Kvm => &LACKING,
            Accelerator::Tcg => &LACKING_EMULATED,
        }
    }

    pub(super) fn kernel_command_line(&self) -> String {
        let Identity { agent, uid, gid } = self.identity;
        let root = if self.writable_root { "writable" } else { "read-only" };
        // Emulated, a CPU does not run ahead of what it may: the kernel's care about that costs and guards nothing.
        let mitigations = if self.accelerator == Accelerator::Tcg { "mitigations=off " } else { "" };
        format!("quiet panic=-1 {UNUSED} {mitigations}-- --machine {agent} {uid} {gid} {root}")
    }
}

/// What the guest's own kernel counts.
pub(crate) fn bounds_of(limits: &Limits) -> Bounds {
    Bounds { memory: limits.memory, pids: limits.pids, disk: limits.disk, inodes: limits.inodes }
}

/// The memory of a machine for a job: few sizes, as each needs a template.
fn memory_for(job: u64) -> u64 {
    let needed = job + job / PAGE_RECORDS + GUEST_NEEDS;
    let step = (needed.next_power_of_two() / 4).max(64 * MIB);
    needed.next_multiple_of(step).max(SMALLEST)
}

fn cpus_for(millis: u32) -> u32 {
    let there = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    millis.div_ceil(1000).clamp(1, there)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One that nothing runs.
    pub(in crate::vm) fn emulated() -> Machine {
        let file = |name: &str| std::path::PathBuf::from("/form").join(name);
        let form = MachineForm {
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            kernel: file("kernel"),
            release: "6.1".to_owned(),
            initramfs: file("initramfs"),
            disk: file("disk"),
            templates: file("templates"),
        };
        let qemu = qemu::Installed { program: "/usr/bin/qemu".into(), identity: "one".to_owned() };
        Machine::smallest(form, qemu, Accelerator::Tcg)
    }

    #[test]
    fn a_machine_holds_its_job_and_its_kernel_and_comes_in_few_sizes() {
        assert_eq!(memory_for(Limits::LEAST_MEMORY), 128 * MIB);
        assert_eq!(memory_for(512 * MIB), 768 * MIB);
        let sizes: std::collections::BTreeSet<_> = (8..4096).map(|mib| memory_for(mib * MIB)).collect();
        assert!(sizes.len() < 24, "{sizes:?}");
        for mib in 8..4096 {
            assert!(memory_for(mib * MIB) >= mib * MIB + GUEST_NEEDS);
        }
    }
}

//! What an operator decides about virtual machines.

use std::path::PathBuf;

use images::KernelFrom;
use serde::{Deserialize, Serialize};

/// Which machines are made, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vm {
    /// How they come to be clean.
    pub engine: Engine,
    /// What runs them.
    pub accel: Accel,
    /// Whether software emulation, which is no security boundary by QEMU's own policy, is used where there is no KVM.
    pub allow_emulation: bool,
    /// The kernel in them.
    pub kernel: Kernel,
    /// Who shares the memory of a template, where machines are clones.
    pub sharing: Sharing,
    /// QEMU's program; looked for on the path if missing.
    pub qemu: Option<PathBuf>,
}

/// Whose clones begin in the same memory. Until they write to a page they share it, and how fast it is read can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// All of one image and size.
    #[default]
    Image,
    /// Those of one owner among them.
    Owner,
}

/// How machines come to be clean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Engine {
    /// Each begins in the memory of one that was booted once.
    #[default]
    Fork,
    /// Each is reverted by libvirt to where it was kept.
    Libvirt(Libvirt),
}

/// Which libvirt makes machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libvirt {
    /// Its address, on this host.
    pub uri: String,
    /// The program between it and mayfly; looked for beside mayfly's own if missing.
    pub program: Option<PathBuf>,
}

impl Default for Libvirt {
    fn default() -> Self {
        Self { uri: "qemu:///system".to_owned(), program: None }
    }
}

/// Which accelerator is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM where a guest boots under it, else software emulation where that is allowed.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Which kernel machines have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Kernel {
    /// Debian's cloud kernel.
    #[default]
    Debian,
    /// One of this host's files.
    Files {
        /// What a boot loader would load.
        kernel: PathBuf,
        /// The directory of its modules.
        modules: PathBuf,
    },
}

impl Kernel {
    /// Where the store finds it.
    #[must_use]
    pub fn source(&self) -> KernelFrom {
        match self {
            Self::Debian => KernelFrom::Debian,
            Self::Files { kernel, modules } => {
                KernelFrom::Files { kernel: kernel.clone(), modules: modules.clone() }
            }
        }
    }
}

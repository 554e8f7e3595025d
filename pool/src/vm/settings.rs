//! What an operator decides about virtual machines.

use std::path::PathBuf;

use images::KernelFrom;

/// Which machines are made, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vm {
    /// What runs them.
    pub accel: Accel,
    /// Whether software emulation, which is no security boundary by QEMU's own policy, is used where there is no KVM.
    pub allow_emulation: bool,
    /// The kernel in them.
    pub kernel: Kernel,
    /// QEMU's program; looked for on the path if missing.
    pub qemu: Option<PathBuf>,
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
    pub(super) fn from(&self) -> KernelFrom {
        match self {
            Self::Debian => KernelFrom::Debian,
            Self::Files { kernel, modules } => {
                KernelFrom::Files { kernel: kernel.clone(), modules: modules.clone() }
            }
        }
    }
}

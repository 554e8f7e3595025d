//! The section `[vm]`: how virtual machines are made.

use std::path::PathBuf;

use pool::{Accel, LibvirtSettings, VmEngine, VmKernel, VmSettings, VmSharing, check_libvirt_uri};
use serde::Deserialize;

use super::ConfigError;

/// What runs virtual machines, and what runs in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmPart {
    /// How they come to be clean.
    pub engine: EngineWord,
    /// What runs them.
    pub accel: AccelWord,
    /// Whether software emulation is used where there is no KVM.
    pub allow_emulation: bool,
    /// The kernel in them; Debian's cloud kernel if missing.
    pub kernel: Option<PathBuf>,
    /// The directory of that kernel's modules.
    pub modules: Option<PathBuf>,
    /// Who shares the memory of a template.
    pub sharing: SharingWord,
    /// QEMU's program; looked for if missing.
    pub qemu: Option<PathBuf>,
    /// Where libvirt is, for its engine.
    pub libvirt_uri: Option<String>,
    /// The program between it and mayfly; looked for beside mayfly's own if missing.
    pub libvirt_program: Option<PathBuf>,
}

/// An engine as the file names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineWord {
    /// Each machine begins in the memory of one that was booted once.
    #[default]
    Fork,
    /// Each is reverted by libvirt.
    Libvirt,
}

/// Whose machines begin in the same memory, as the file names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharingWord {
    /// All of one image and size.
    #[default]
    Image,
    /// Those of one tenant among them.
    Tenant,
}

/// An accelerator as the file names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelWord {
    /// KVM where a guest boots under it, else emulation if that is allowed.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl VmPart {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.kernel.is_some() != self.modules.is_some() {
            let problem = "kernel and modules belong together: a machine needs the drivers of its own kernel";
            return Err(ConfigError::value("vm.kernel", problem));
        }
        let paths = [("vm.kernel", &self.kernel), ("vm.modules", &self.modules), ("vm.qemu", &self.qemu)];
        let paths = paths.into_iter().chain([("vm.libvirt_program", &self.libvirt_program)]);
        for (setting, path) in paths {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(ConfigError::value(setting, format!("{} is no absolute path", path.display())));
            }
        }
        if let Some(uri) = &self.libvirt_uri {
            check_libvirt_uri(uri)
                .map_err(|error| ConfigError::value("vm.libvirt_uri", error.to_string()))?;
        }
        if self.sharing == SharingWord::Tenant && self.engine == EngineWord::Libvirt {
            let problem = "machines of libvirt share no memory with each other: leave it out";
            return Err(ConfigError::value("vm.sharing", problem));
        }
        if self.accel == AccelWord::Tcg && !self.allow_emulation {
            let problem = "\"tcg\" is software emulation, which is no security boundary: it also takes allow_emulation = true";
            return Err(ConfigError::value("vm.accel", problem));
        }
        Ok(())
    }

    /// As the pool takes it.
    #[must_use]
    pub fn settings(&self) -> VmSettings {
        let kernel = match (&self.kernel, &self.modules) {
            (Some(kernel), Some(modules)) => {
                VmKernel::Files { kernel: kernel.clone(), modules: modules.clone() }
            }
            _ => VmKernel::Debian,
        };
        let accel = match self.accel {
            AccelWord::Auto => Accel::Auto,
            AccelWord::Kvm => Accel::Kvm,
            AccelWord::Tcg => Accel::Tcg,
        };
        let engine = match self.engine {
            EngineWord::Fork => VmEngine::Fork,
            EngineWord::Libvirt => {
                let usual = LibvirtSettings::default();
                let uri = self.libvirt_uri.clone().unwrap_or(usual.uri);
                VmEngine::Libvirt(LibvirtSettings { uri, program: self.libvirt_program.clone() })
            }
        };
        let sharing = match self.sharing {
            SharingWord::Image => VmSharing::Image,
            SharingWord::Tenant => VmSharing::Owner,
        };
        let (allow_emulation, qemu) = (self.allow_emulation, self.qemu.clone());
        VmSettings { engine, accel, allow_emulation, kernel, sharing, qemu }
    }
}

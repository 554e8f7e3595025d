//! The section `[vm]`: how virtual machines are made.

use std::path::PathBuf;

use pool::{Accel, LibvirtSettings, VmEngine, VmKernel, VmSettings, check_libvirt_uri};
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
        VmSettings { engine, accel, allow_emulation: self.allow_emulation, kernel, qemu: self.qemu.clone() }
    }
}

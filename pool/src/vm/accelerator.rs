//! What runs a machine's instructions: KVM where a guest really boots under it, else software emulation where that is allowed.
//!
//! That `/dev/kvm` opens is no proof: there are hosts where it makes machines and no kernel boots in them. So one is booted,
//! and the verdict is remembered with what it depends on.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use images::MachineForm;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    error::VmError,
    fork,
    machine::Machine,
    qemu,
    settings::{Accel, Vm},
};
use crate::workshop::{MakeError, Workshop};

/// How long a guest may take to boot under KVM. Alone it takes a second.
const PROBE: Duration = Duration::from_secs(10);

/// For how long a guest that only took too long, or a host that had no room for one, is not tried again.
const AGAIN: Duration = Duration::from_secs(600);

const KVM: &str = "/dev/kvm";

const FILE: &str = "accelerator.json";

/// What runs machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The CPU's own virtualisation.
    Kvm,
    /// Software emulation: no security boundary by QEMU's own policy.
    Tcg,
}

impl Accelerator {
    /// Its name in results, metrics and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What was found out about KVM here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    /// This boot of the host and its QEMU.
    host: String,
    /// The kernel that was booted. With another of either it is asked anew.
    kernel: String,
    /// Why it does not work, if it does not.
    why_not: Option<String>,
    /// Until when that holds, where another try may find otherwise.
    until: Option<SystemTime>,
}

/// What became of a guest that was booted under KVM.
enum Probed {
    Boots,
    /// KVM or QEMU says why not.
    Fails(String),
    /// It may have been the host, which was busy or full.
    Unclear(String),
}

/// Decides, once for each boot of the host.
#[derive(Debug)]
pub(super) struct Judge {
    file: PathBuf,
}

impl Judge {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { file: run_dir.join(FILE) }
    }

    /// The accelerator that settings and host allow.
    pub(super) async fn choose(
        &self,
        settings: &Vm,
        qemu: &qemu::Installed,
        form: &MachineForm,
        workshop: &Workshop,
    ) -> Result<Accelerator, MakeError> {
        if settings.accel == Accel::Tcg {
            return allowed(settings, || VmError::NoEmulation);
        }
        let host = fingerprint(workshop.instance.boot(), qemu);
        let remembered = self.remembered(&host).filter(|verdict| verdict.kernel == form.release);
        let why_not = if let Some(verdict) = remembered {
            verdict.why_not
        } else {
            let (why_not, until) = match probe(qemu, form, workshop).await {
                Probed::Boots => (None, None),
                Probed::Fails(why) => (Some(why), None),
                Probed::Unclear(why) => (Some(why), Some(SystemTime::now() + AGAIN)),
            };
            let kernel = form.release.clone();
            self.remember(&Verdict { host, kernel, why_not: why_not.clone(), until })?;
            why_not
        };
        match why_not {
            None => Ok(Accelerator::Kvm),
            Some(why_not) if settings.accel == Accel::Kvm => Err(VmError::NoKvm(why_not).into()),
            Some(why_not) => allowed(settings, || VmError::NoKvm(why_not)),
        }
    }

    fn remembered(&self, host: &str) -> Option<Verdict> {
        let text = fs::read(&self.file).ok()?;
        let verdict = serde_json::from_slice::<Verdict>(&text).ok()?;
        let holds = verdict.until.is_none_or(|until| SystemTime::now() < until);
        (verdict.host == host && holds).then_some(verdict)
    }

    fn remember(&self, verdict: &Verdict) -> Result<(), VmError> {
        let text = serde_json::to_vec(verdict).expect("strings are always JSON");
        // Written aside and renamed: another process may read it now.
        let aside = self.file.with_extension(format!("{}", std::process::id()));
        let written = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &self.file));
        written.map_err(|error| VmError::Verdict { path: self.file.clone(), error })
    }
}

fn allowed(settings: &Vm, refusal: impl FnOnce() -> VmError) -> Result<Accelerator, MakeError> {
    if settings.allow_emulation { Ok(Accelerator::Tcg) } else { Err(refusal().into()) }
}

fn fingerprint(boot: &str, qemu: &qemu::Installed) -> String {
    format!("{boot} {} kvm={}", qemu.identity, Path::new(KVM).exists())
}

/// What would run machines, as far as it can be told without booting one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// A guest has booted under it.
    Kvm,
    /// It may work.
    Untried,
    /// Software emulation, and why.
    Emulation(String),
    /// Nothing, and why.
    Refused(String),
}

/// Looks without changing anything.
pub(crate) fn outlook(settings: &Vm, run_dir: &Path, qemu: &qemu::Installed) -> Outlook {
    let emulation = |why: String| {
        if settings.allow_emulation && settings.accel != Accel::Kvm {
            Outlook::Emulation(why)
        } else {
            Outlook::Refused(why)
        }
    };
    if settings.accel == Accel::Tcg {
        return emulation("vm.accel says so".to_owned());
    }
    if !Path::new(KVM).exists() {
        return emulation(format!("there is no {KVM}"));
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match Judge::new(run_dir).remembered(&fingerprint(boot.trim(), qemu)) {
        Some(Verdict { why_not: None, .. }) => Outlook::Kvm,
        Some(Verdict { why_not: Some(why), .. }) => emulation(why),
        None => Outlook::Untried,
    }
}

async fn probe(qemu: &qemu::Installed, form: &MachineForm, workshop: &Workshop) -> Probed {
    if !Path::new(KVM).exists() {
        return Probed::Fails(format!("there is no {KVM}"));
    }
    let machine = Machine::smallest(form.clone(), qemu.clone(), Accelerator::Kvm);
    let failed = |error: &MakeError| format!("a guest does not boot: {error}");
    match timeout(PROBE, fork::boots(workshop, &machine)).await {
        Ok(Ok(())) => Probed::Boots,
        Ok(Err(error @ (MakeError::Complaint { .. } | MakeError::Vm(VmError::Monitor(_))))) => {
            Probed::Fails(failed(&error))
        }
        Ok(Err(error)) => Probed::Unclear(failed(&error)),
        Err(_) => Probed::Unclear(format!("a guest did not boot within {PROBE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(host: &str, why_not: Option<&str>) -> Verdict {
        let why_not = why_not.map(ToOwned::to_owned);
        Verdict { host: host.to_owned(), kernel: "6.1".to_owned(), why_not, until: None }
    }

    #[test]
    fn what_a_busy_host_may_have_caused_is_asked_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let judge = Judge::new(folder.path());
        let until = |until| Verdict { until: Some(until), ..verdict("this boot", Some("it was slow")) };
        let later = until(SystemTime::now() + AGAIN);
        judge.remember(&later).unwrap();
        assert_eq!(judge.remembered("this boot"), Some(later));
        judge.remember(&until(SystemTime::now())).unwrap();
        assert_eq!(judge.remembered("this boot"), None);
    }

    #[test]
    fn a_verdict_is_remembered_for_the_host_that_it_was_found_on_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let judge = Judge::new(folder.path());
        assert_eq!(judge.remembered("this boot"), None);
        judge.remember(&verdict("this boot", Some("it hangs"))).unwrap();
        assert_eq!(judge.remembered("this boot"), Some(verdict("this boot", Some("it hangs"))));
        assert_eq!(judge.remembered("the next boot"), None);
    }

    #[test]
    fn emulation_is_used_only_where_it_is_allowed() {
        let settings = |allow_emulation| Vm { allow_emulation, ..Vm::default() };
        assert_eq!(allowed(&settings(true), || VmError::NoEmulation).unwrap(), Accelerator::Tcg);
        assert!(allowed(&settings(false), || VmError::NoEmulation).is_err());
    }
}

//! Whether this host has what the vm tier needs, and what would run its machines.

use std::path::Path;

use super::{Finding, State};
use crate::vm::{Outlook, Vm, VmError, outlook, tools};

pub(super) fn look(settings: &Vm, run_dir: &Path) -> [Finding; 2] {
    let found = tools(settings);
    let accelerator =
        found.as_ref().map_err(ToString::to_string).map(|qemu| outlook(settings, run_dir, qemu));
    [program(found.map(|qemu| qemu.program.display().to_string())), judge(accelerator)]
}

fn program(found: Result<String, VmError>) -> Finding {
    let finding = |state, detail| Finding::new("qemu", "QEMU", state, detail);
    match found {
        Ok(program) => finding(State::Ok, program),
        // Jobs of the other tiers run without it.
        Err(error) => {
            let seen = finding(State::Missing, error.to_string());
            match error.fix() {
                Some(fix) => seen.mended_by(fix),
                None => seen,
            }
        }
    }
}

fn judge(outlook: Result<Outlook, String>) -> Finding {
    let finding = |state, detail: String| Finding::new("accelerator", "accelerator", state, detail);
    let allow = "give this host KVM, or set vm.allow_emulation = true: emulation is no security boundary";
    match outlook {
        Ok(Outlook::Kvm) => finding(State::Ok, "kvm: a guest has booted under it".to_owned()),
        Ok(Outlook::Untried) => finding(
            State::Degraded,
            "/dev/kvm is there, and no guest has booted under it yet: the first job tries".to_owned(),
        ),
        Ok(Outlook::Emulation(why)) => {
            finding(State::Degraded, format!("tcg: software emulation, no security boundary; {why}"))
        }
        Ok(Outlook::Refused(why)) => finding(State::Missing, why).mended_by(allow),
        Err(why) => finding(State::Unknown, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Accel;

    #[test]
    fn a_host_without_qemu_is_told_which_package_has_it() {
        let settings = Vm { qemu: Some("/usr/nowhere/qemu".into()), ..Vm::default() };
        let [qemu, accelerator] = look(&settings, Path::new("/nowhere"));
        assert_eq!((qemu.state, accelerator.state), (State::Missing, State::Unknown));
        assert!(qemu.detail.contains("/usr/nowhere/qemu") && qemu.fix.unwrap().contains("qemu-system-x86"));
    }

    #[test]
    fn emulation_is_never_called_ok_and_without_leave_it_is_no_way() {
        assert_eq!(judge(Ok(Outlook::Kvm)).state, State::Ok);
        let emulated = judge(Ok(Outlook::Emulation("vm.accel says so".to_owned())));
        assert!(emulated.state == State::Degraded && emulated.detail.contains("no security boundary"));
        let refused = judge(Ok(Outlook::Refused("there is no /dev/kvm".to_owned())));
        assert_eq!(refused.state, State::Missing);
        assert!(refused.fix.unwrap().contains("allow_emulation"));
    }

    #[test]
    fn what_is_wanted_decides_what_is_looked_at() {
        let tcg = Vm { accel: Accel::Tcg, allow_emulation: true, ..Vm::default() };
        let nowhere = tempfile::tempdir().unwrap();
        if let Ok(qemu) = tools(&tcg) {
            assert!(matches!(outlook(&tcg, nowhere.path(), &qemu), Outlook::Emulation(_)));
        }
    }
}

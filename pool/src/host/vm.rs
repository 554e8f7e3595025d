//! Whether this host has what the vm tier needs, and what would run its machines.

use std::path::Path;

use super::{Finding, State};
use crate::vm::{
    Engine, LibvirtError, LibvirtSettings, Outlook, Vm, VmError,
    libvirt::{leftovers::inspect, shut},
    outlook, tools,
};

pub(super) fn look(settings: &Vm, run_dir: &Path, node: &Path) -> Vec<Finding> {
    let found = tools(settings);
    let accelerator =
        found.as_ref().map_err(ToString::to_string).map(|qemu| outlook(settings, run_dir, qemu));
    let mut findings =
        vec![program(found.map(|qemu| qemu.program.display().to_string())), judge(accelerator)];
    // A host whose machines are not libvirt's is never asked for it.
    if let Engine::Libvirt(libvirt) = &settings.engine {
        findings.push(engine(libvirt, node));
    }
    findings
}

fn engine(settings: &LibvirtSettings, node: &Path) -> Finding {
    let found = match shut(node) {
        Some(path) => Err(LibvirtError::Closed(path)),
        None => inspect(settings),
    };
    let finding = |state, detail| Finding::new("libvirt", "libvirt", state, detail);
    match found {
        Ok((libvirt, qemu)) => {
            finding(State::Ok, format!("version {libvirt}, QEMU {qemu}, {}", settings.uri))
        }
        Err(error) => {
            let seen = finding(State::Missing, format!("{error} ({})", settings.uri));
            match error.fix() {
                Some(fix) => seen.mended_by(fix),
                None => seen,
            }
        }
    }
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
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::vm::Accel;

    #[test]
    fn a_host_without_qemu_is_told_which_package_has_it() {
        let settings = Vm { qemu: Some("/usr/nowhere/qemu".into()), ..Vm::default() };
        let found = look(&settings, Path::new("/nowhere"), Path::new("/"));
        let [qemu, accelerator] = <[Finding; 2]>::try_from(found).unwrap();
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
    fn a_host_is_told_what_the_libvirt_engine_lacks_and_only_if_it_is_wanted() {
        let vm = |engine| Vm { engine, ..Vm::default() };
        let seen = |vm: &Vm, node: &Path| look(vm, Path::new("/nowhere"), node).into_iter().nth(2);
        assert!(seen(&vm(Engine::Fork), Path::new("/")).is_none());
        let libvirt = |uri: &str, program: &str| {
            vm(Engine::Libvirt(LibvirtSettings { uri: uri.to_owned(), program: Some(program.into()) }))
        };
        let local = LibvirtSettings::default().uri;
        let closed = tempfile::tempdir().unwrap();
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
        for (settings, node, fix) in [
            (libvirt(&local, "/nowhere/mayfly-libvirt"), Path::new("/"), "libvirt-engine"),
            (libvirt("qemu+ssh://192.0.2.1/system", "/bin/true"), Path::new("/"), "qemu:///system"),
            (libvirt(&local, "/bin/true"), closed.path(), "chmod o+x"),
            (libvirt(&local, "/bin/true"), Path::new("/"), "from one build"),
        ] {
            let finding = seen(&settings, node).unwrap();
            assert_eq!(finding.state, State::Missing);
            let said = format!("{} {}", finding.detail, finding.fix.unwrap());
            assert!(said.contains(fix), "{said}");
        }
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

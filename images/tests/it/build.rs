//! Building: the same image from the same content, once, and fit for every tier.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use images::{BuildError, Definition, SourceError};

use crate::{AtStep, Scratch, Steps};

#[test]
fn the_same_content_gives_the_same_digest_in_another_store_at_another_time() {
    let (one, other) = (Scratch::new(), Scratch::new());
    let moment = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    fs::File::open(other.source().join("etc/motd")).unwrap().set_modified(moment).unwrap();
    assert_eq!(one.build().digest, other.build().digest);
}

#[test]
fn a_different_byte_mode_owner_or_setting_gives_a_different_digest() {
    let plain = Scratch::new().build().digest;
    let digest = |change: fn(&Scratch), more: &str| {
        let scratch = Scratch::new();
        change(&scratch);
        images::build(&scratch.store(), &scratch.definition(more), &mut images::Silent).unwrap().digest
    };
    let mut digests = vec![
        plain,
        digest(|s| fs::write(s.source().join("etc/motd"), "good dax\n").unwrap(), ""),
        digest(
            |s| fs::set_permissions(s.source().join("etc/motd"), fs::Permissions::from_mode(0o600)).unwrap(),
            "",
        ),
        digest(|s| chown(s.source().join("etc/motd"), Some(7), None).unwrap(), ""),
        digest(|s| fs::write(s.source().join("etc/new"), "").unwrap(), ""),
        digest(|_| {}, "[job]\nroot = 'writable'"),
        digest(|_| {}, "[job.env]\nA = 'b'"),
        digest(|_| {}, "[files]\n'/etc/x' = ''"),
    ];
    assert_eq!(digest(|_| {}, ""), plain);
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 8);
}

#[test]
fn an_unchanged_definition_is_not_built_again_and_a_changed_source_is() {
    let scratch = Scratch::new();
    let first = scratch.build();
    let mut steps = Steps::default();
    let second = images::build(&scratch.store(), &scratch.definition(""), &mut steps).unwrap();
    assert_eq!((second.digest, steps.0), (first.digest, Vec::<String>::new()));

    fs::write(scratch.source().join("etc/motd"), "good night\n").unwrap();
    assert_ne!(scratch.build().digest, first.digest);
}

#[test]
fn two_builds_of_one_image_at_once_make_it_once() {
    let scratch = Scratch::new();
    let (store, definition) = (scratch.store(), scratch.definition(""));
    let (waits, waiting) = mpsc::channel();
    let (steps, digests) = thread::scope(|scope| {
        let second = |waits: mpsc::Sender<()>| {
            let mut steps = Vec::new();
            let mut progress = AtStep(|step: &str| {
                steps.push(step.to_owned());
                let _ = waits.send(());
            });
            let digest = images::build(&store, &definition, &mut progress).unwrap().digest;
            (steps, digest)
        };
        let mut started = None;
        // The first build starts the second, and goes on only when that one says that it waits.
        let mut progress = AtStep(|step: &str| {
            if step.starts_with("checking") {
                let waits = waits.clone();
                started = Some(scope.spawn(move || second(waits)));
                waiting.recv().unwrap();
            }
        });
        let first = images::build(&store, &definition, &mut progress).unwrap().digest;
        let (steps, second) = started.unwrap().join().unwrap();
        (steps, [first, second])
    });
    assert_eq!(digests[0], digests[1]);
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(steps[0].starts_with("waiting for another build of own: "), "{steps:?}");
    assert!(steps[0].contains(&format!("(pid {})", std::process::id())), "{steps:?}");
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn a_source_that_changes_while_it_is_read_gives_no_image() {
    let scratch = Scratch::new();
    let source = scratch.source();
    let mut progress = AtStep(|step: &str| {
        if step.starts_with("making the files") {
            fs::write(source.join("etc/motd"), "changed\n").unwrap();
        }
    });
    let built = images::build(&scratch.store(), &scratch.definition(""), &mut progress);
    assert!(matches!(built, Err(BuildError::SourceChanged(_))), "{built:?}");
    assert!(scratch.store().list().unwrap().is_empty());
    assert_eq!(scratch.unfinished(), 0);
}

#[test]
fn every_image_has_the_mount_points_the_agent_and_the_jobs_user_and_no_privilege() {
    let scratch = Scratch::new();
    let source = scratch.source();
    fs::create_dir_all(source.join("dev")).unwrap();
    symlink("/etc/shadow", source.join("dev/stdin")).unwrap();
    fs::create_dir_all(source.join("tmp/left")).unwrap();
    fs::set_permissions(source.join("bin/tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    let setcap = Command::new("setcap").arg("cap_net_raw+ep").arg(source.join("bin/tool")).status();
    let more =
        "[job]\nuser = 1234\nworkdir = '/srv/work'\n[files]\n'/bin/hello' = \"#!/bin/sh\\necho hello\\n\"";
    let image = images::build(&scratch.store(), &scratch.definition(more), &mut images::Silent).unwrap();

    let meta = |path: &str| fs::symlink_metadata(image.rootfs.join(path)).unwrap();
    for folder in ["dev", "proc", "sys", "run", "tmp", "job"] {
        assert!(meta(folder).is_dir(), "{folder}");
        assert_eq!(fs::read_dir(image.rootfs.join(folder)).unwrap().count(), 0, "{folder} is empty");
    }
    let shape = |path: &str| (meta(path).mode() & 0o7777, meta(path).uid(), meta(path).gid());
    assert_eq!(shape("tmp"), (0o1777, 0, 0));
    assert_eq!(shape("srv/work"), (0o755, 1234, 1234));
    assert_eq!(shape(".mayfly/agent"), (0o555, 0, 0));
    assert_eq!(shape("bin/tool"), (0o755, 0, 0));
    assert_eq!(shape("bin/hello"), (0o755, 0, 0));
    assert_eq!(meta("bin/tool").ino(), meta("bin/twin").ino());
    assert_eq!(fs::read(image.rootfs.join(".mayfly/agent")).unwrap(), images::AGENT);
    let passwd = fs::read_to_string(image.rootfs.join("etc/passwd")).unwrap();
    assert!(passwd.contains("job:x:1234:1234:job:/srv/work:/bin/sh\n"), "{passwd}");
    if setcap.is_ok_and(|status| status.success()) {
        let caps = Command::new("getcap").arg(image.rootfs.join("bin/tool")).output().unwrap();
        assert!(caps.stdout.is_empty(), "{caps:?}");
    }
    assert_eq!(meta("etc/motd").mtime(), meta("bin").mtime());
}

#[test]
fn the_lint_names_what_no_image_may_have() {
    type Spoil = fn(&std::path::Path);
    let cases: [(Spoil, &str); 5] = [
        (|root| mknod(root, "null", &["c", "1", "3"]), "/etc/null is a character device"),
        (|root| mknod(root, "pipe", &["p"]), "/etc/pipe is a fifo"),
        (|root| chown(root.join("etc/motd"), Some(70_000), None).unwrap(), "/etc/motd belongs to 70000:0"),
        (|root| symlink("/etc", root.join("dev")).unwrap(), "/dev is not a directory"),
        (|root| symlink("etc", root.join("tmp")).unwrap(), "/tmp is not a directory"),
    ];
    for (spoil, message) in cases {
        let scratch = Scratch::new();
        spoil(&scratch.source());
        let error =
            images::build(&scratch.store(), &scratch.definition(""), &mut images::Silent).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().is_some());
        assert!(matches!(error, BuildError::Lint { .. } | BuildError::Source(SourceError::Unfit(_))));
        assert_eq!((scratch.store().list().unwrap().len(), scratch.unfinished()), (0, 0));
    }
}

fn mknod(root: &std::path::Path, name: &str, kind: &[&str]) {
    let status = Command::new("mknod").arg(root.join("etc").join(name)).args(kind).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_image_that_builds_on_another_shares_its_bytes_and_leaves_them_alone() {
    let scratch = Scratch::new();
    let base = scratch.build();
    let path = scratch.path().join("upper.toml");
    let text = "name = 'upper'\nsource = { kind = 'image', name = 'own' }\njob = { root = 'writable' }\n";
    fs::write(&path, format!("{text}[files]\n'/etc/motd' = 'other'")).unwrap();
    let definition = Definition::load(&path).unwrap();
    let upper = images::build(&scratch.store(), &definition, &mut images::Silent).unwrap();

    let inode = |image: &images::Image, path: &str| fs::metadata(image.rootfs.join(path)).unwrap().ino();
    assert_eq!(inode(&upper, "bin/tool"), inode(&base, "bin/tool"));
    assert_eq!(fs::read_to_string(base.rootfs.join("etc/motd")).unwrap(), "good day\n");
    assert_eq!(fs::read_to_string(upper.rootfs.join("etc/motd")).unwrap(), "other");
    assert_eq!((base.verify().unwrap(), upper.verify().unwrap()), (None, None));
}

#[test]
fn compiled_python_stays_valid_under_the_new_time_of_its_source() {
    let scratch = Scratch::new();
    let lib = scratch.source().join("usr/lib");
    fs::write(lib.join("module.py"), "x = 1\n").unwrap();
    fs::write(lib.join("changed.py"), "x = 1\n").unwrap();
    let compiled = Command::new("python3").args(["-m", "compileall", "-q"]).arg(&lib).status().unwrap();
    assert!(compiled.success());
    // Its bytecode is out of date, and must not become valid by the new time.
    let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::open(lib.join("changed.py")).unwrap().set_modified(past).unwrap();
    let image = scratch.build();

    let mtime = u32::try_from(fs::metadata(image.rootfs.join("usr/lib/module.py")).unwrap().mtime()).unwrap();
    let recorded = |module: &str| {
        let folder = fs::read_dir(image.rootfs.join("usr/lib/__pycache__")).unwrap();
        let file =
            folder.flatten().find(|file| file.file_name().to_string_lossy().starts_with(module)).unwrap();
        u32::from_le_bytes(fs::read(file.path()).unwrap()[8..12].try_into().unwrap())
    };
    assert_eq!(recorded("module."), mtime);
    assert_ne!(recorded("changed."), mtime);
}

#[test]
fn minimal_runs_its_own_shell() {
    let scratch = Scratch::new();
    let definition = Definition::find("minimal").unwrap();
    let image = images::build(&scratch.store(), &definition, &mut images::Silent).unwrap();
    let output =
        Command::new("chroot").arg(&image.rootfs).args(["/bin/sh", "-c", "whoami; ls /bin/cat"]).output();
    assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), "root\n/bin/cat\n");
    assert_eq!((image.config.user, image.config.workdir.as_str()), (1000, "/job"));
}

/// The only test that runs mmdebstrap: it takes half a minute.
#[test]
fn base_has_what_agents_need_and_nothing_of_the_host() {
    let scratch = Scratch::new();
    let definition = Definition::find("base-writable").unwrap();
    let image = images::build(&scratch.store(), &definition, &mut images::Silent).unwrap();
    assert_eq!(scratch.store().list().unwrap().len(), 2, "base was built for it");

    // The mount is in a namespace of its own: the store sees nothing of it.
    let inside =
        "python3 -c 'import json, ssl' && git --version && curl --version && bash --version && dpkg --audit";
    let script = "mount --bind /dev \"$0/dev\" && exec chroot \"$0\" /bin/sh -c \"$1\"";
    let output =
        Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(&image.rootfs).arg(inside).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    for path in ["etc/resolv.conf", "etc/machine-id"] {
        assert_eq!(fs::read_to_string(image.rootfs.join(path)).unwrap(), "", "{path}");
    }
    assert_eq!(fs::read_to_string(image.rootfs.join("etc/hostname")).unwrap(), "sandbox\n");
    assert!(!image.rootfs.join("etc/apt/apt.conf.d/99mmdebstrap").exists());
    assert_eq!(fs::read_dir(image.rootfs.join("etc/apt/sources.list.d")).unwrap().count(), 0);
    assert_eq!(image.verify().unwrap(), None, "running its programs read-only has changed nothing");
}

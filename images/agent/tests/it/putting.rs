//! Files on their way in.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use agent::message::{FileError, Hello};
use tempfile::TempDir;

use crate::host::{Host, NOBODIES, hello};

fn dir() -> (TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a path").to_owned();
    (dir, path)
}

#[test]
fn a_file_arrives_with_its_bytes_mode_and_parents() {
    let (_guard, dir) = dir();
    let mut host = Host::ready();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| at as u8).collect();
    let path = format!("{dir}/a/b/file");
    assert_eq!(host.put(&path, 0o6755, &bytes), Ok(3_000_000));
    assert!(std::fs::read(&path).expect("the file") == bytes);
    let mode = |path: &str| std::fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o755);
    assert_eq!(mode(&format!("{dir}/a/b")), 0o755);
    assert_eq!(host.put(&path, 0o600, b"shorter"), Ok(7));
    assert_eq!((mode(&path), std::fs::read(&path).expect("the file")), (0o600, b"shorter".to_vec()));
}

#[test]
fn a_path_that_is_not_plain_is_refused() {
    let mut host = Host::ready();
    for path in ["relative", "/tmp/../etc/x", "/tmp//x", "/tmp/./x", "/tmp/x/", "/", "", "/tmp/\0x"] {
        assert_eq!(host.put(path, 0o644, b"bytes"), Err(FileError::BadPath), "{path:?}");
    }
}

#[test]
fn no_link_is_followed_and_no_fifo_opened() {
    let (_guard, dir) = dir();
    std::fs::create_dir(format!("{dir}/real")).expect("a directory");
    std::fs::write(format!("{dir}/target"), "untouched").expect("a file");
    symlink(format!("{dir}/real"), format!("{dir}/link")).expect("a link");
    symlink(format!("{dir}/target"), format!("{dir}/to-file")).expect("a link");
    nix::unistd::mkfifo(format!("{dir}/fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let mut host = Host::ready();
    assert_eq!(host.put(&format!("{dir}/link/x"), 0o644, b"x"), Err(FileError::Symlink));
    assert_eq!(host.put(&format!("{dir}/to-file"), 0o644, b"x"), Err(FileError::Symlink));
    assert_eq!(host.put(&format!("{dir}/fifo"), 0o644, b"x"), Err(FileError::NotRegular));
    assert_eq!(host.put(&format!("{dir}/real"), 0o644, b"x"), Err(FileError::Directory));
    assert_eq!(host.put(&format!("{dir}/target/x"), 0o644, b"x"), Err(FileError::Directory));
    assert_eq!(std::fs::read(format!("{dir}/target")).expect("the file"), b"untouched");
    assert!(!std::path::Path::new(&format!("{dir}/real/x")).exists());
}

#[test]
fn the_agents_own_files_in_proc_are_not_written() {
    let mut host = Host::ready();
    let path = format!("/proc/{}/oom_score_adj", host.agent.id());
    assert_eq!(host.put(&path, 0o644, b"1000"), Err(FileError::NotRegular));
    assert_eq!(std::fs::read_to_string(path).expect("a score").trim(), "0");
}

#[test]
fn files_are_the_jobs_and_made_with_its_rights() {
    let (guard, dir) = dir();
    let mut host = Host::spawn();
    host.greet(Hello { identity: Some(NOBODIES), ..hello() });
    assert_eq!(host.put(&format!("{dir}/x"), 0o644, b"x"), Err(FileError::Denied));
    std::fs::set_permissions(guard.path(), PermissionsExt::from_mode(0o777)).expect("open to all");
    assert_eq!(host.put(&format!("{dir}/sub/x"), 0o644, b"x"), Ok(1));
    let owner = std::fs::metadata(format!("{dir}/sub/x")).expect("the file");
    assert_eq!((owner.uid(), owner.gid()), (NOBODIES.uid, NOBODIES.gid));
}

#[test]
fn a_full_disk_is_said_at_the_end_and_does_not_stall() {
    let (guard, dir) = dir();
    let mount = |args: &[&str]| {
        assert!(std::process::Command::new("mount").args(args).status().expect("mount").success());
    };
    mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs", &dir]);
    let result = Host::ready().put(&format!("{dir}/big"), 0o644, &vec![1; 5_000_000]);
    mount(&["-o", "remount,ro", &dir]);
    let read_only = Host::ready().put(&format!("{dir}/more"), 0o644, b"x");
    assert!(std::process::Command::new("umount").arg(&dir).status().expect("umount").success());
    drop(guard);
    assert_eq!(result, Err(FileError::Full));
    assert_eq!(read_only, Err(FileError::ReadOnly));
}

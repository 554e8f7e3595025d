//! Files on their way out.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use agent::message::{FileError, Get, GetLimit, Hello, ToAgent, ToHost};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use tempfile::TempDir;

use crate::host::{Given, Host, NOBODIES, get, hello};

/// A directory that a hostile job left behind.
fn artifacts() -> (TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().to_str().expect("a path").to_owned();
    fs::create_dir_all(dir.path().join("sub/deep")).expect("directories");
    for (name, bytes) in
        [("b.txt", "bb"), ("a.txt", "a"), ("c.log", ""), ("sub/d.txt", "dddd"), ("sub/deep/e.txt", "e")]
    {
        fs::write(dir.path().join(name), bytes).expect("a file");
    }
    (dir, root)
}

fn names(given: &Given, root: &str) -> Vec<String> {
    given.files.iter().map(|(path, _)| path.strip_prefix(root).expect("below the root").to_owned()).collect()
}

fn skips(given: &Given, root: &str) -> Vec<(String, FileError)> {
    let name = |path: &[u8]| String::from_utf8_lossy(path).replace(root, "");
    given.skipped.iter().map(|skipped| (name(&skipped.path), skipped.error)).collect()
}

#[test]
fn a_literal_a_glob_and_a_directory_give_sorted_files() {
    let (_guard, root) = artifacts();
    let mut host = Host::ready();
    let given = host.get(get(&[&format!("{root}/b.txt")]));
    assert_eq!(given.files, [(format!("{root}/b.txt"), b"bb".to_vec())]);
    let given = host.get(get(&[&format!("{root}/*.txt")]));
    assert_eq!(names(&given, &root), ["/a.txt", "/b.txt"]);
    let given = host.get(get(&[&format!("{root}/**/*.txt")]));
    assert_eq!(names(&given, &root), ["/a.txt", "/b.txt", "/sub/d.txt", "/sub/deep/e.txt"]);
    let given = host.get(get(&[&root]));
    assert_eq!(names(&given, &root), ["/a.txt", "/b.txt", "/c.log", "/sub/d.txt", "/sub/deep/e.txt"]);
    assert_eq!(given.done.expect("done").stopped_by, None);
    assert!(given.skipped.is_empty());
}

#[test]
fn what_two_patterns_match_comes_once() {
    let (_guard, root) = artifacts();
    let given = Host::ready().get(get(&[&format!("{root}/sub"), &format!("{root}/**/*.txt")]));
    assert_eq!(names(&given, &root), ["/sub/d.txt", "/sub/deep/e.txt", "/a.txt", "/b.txt"]);
}

#[test]
fn what_matches_nothing_is_said() {
    let (_guard, root) = artifacts();
    fs::create_dir(format!("{root}/empty")).expect("a directory");
    let patterns =
        ["/nothing", "/*.none", "/sub/../a.txt", "/[a", "/empty"].map(|name| format!("{root}{name}"));
    let given = Host::ready().get(get(&patterns.each_ref().map(String::as_str)));
    let expected = [
        ("/nothing", FileError::NotFound),
        ("/*.none", FileError::NotFound),
        ("/sub/../a.txt", FileError::BadPath),
        ("/[a", FileError::BadPattern),
    ];
    assert_eq!(skips(&given, &root), expected.map(|(name, error)| (name.to_owned(), error)));
    assert!(given.files.is_empty());
}

#[test]
fn links_fifos_and_devices_are_named_and_never_opened() {
    let (guard, root) = artifacts();
    symlink("/etc/passwd", guard.path().join("link")).expect("a link");
    symlink("/etc", guard.path().join("linked-dir")).expect("a link");
    nix::unistd::mkfifo(&guard.path().join("fifo"), Mode::S_IRWXU).expect("a fifo");
    let _listening = std::os::unix::net::UnixListener::bind(guard.path().join("socket")).expect("a socket");
    let mut host = Host::ready();
    let given = host.get(get(&[&root]));
    let odd = [
        ("/fifo", FileError::NotRegular),
        ("/link", FileError::Symlink),
        ("/linked-dir", FileError::Symlink),
        ("/socket", FileError::NotRegular),
    ];
    assert_eq!(skips(&given, &root), odd.map(|(name, error)| (name.to_owned(), error)));
    assert_eq!(given.files.len(), 5);
    let through =
        host.get(get(&[&format!("{root}/linked-dir/passwd"), &format!("{root}/link"), "/dev/zero"]));
    assert!(through.files.is_empty());
    let errors: Vec<_> = through.skipped.iter().map(|skipped| skipped.error).collect();
    assert_eq!(errors, [FileError::Symlink, FileError::Symlink, FileError::NotRegular]);
}

#[test]
fn the_agents_own_memory_is_not_a_file() {
    let mut host = Host::ready();
    let path = format!("/proc/{}/environ", host.agent.id());
    let given = host.get(get(&[&path, "/proc/*", "/sys/kernel"]));
    assert!(given.files.is_empty());
    assert!(
        given.skipped.iter().all(|skipped| skipped.error == FileError::NotRegular),
        "{:?}",
        given.skipped
    );
}

#[test]
fn what_the_job_may_not_read_is_not_given() {
    let (guard, root) = artifacts();
    fs::set_permissions(guard.path(), PermissionsExt::from_mode(0o755)).expect("open to all");
    fs::set_permissions(guard.path().join("a.txt"), PermissionsExt::from_mode(0o600)).expect("closed");
    let mut host = Host::spawn();
    host.greet(Hello { identity: Some(NOBODIES), ..hello() });
    let given = host.get(get(&[&format!("{root}/*.txt")]));
    assert_eq!(names(&given, &root), ["/b.txt"]);
    assert_eq!(skips(&given, &root), [("/a.txt".to_owned(), FileError::Denied)]);
}

#[test]
fn limits_stop_the_walk_and_say_which() {
    let (_guard, root) = artifacts();
    let mut host = Host::ready();
    let stopped = |given: &Given| given.done.expect("done").stopped_by;
    let given = host.get(Get { max_files: 2, ..get(&[&root]) });
    assert_eq!(
        (names(&given, &root), stopped(&given)),
        (vec!["/a.txt".into(), "/b.txt".into()], Some(GetLimit::Files))
    );
    let given = host.get(Get { max_bytes: 5, ..get(&[&root]) });
    assert_eq!(stopped(&given), Some(GetLimit::Bytes));
    assert_eq!(given.files.last(), Some(&(format!("{root}/sub/d.txt"), b"dd".to_vec())));
    assert_eq!(given.cut, [format!("{root}/sub/d.txt")]);
    let given = host.get(Get { max_bytes: 8, ..get(&[&root]) });
    assert_eq!((stopped(&given), given.files.len()), (None, 5));
    let given = host.get(Get { max_visited: 3, ..get(&[&root]) });
    assert_eq!(stopped(&given), Some(GetLimit::Visited));
}

#[test]
fn a_sparse_file_is_cut_at_the_byte_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sparse");
    fs::File::create(&path).expect("a file").set_len(1 << 40).expect("a hole");
    let path = path.to_str().expect("a path");
    let given = Host::ready().get(Get { max_bytes: 3_000_000, ..get(&[path]) });
    assert_eq!(given.files[0].1.len(), 3_000_000);
    assert_eq!(given.cut, [path]);
    assert_eq!(given.done.expect("done").stopped_by, Some(GetLimit::Bytes));
}

#[test]
fn a_hundred_thousand_files_are_no_burden() {
    let dir = tempfile::tempdir().expect("a directory");
    for number in 0..100_000 {
        fs::File::create(dir.path().join(format!("{number:0>200}"))).expect("a file");
    }
    let root = dir.path().to_str().expect("a path");
    let mut host = Host::ready();
    let given = host.get(Get { max_files: 10, max_visited: u32::MAX, ..get(&[root]) });
    assert_eq!(given.files.len(), 10);
    assert_eq!(given.done.expect("done").stopped_by, Some(GetLimit::Files));
    let peak: u64 = host.status("VmHWM").trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 16 * 1024, "the agent held {peak} KiB");
}

#[test]
fn a_very_deep_directory_ends_with_a_word_and_not_a_crash() {
    let guard = tempfile::tempdir().expect("a directory");
    let mut dir = std::os::fd::OwnedFd::from(fs::File::open(guard.path()).expect("it opens"));
    for _ in 0..3000 {
        mkdirat(&dir, "d", Mode::S_IRWXU).expect("a directory");
        dir = openat(&dir, "d", OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty()).expect("it opens");
    }
    let mut host = Host::ready();
    let given = host.get(get(&[guard.path().to_str().expect("a path")]));
    assert!(given.files.is_empty());
    let errors: Vec<_> = given.skipped.iter().map(|skipped| skipped.error).collect();
    assert_eq!(errors, [FileError::Os(libc::ENAMETOOLONG)]);
    // Long before PATH_MAX: each level holds a descriptor.
    assert!(given.skipped[0].path.len() < 1000);
    // Such a tree is beyond PATH_MAX, so the usual ways to remove it fail.
    assert!(
        std::process::Command::new("rm")
            .arg("-r")
            .arg(guard.path().join("d"))
            .status()
            .expect("rm")
            .success()
    );
}

#[test]
fn other_requests_are_heard_during_a_get() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sparse");
    fs::File::create(&path).expect("a file").set_len(1 << 40).expect("a hole");
    let mut host = Host::ready();
    host.send(50, ToAgent::Get(get(&[path.to_str().expect("a path")])));
    // The get stalls for want of credit. A job runs beside it.
    host.send(1, ToAgent::Run(crate::host::run(&["true"])));
    while !matches!(host.receive().message, ToHost::Exit(_)) {}
    host.send(50, ToAgent::Reset);
    assert_eq!(host.put("relative", 0, b""), Err(FileError::BadPath));
}

//! What one sandbox leaves where another could find it.
//!
//! One prober leaves marks and waits (`role=leave`), another looks for them: beside it, or after it in the same place.

#![expect(unsafe_code, reason = "shared memory and queues of System V and POSIX")]

use std::{
    ffi::CString,
    fs,
    io::{self, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::errno::Errno;

use crate::{checks::Checks, clues::Clues, network};

const PLACES: [&str; 3] = ["/tmp", "/job", "/dev/shm"];

/// What the marks are called.
fn mark(clues: &Clues) -> String {
    format!("mayfly-mark-{}", clues.get("token").unwrap_or_default())
}

/// A key of System V's that nobody else uses.
fn key(clues: &Clues) -> libc::key_t {
    clues
        .get("token")
        .unwrap_or_default()
        .bytes()
        .fold(0x6d61_7966, |key: i32, byte| key.wrapping_mul(31).wrapping_add(i32::from(byte)))
        | 1
}

fn abstract_name(clues: &Clues) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(mark(clues))
}

/// Leaves marks of each kind, says that they are there, waits until stdin ends, and takes them away unless told to keep them.
pub(crate) fn leave_and_wait(clues: &Clues) -> ExitCode {
    for place in PLACES {
        // A root without one of them has nothing to leave there.
        let _ = fs::write(PathBuf::from(place).join(mark(clues)), mark(clues));
    }
    // SAFETY: neither touches memory of this process. Where they are refused there is nothing to find.
    unsafe {
        libc::shmget(key(clues), 4096, libc::IPC_CREAT | 0o666);
        libc::msgget(key(clues), libc::IPC_CREAT | 0o666);
    }
    let queue = CString::new(format!("/{}", mark(clues))).unwrap_or_default();
    // SAFETY: the name outlives the call, and no attributes are given.
    unsafe {
        libc::mq_open(
            queue.as_ptr(),
            libc::O_CREAT | libc::O_RDWR,
            0o666,
            std::ptr::null_mut::<libc::mq_attr>(),
        );
    }
    let named = abstract_name(clues).and_then(|name| UnixListener::bind_addr(&name));
    let listening = network::listen(clues);
    let _ = io::stdout().write_all(b"left\n");
    let _ = io::stdin().read(&mut [0; 1]);
    if clues.get("keep").is_some() {
        return ExitCode::SUCCESS;
    }
    // SAFETY: as above.
    unsafe {
        libc::mq_unlink(queue.as_ptr());
        let id = libc::shmget(key(clues), 0, 0);
        if id >= 0 {
            libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
        }
        let id = libc::msgget(key(clues), 0);
        if id >= 0 {
            libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut());
        }
    }
    for place in PLACES {
        let _ = fs::remove_file(PathBuf::from(place).join(mark(clues)));
    }
    drop((named, listening));
    ExitCode::SUCCESS
}

pub(crate) fn no_shared_scratch(clues: &Clues, checks: &mut Checks) {
    for place in PLACES {
        let found = PathBuf::from(place).join(mark(clues)).exists();
        checks.holds(!found, format!("{} in {place}", if found { "another's mark is" } else { "nothing" }));
    }
}

pub(crate) fn no_shared_ipc(clues: &Clues, checks: &mut Checks) {
    // SAFETY: neither touches memory of this process.
    let found = unsafe { [libc::shmget(key(clues), 0, 0), libc::msgget(key(clues), 0)] };
    for (kind, id) in ["shared memory", "message queue"].into_iter().zip(found) {
        checks.holds(
            id < 0,
            format!("{kind}: {}", if id < 0 { "none of another" } else { "another's is found" }),
        );
    }
    let queue = CString::new(format!("/{}", mark(clues))).unwrap_or_default();
    // SAFETY: the name outlives the call.
    let got = Errno::result(unsafe { libc::mq_open(queue.as_ptr(), libc::O_RDONLY) });
    checks.holds(
        got.is_err(),
        match got {
            Ok(_) => "another's POSIX queue is found".to_owned(),
            Err(errno) => format!("POSIX queue: {errno:?}"),
        },
    );
}

pub(crate) fn no_shared_names(clues: &Clues, checks: &mut Checks) {
    let got = abstract_name(clues).and_then(|name| UnixStream::connect_addr(&name));
    checks.holds(
        got.is_err(),
        match got {
            Ok(_) => "another's abstract socket answers".to_owned(),
            Err(error) => format!("abstract socket: {error}"),
        },
    );
}

/// Everything that a life before may have left.
pub(crate) fn no_former_life(clues: &Clues, checks: &mut Checks) {
    no_shared_scratch(clues, checks);
    no_shared_ipc(clues, checks);
    no_shared_names(clues, checks);
}

/// Nothing of anybody's lies about. Swap is no question here: no memory of a sandbox may be swapped out.
pub(crate) fn scratch_is_empty(clues: &Clues, checks: &mut Checks) {
    let own = clues.get("own").unwrap_or_default();
    for place in PLACES {
        let Ok(entries) = fs::read_dir(place) else { continue };
        let others = entries.flatten().filter(|entry| entry.path() != Path::new(own)).count();
        checks.holds(others == 0, format!("{place} has {others} entries of others"));
    }
}

//! What a job does for the host to look at: writes too much, does not end, leaves files that are not what they seem.

#![expect(unsafe_code, reason = "children that detach themselves, and nodes that are no files")]

use std::{
    ffi::CString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::signal::{SigHandler, Signal, raise, signal},
    unistd::{ForkResult, fork, pause, setsid},
};

use crate::clues::Clues;

/// What a file that takes no room on its disk says of its size.
const SPARSE: u64 = 1 << 40;

/// Writes `bytes` bytes, or ends where it may not.
pub(crate) fn flood(clues: &Clues) -> ExitCode {
    let line = [b'x'; 1024];
    let mut left = clues.number("bytes").unwrap_or_default();
    let mut out = io::stdout().lock();
    while left > 0 {
        if out.write_all(&line).is_err() {
            return ExitCode::FAILURE;
        }
        left = left.saturating_sub(line.len() as u64);
    }
    ExitCode::SUCCESS
}

/// Does not end by itself nor at SIGTERM, and has relatives: in a session of its own, orphaned, stopped.
pub(crate) fn stay() -> ExitCode {
    // SAFETY: nothing is called when the signal comes.
    let _ = unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) };
    relative(|| {
        let _ = setsid();
        // Its parent ends, so it is somebody else's child.
        relative(|| {});
    });
    relative(|| {
        let _ = raise(Signal::SIGSTOP);
    });
    let _ = io::stdout().write_all(b"staying\n");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// A child that does something and then waits for ever.
fn relative(first: impl FnOnce()) {
    // SAFETY: this program has one thread, so the child may do all that its parent may.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        first();
        loop {
            pause();
        }
    }
}

/// Asks the proxy of its loopback for one connection after the other, and goes where it is sent on. Who counts is outside.
pub(crate) fn ask_the_door(clues: &Clues) -> ExitCode {
    for target in clues.get("asks").unwrap_or_default().split(',') {
        let Answer { said, elsewhere } = ask(target).unwrap_or_else(|error| Answer::failed(&error));
        let _ = writeln!(io::stdout(), "{target} {said}");
        if let Some(target) = elsewhere {
            let Answer { said, .. } = ask(&target).unwrap_or_else(|error| Answer::failed(&error));
            let _ = writeln!(io::stdout(), "{target} {said}");
        }
    }
    ExitCode::SUCCESS
}

struct Answer {
    said: String,
    /// Where it sends whoever asks.
    elsewhere: Option<String>,
}

impl Answer {
    fn failed(error: &io::Error) -> Self {
        Self { said: error.to_string(), elsewhere: None }
    }
}

fn ask(target: &str) -> io::Result<Answer> {
    const LONGEST_ANSWER: u64 = 64 * 1024;
    /// Where mayfly's forward proxy listens.
    const PROXY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 3128);
    let mut stream = TcpStream::connect(PROXY)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = String::new();
    if target.starts_with("http://") {
        write!(stream, "GET {target} HTTP/1.1\r\nHost: whoever\r\nConnection: close\r\n\r\n")?;
        BufReader::new(stream).take(LONGEST_ANSWER).read_to_string(&mut answer)?;
        let named = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        };
        let head = answer.split("\r\n\r\n").next().unwrap_or_default();
        let elsewhere = head.lines().find_map(named);
        return Ok(Answer { said: answer.lines().last().unwrap_or_default().trim().to_owned(), elsewhere });
    }
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")?;
    BufReader::new(stream).take(LONGEST_ANSWER).read_line(&mut answer)?;
    Ok(Answer { said: answer.trim().to_owned(), elsewhere: None })
}

/// Leaves, in the directory that it is told, links to the host, nodes that are no files, and files that are too large; and
/// has a child that swaps a directory for a link as long as it is let.
pub(crate) fn leave_files(clues: &Clues) -> ExitCode {
    let directory = Path::new(clues.get("directory").unwrap_or("/job/out"));
    match lay_out(directory, Path::new(clues.get("canary").unwrap_or("/etc/shadow"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn lay_out(directory: &Path, canary: &Path) -> io::Result<()> {
    fs::create_dir_all(directory.join("swapped"))?;
    fs::write(directory.join("plain"), "plain\n")?;
    symlink(canary, directory.join("link"))?;
    symlink(canary.parent().unwrap_or(canary), directory.join("linked"))?;
    let fifo = CString::new(directory.join("fifo").as_os_str().as_encoded_bytes())?;
    // SAFETY: the path ends with a zero.
    unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) };
    drop(UnixListener::bind(directory.join("socket"))?);
    // Where no file may be as large, whoever tries is told so by a signal.
    // SAFETY: nothing is called when the signal comes.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    if fs::File::create(directory.join("sparse"))?.set_len(SPARSE).is_err() {
        fs::remove_file(directory.join("sparse"))?;
    }
    fs::write(directory.join("\u{1b}[2Jforged\nname"), "escaped\n")?;
    fs::create_dir(directory.join("many"))?;
    for number in 0..600 {
        fs::write(directory.join("many").join(number.to_string()), "x")?;
    }
    let (real, other) = (directory.join("swapped"), directory.join("away"));
    fs::write(real.join(canary.file_name().unwrap_or_default()), "the sandbox's own\n")?;
    symlink(canary.parent().unwrap_or(canary), &other)?;
    relative(|| {
        loop {
            // Both names are there at any time, and change places between two looks of whoever collects.
            let _ = renameat2(AT_FDCWD, &real, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE);
        }
    });
    Ok(())
}

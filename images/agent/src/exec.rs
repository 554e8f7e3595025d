//! The last steps of the armed process: it waits for its orders and becomes the job's program.
//!
//! Every microsecond here is the job's. Nothing is asked of the agent, and nothing is done that could be done before.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use agent::codec::{Decoder, Frame};
use agent::message::{NotStarted, Rlimit, Run, ToAgent};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{AccessFlags, access, chdir, read};

use crate::arm::{ORDERS, Report};
use crate::sys;

/// Where a program is looked for when the job's environment has no `PATH`.
pub(crate) const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the process could not become the job.
type Refusal = (NotStarted, Errno);

/// Waits for the orders and obeys them. Returns to nobody.
pub(crate) fn obey() -> ! {
    // Without orders the agent is gone, and its parting signal on the way.
    let Some(run) = wait_for_orders() else { sys::exit_now(1) };
    let Err((why, errno)) = become_program(&run);
    Report::NotStarted { why, errno: errno as i32 }.send();
    sys::exit_now(127)
}

fn wait_for_orders() -> Option<Run> {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 16 * 1024];
    loop {
        match decoder.next_frame() {
            Ok(Some(Frame { message: ToAgent::Run(run), .. })) => return Some(run),
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return None,
        }
        match read(sys::fixed(ORDERS), &mut buffer) {
            Ok(0) => return None,
            Ok(len) => decoder.feed(&buffer[..len]),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

fn become_program(run: &Run) -> Result<Infallible, Refusal> {
    let (argv, env) = (c_strings(&run.argv)?, c_strings(&run.env)?);
    let program = argv.first().ok_or((NotStarted::NotFound, Errno::ENOENT))?;
    for (limit, value) in &run.rlimits {
        let resource = match limit {
            Rlimit::Nofile => Resource::RLIMIT_NOFILE,
            Rlimit::Fsize => Resource::RLIMIT_FSIZE,
            Rlimit::Nproc => Resource::RLIMIT_NPROC,
            Rlimit::Core => Resource::RLIMIT_CORE,
        };
        setrlimit(resource, *value, *value).map_err(|errno| (NotStarted::Rlimit, errno))?;
    }
    chdir(OsStr::from_bytes(&run.cwd)).map_err(|errno| (NotStarted::Workdir, errno))?;
    let pointers =
        (argv.iter().map(CString::as_c_str).collect(), env.iter().map(CString::as_c_str).collect());
    let execute = |path: &CStr| sys::execve(path, &pointers.0, &pointers.1);
    if program.as_bytes().contains(&b'/') {
        return Err(refusal(execute(program), program));
    }
    search(program, path_of(&run.env), execute)
}

fn c_strings(strings: &[Vec<u8>]) -> Result<Vec<CString>, Refusal> {
    let convert = |bytes: &Vec<u8>| CString::new(bytes.as_slice());
    strings.iter().map(convert).collect::<Result<_, _>>().map_err(|_| (NotStarted::Other, Errno::EINVAL))
}

fn path_of(env: &[Vec<u8>]) -> &[u8] {
    env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH)
}

/// Tries each directory of `path`, as `execvp` does. An empty one is the working directory.
fn search(program: &CStr, path: &[u8], execute: impl Fn(&CStr) -> Errno) -> Result<Infallible, Refusal> {
    if program.is_empty() {
        return Err((NotStarted::NotFound, Errno::ENOENT));
    }
    let mut denied = None;
    let mut candidate = Vec::with_capacity(128);
    for directory in path.split(|byte| *byte == b':') {
        candidate.clear();
        candidate.extend_from_slice(if directory.is_empty() { b"." } else { directory });
        candidate.push(b'/');
        candidate.extend_from_slice(program.to_bytes_with_nul());
        // A NUL in PATH was refused with the environment.
        let Ok(file) = CStr::from_bytes_with_nul(&candidate) else { continue };
        // The kernel makes half a process before it looks for the program.
        if matches!(access(file, AccessFlags::F_OK), Err(Errno::ENOENT | Errno::ENOTDIR)) {
            continue;
        }
        match refusal(execute(file), file) {
            (NotStarted::NotFound, _) => {}
            // One that may not be run does not hide one that may, further on.
            refused @ (_, Errno::EACCES) => denied = Some(refused),
            other => return Err(other),
        }
    }
    Err(denied.unwrap_or((NotStarted::NotFound, Errno::ENOENT)))
}

fn refusal(errno: Errno, file: &CStr) -> Refusal {
    let why = match errno {
        // The kernel says "no such file" of a script whose interpreter is missing, too.
        Errno::ENOENT | Errno::ENOTDIR if access(file, AccessFlags::F_OK).is_ok() => {
            NotStarted::NotExecutable
        }
        Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::ELOOP => NotStarted::NotFound,
        Errno::EACCES | Errno::ENOEXEC | Errno::EPERM | Errno::EISDIR | Errno::ETXTBSY | Errno::ELIBBAD => {
            NotStarted::NotExecutable
        }
        Errno::E2BIG => NotStarted::TooLong,
        _ => NotStarted::Other,
    };
    (why, errno)
}

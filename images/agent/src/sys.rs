//! The system calls that nix has no safe face for. The one file of the agent with `unsafe` in it.
//!
//! Nothing here decides anything: each function is one call, its errno, and nothing more.

#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::{CStr, c_int, c_long, c_ulong};
use std::mem;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::Pid;

/// Takes possession of an inherited descriptor, if it is open.
pub(crate) fn inherit(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: asks for the descriptor's flags, which touches no memory.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: it is open, and the caller takes each number of its command line once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One of the descriptors whose number is laid down and which live as long as the process: the standard ones, and
/// in the armed process the two that follow.
pub(crate) fn fixed(fd: RawFd) -> BorrowedFd<'static> {
    assert!((0..=4).contains(&fd), "only descriptors laid down by number live as long as the process");
    // SAFETY: by the assertion, and because nothing here ever closes them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Closes all descriptors from `first` to `last`.
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: closes numbers that the caller owns through no `OwnedFd` that it uses again.
    let done = unsafe { libc::syscall(libc::SYS_close_range, c_long::from(first), c_long::from(last), 0) };
    Errno::result(done).map(drop)
}

/// Makes `target` a copy of `fd`, closing what `target` was.
pub(crate) fn place(fd: RawFd, target: RawFd, close_on_exec: bool) -> Result<(), Errno> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: only the fresh child calls this, for numbers that it lays out itself.
    Errno::result(unsafe { libc::dup3(fd, target, flags) }).map(drop)
}

/// From `linux/sched.h`. The libc crate's constant is a `c_int`, in which this bit does not fit: it is 0 there.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks this single-threaded process, into a cgroup (v2) if one is given. `None` in the child.
pub(crate) fn fork_into(cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Pid>, Errno> {
    let Some(cgroup) = cgroup else {
        // SAFETY: one thread, so the child may go on with everything that the parent had.
        return Errno::result(unsafe { libc::fork() }).map(|pid| (pid != 0).then(|| Pid::from_raw(pid)));
    };
    // SAFETY: all zeroes is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is a fork; `args` outlives the call and its size is said.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    Errno::result(pid).map(|pid| (pid != 0).then(|| Pid::from_raw(pid as i32)))
}

/// Becomes another program. Returns only if it could not.
///
/// `argv` and `env` are what `execve` takes: pointers to C strings, the last one null.
pub(crate) fn execve(path: &CStr, argv: &CStrings<'_>, env: &CStrings<'_>) -> Errno {
    // SAFETY: both arrays end in null and borrow strings that are alive, by construction.
    unsafe { libc::execve(path.as_ptr(), argv.0.as_ptr(), env.0.as_ptr()) };
    Errno::last()
}

/// A null-terminated array of C strings.
pub(crate) struct CStrings<'a>(Vec<*const libc::c_char>, std::marker::PhantomData<&'a CStr>);

impl<'a> FromIterator<&'a CStr> for CStrings<'a> {
    fn from_iter<I: IntoIterator<Item = &'a CStr>>(strings: I) -> Self {
        let pointers = strings.into_iter().map(CStr::as_ptr).chain([ptr::null()]).collect();
        Self(pointers, std::marker::PhantomData)
    }
}

/// Ends this process without running anything more of it.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: ends the process; nothing of it is used after.
    unsafe { libc::_exit(code) }
}

/// Sets what a signal does: its default, or nothing.
pub(crate) fn dispose(which: Signal, what: SigHandler) -> Result<(), Errno> {
    assert!(
        matches!(what, SigHandler::SigDfl | SigHandler::SigIgn),
        "the agent handles no signal by a function"
    );
    // SAFETY: by the assertion no code of ours ever runs in a handler.
    unsafe { signal(which, what) }.map(drop)
}

/// A child that ended and is still to be reaped, if there is one. [`Errno::ECHILD`] when there are no children.
pub(crate) fn ended_child() -> Result<Option<Pid>, Errno> {
    // SAFETY: all zeroes is a valid `siginfo_t`, and it is what "nobody" leaves there.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call.
    Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })?;
    // SAFETY: `waitid` filled the SIGCHLD part, or left zeroes.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// Reaps a child that ended: its wait status, and what it and the children it waited for used.
pub(crate) fn reap(pid: Pid) -> Result<(c_int, libc::rusage), Errno> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both out-parameters outlive the call.
    Errno::result(unsafe { libc::wait4(pid.as_raw(), &raw mut status, libc::WNOHANG, &raw mut usage) })?;
    Ok((status, usage))
}

/// Waits until one of `slots` is ready; a slot with a negative descriptor is skipped. Interruptions count as none.
pub(crate) fn poll(slots: &mut [libc::pollfd], timeout_ms: c_int) -> Result<(), Errno> {
    // SAFETY: the slice is valid for its length.
    let done = unsafe { libc::poll(slots.as_mut_ptr(), slots.len() as libc::nfds_t, timeout_ms) };
    match Errno::result(done) {
        Err(Errno::EINTR) => {
            for slot in slots {
                slot.revents = 0;
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Sends to a socket, never blocking and never raising SIGPIPE.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the slice is valid for its length.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    Errno::result(sent).map(|sent| sent as usize)
}

/// Has the peer of a socket see a reset, and not an end, when the socket is closed.
pub(crate) fn reset_when_closed(socket: &TcpStream) -> Result<(), Errno> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel reads as many bytes as the struct has.
    let done =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
    Errno::result(done).map(drop)
}

/// Reads raw directory entries (`struct linux_dirent64`, back to back) into `buffer`.
pub(crate) fn getdents(dir: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let args = (dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `len` bytes into the slice.
    let read = unsafe { libc::syscall(libc::SYS_getdents64, args.0, args.1, args.2) };
    Errno::result(read).map(|read| read as usize)
}

/// `prctl` with numbers only, for the options whose arguments are no pointers.
pub(crate) fn prctl(option: c_int, first: c_ulong, second: c_ulong) -> Result<c_int, Errno> {
    const NUMERIC: [c_int; 6] = [
        libc::PR_CAPBSET_DROP,
        libc::PR_CAPBSET_READ,
        libc::PR_CAP_AMBIENT,
        libc::PR_SET_SECUREBITS,
        libc::PR_GET_SECUREBITS,
        libc::PR_GET_NO_NEW_PRIVS,
    ];
    assert!(NUMERIC.contains(&option), "prctl option {option} may take a pointer");
    // SAFETY: by the assertion no argument is read as a pointer.
    Errno::result(unsafe { libc::prctl(option, first, second, 0 as c_ulong, 0 as c_ulong) })
}

/// The three capability sets that `capget` and `capset` know, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Capabilities {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
const CAP_HEADER: CapHeader = CapHeader { version: 0x2008_0522, pid: 0 };

/// The own capability sets.
pub(crate) fn capget() -> Result<Capabilities, Errno> {
    let mut header = CAP_HEADER;
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: version 3 means two records of three words, which `data` is.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |at: usize| u64::from(data[0][at]) | u64::from(data[1][at]) << 32;
    Ok(Capabilities { effective: join(0), permitted: join(1), inheritable: join(2) })
}

/// Replaces the own capability sets.
pub(crate) fn capset(sets: Capabilities) -> Result<(), Errno> {
    let mut header = CAP_HEADER;
    let word =
        |shift: u32| [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32);
    let data = [word(0), word(32)];
    // SAFETY: version 3 means two records of three words, which `data` is.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Installs a seccomp filter on top of those that are there. Needs `no_new_privs`.
pub(crate) fn seccomp(program: &'static [libc::sock_filter]) -> Result<(), Errno> {
    let prog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, which is static, and writes nothing to it.
    Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const prog) }).map(drop)
}

/// The newest Landlock ABI of the running kernel.
pub(crate) fn landlock_abi() -> Result<u32, Errno> {
    const VERSION: c_int = 1;
    // SAFETY: with this flag the call takes no attributes and returns a number.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<()>(), 0_usize, VERSION) };
    Errno::result(abi).map(|abi| abi as u32)
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct RulesetAttr {
    pub(crate) handled_access_fs: u64,
    pub(crate) handled_access_net: u64,
    pub(crate) scoped: u64,
}

/// Makes a Landlock ruleset. Fields that the kernel does not know must be zero.
pub(crate) fn landlock_ruleset(attr: &RulesetAttr) -> Result<OwnedFd, Errno> {
    let (attr, size) = (ptr::from_ref(attr), size_of::<RulesetAttr>());
    // SAFETY: `attr` is valid for its size.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attr, size, 0) })?;
    // SAFETY: a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: c_int,
}

/// Allows `access` to everything below `parent`.
pub(crate) fn landlock_allow(ruleset: impl AsFd, parent: impl AsFd, access: u64) -> Result<(), Errno> {
    const PATH_BENEATH: c_int = 1;
    let attr = PathBeneathAttr { allowed_access: access, parent_fd: parent.as_fd().as_raw_fd() };
    let fd = ruleset.as_fd().as_raw_fd();
    // SAFETY: `attr` has the layout of `struct landlock_path_beneath_attr`, which is packed.
    let done = unsafe { libc::syscall(libc::SYS_landlock_add_rule, fd, PATH_BENEATH, &raw const attr, 0) };
    Errno::result(done).map(drop)
}

/// Confines this process, for good, to what `ruleset` allows.
pub(crate) fn landlock_restrict(ruleset: impl AsFd) -> Result<(), Errno> {
    let fd = ruleset.as_fd().as_raw_fd();
    // SAFETY: takes no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) }).map(drop)
}

/// Loads a kernel module.
pub(crate) fn load_module(file: impl AsFd) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the parameters are an empty C string.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, fd, c"".as_ptr(), 0) };
    Errno::result(done).map(drop)
}

/// `struct rand_pool_info` with room for 32 bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: c_int,
    buf_size: c_int,
    buf: [u8; 32],
}

/// From `linux/random.h`: `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)`.
const RNDADDENTROPY: c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: c_ulong = 0x5207;

/// Gives the kernel's random generator bytes that count as random.
pub(crate) fn add_entropy(device: impl AsFd, bytes: &[u8; 32]) -> Result<(), Errno> {
    let info = RandPoolInfo { entropy_count: 8 * 32, buf_size: 32, buf: *bytes };
    // SAFETY: the kernel reads the head and as many bytes as it says, all of which are there.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), RNDADDENTROPY, &raw const info) })
        .map(drop)
}

/// Has the kernel's random generator begin anew with what it was given.
pub(crate) fn reseed(device: impl AsFd) -> Result<(), Errno> {
    // SAFETY: takes no argument.
    Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// Brings up the loopback interface.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: a plain call; the result is checked before it is owned.
    let raw =
        Errno::result(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all zeroes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request is whole and lives across the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

//! What host and agent say to each other: one enum for each direction, with fixed numbers.
//!
//! The order of a conversation: [`ToAgent::Hello`] → [`ToHost::Ready`], then [`ToAgent::Put`] as often as
//! needed, one [`ToAgent::Run`] with its streams, [`ToHost::Exit`], [`ToAgent::Get`], and the end of the
//! channel, which ends the agent and with it the sandbox.
//!
//! `Hello`, `Ready`, `Fault`, `Signal` and `Exit` speak of the whole sandbox, on stream 0: there is one `Run`.
//! Several would each answer on the stream that they were given.
//!
//! In a virtual machine [`ToAgent::Resume`] → [`ToHost::Resumed`] comes before `Hello`, once in each life, and
//! [`ToAgent::Bound`] may come right behind `Ready`.
//!
//! A connection that the job makes to a port of [`Run::listen`] becomes a stream of its own, which the agent opens with
//! [`ToHost::Tunnel`]. Either end says [`ToAgent::End`] when it sends no more, or [`ToAgent::Reset`] when it wants no
//! more either, and answers a Reset with its own last word, if it has not said it. A stream on which both have said
//! theirs is over.
//!
//! Structured payloads are postcard; `Data` is the bytes themselves.

use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message};

/// The version of this protocol. Host and agent are built together, so the two must be equal.
pub const VERSION: u16 = 3;

/// The path of the agent inside every image.
pub const AGENT_PATH: &str = "/.mayfly/agent";

/// A fresh random number that only an answer of this very life can echo.
pub type Nonce = [u8; 32];

/// From the host to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    /// First frame: who speaks, and how the job's process is to be armed.
    Hello(Hello),
    /// This machine's life begins here, whatever its memory says: be somebody new.
    Resume(Resume),
    /// Tighten the limits of the job, which has not begun.
    Bound(Bounds),
    /// Let the armed process become the job. Its header's stream is the job's stdin.
    Run(Run),
    /// Send a signal to the job.
    Signal(Signal),
    /// Write one file; its bytes follow on the same stream, closed by `End`.
    Put(Put),
    /// Read files; entries and bytes come back on the same stream.
    Get(Get),
    /// Bytes of a stream.
    Data(Vec<u8>),
    /// The host's reader took this many bytes.
    Credit(u32),
    /// No more bytes come on this stream.
    End,
    /// The host wants no more of this stream.
    Reset,
}

/// From the agent to the host. Every field of it is untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// Answer to `Hello`: the job's process is armed and waits.
    Ready(Ready),
    /// Answer to `Resume`: nothing of the former life can be told from this one any more.
    Resumed(Resumed),
    /// The agent cannot go on. The sandbox is lost.
    Fault(Fault),
    /// The job ended. All its processes are gone, but its output may still be on the way.
    Exit(Exit),
    /// Answer to a `Put`, after its last byte.
    PutDone(Result<u64, FileError>),
    /// A file follows on this stream.
    Entry(Entry),
    /// The file that was announced last is complete, or was cut short.
    EntryDone(Result<(), FileError>),
    /// Something matched but is not given, and why.
    Skipped(Skipped),
    /// The job connected to one of its ports. Its header's stream is the connection, in both directions.
    Tunnel(Tunnel),
    /// Answer to a `Get`, after the last entry.
    GetDone(GetDone),
    /// Bytes of a stream.
    Data(Vec<u8>),
    /// The agent's reader took this many bytes.
    Credit(u32),
    /// No more bytes come on this stream.
    End,
    /// The agent wants no more of this stream (a job that closed its stdin).
    Reset,
}

/// First frame of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the host.
    pub version: u16,
    /// To be echoed in [`Ready`].
    pub nonce: Nonce,
    /// Who the agent and the job shall be. `None`: the tier made the agent what it must be, and the job is the same user.
    pub identity: Option<Identity>,
    /// Whether the job may write to the root filesystem (a throw-away overlay).
    pub writable_root: bool,
}

/// What makes one life of a virtual machine different from all others that begin in the same memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// To be echoed in [`Resumed`].
    pub nonce: Nonce,
    /// Fresh random bytes of the host's, for the kernel's generator.
    pub entropy: [u8; 32],
    /// Nanoseconds since 1970.
    pub time: u64,
    /// The machine's name.
    pub hostname: String,
    /// What `/etc/machine-id` says, where the image has one: 32 hexadecimal digits.
    pub machine_id: String,
    /// What `/proc/sys/kernel/random/boot_id` says: a UUID.
    pub boot_id: String,
    /// What the job may use, counted by the machine's own kernel.
    pub bounds: Bounds,
}

/// The machine is somebody new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The host's nonce.
    pub nonce: Nonce,
    /// The boot id as any program of the machine now reads it.
    pub boot_id: String,
    /// The machine's clock when this was written, in nanoseconds since 1970.
    pub time: u64,
}

/// Limits that the kernel of a virtual machine counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Memory of the job's processes and files together, in bytes.
    pub memory: u64,
    /// Processes and threads of the job.
    pub pids: u32,
    /// Size of the throw-away disk, in bytes.
    pub disk: u64,
    /// Files and directories on it.
    pub inodes: u64,
}

/// User ids inside the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What the agent becomes once the job's process is armed.
    pub agent: u32,
    /// The job's user id.
    pub uid: u32,
    /// The job's group id, its only group.
    pub gid: u32,
}

/// The agent is ready and the job's process is armed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`] of the agent.
    pub version: u16,
    /// The host's nonce.
    pub nonce: Nonce,
    /// The kernel's boot id as seen inside; empty where that kernel, such as gVisor's, has none.
    pub boot_id: String,
    /// The kernel's release as seen inside.
    pub kernel: String,
    /// The job's process as the agent sees it. The host looks for itself where it can.
    pub job: Armed,
}

/// How the armed process says it is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Its pid inside.
    pub pid: u32,
    /// Its effective user id inside.
    pub uid: u32,
    /// Landlock's ABI version that was enforced, 0 where the kernel has none.
    pub landlock_abi: u32,
}

/// What cannot go on, at which step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The step that failed, as a lower-case phrase.
    pub step: String,
    /// `errno`, or 0 where none fits.
    pub errno: i32,
}

/// What the job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments. The program is looked up in the job's `PATH` unless it has a slash.
    #[serde(with = "byte_strings")]
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=value`. Nothing is inherited.
    #[serde(with = "byte_strings")]
    pub env: Vec<Vec<u8>>,
    /// Working directory.
    #[serde(with = "serde_bytes")]
    pub cwd: Vec<u8>,
    /// Resource limits, soft and hard alike.
    pub rlimits: Vec<(Rlimit, u64)>,
    /// Whether stdin is a stream from the host; otherwise it is empty.
    pub stdin: bool,
    /// Ports of the sandbox's loopback on which the agent listens for the job, from 1024 up.
    pub listen: Vec<u16>,
}

/// The same bytes on the wire as without it, but each string goes over as one piece and not byte by byte: an
/// environment is read and written on the way of every job.
mod byte_strings {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    pub(super) fn serialize<S: Serializer>(strings: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(strings.iter().map(|string| Bytes::new(string)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let strings = Vec::<ByteBuf>::deserialize(deserializer)?;
        Ok(strings.into_iter().map(ByteBuf::into_vec).collect())
    }
}

/// The resource limits that the host may set, as in `setrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rlimit {
    /// Open files.
    Nofile,
    /// Size of a file, in bytes.
    Fsize,
    /// Processes of the job's user.
    Nproc,
    /// Size of a core dump, in bytes.
    Core,
}

/// A signal for every process of the sandbox but the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// SIGTERM: please end.
    Term,
    /// SIGKILL: end.
    Kill,
}

/// Write one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Absolute path inside. Missing parent directories are made.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Read files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Absolute paths or globs (`*`, `?`, `[…]`, `**`). A directory means all that is below it.
    pub patterns: Vec<String>,
    /// Stop after this many files.
    pub max_files: u32,
    /// Stop after this many bytes in all.
    pub max_bytes: u64,
    /// Stop after looking at this many directory entries, matching or not.
    pub max_visited: u32,
}

/// A file that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute path inside.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Permission bits; the host masks them.
    pub mode: u32,
    /// Size when it was opened, in bytes. More or less may follow.
    pub size: u64,
}

/// Something that is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Absolute path inside, or the pattern that nothing matched.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Why.
    pub error: FileError,
}

/// A connection of the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The port that it was made to.
    pub port: u16,
}

/// The end of a `Get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetDone {
    /// Which limit ended the walk early, if one did.
    pub stopped_by: Option<GetLimit>,
}

/// A limit of [`Get`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GetLimit {
    /// `max_files`
    Files,
    /// `max_bytes`
    Bytes,
    /// `max_visited`
    Visited,
}

/// Why a file could not be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileError {
    /// Nothing is there, or nothing matched.
    NotFound,
    /// A symbolic link: never followed.
    Symlink,
    /// A fifo, socket or device: never opened.
    NotRegular,
    /// The path is a directory where a file was meant, or the other way round.
    Directory,
    /// The path is not absolute, or has a `..` or an empty name in it.
    BadPath,
    /// The pattern is not a glob.
    BadPattern,
    /// The job's user may not.
    Denied,
    /// No space, no inodes, or the file size limit was reached.
    Full,
    /// The root filesystem is read-only.
    ReadOnly,
    /// A byte limit cut the file short.
    Truncated,
    /// Anything else, by `errno`.
    Os(i32),
}

/// How the job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How its first process ended.
    pub ending: Ending,
    /// User CPU time of the job and its children, in microseconds.
    pub user_us: u64,
    /// System CPU time of the job and its children, in microseconds.
    pub system_us: u64,
    /// Largest resident set of any one process, in KiB.
    pub max_rss_kib: u64,
    /// Processes that outlived the first one and were killed.
    pub stragglers: u32,
    /// What the kernel counted, where the host cannot look for itself: in a virtual machine.
    pub memory: Option<Memory>,
}

/// What the kernel of a virtual machine says of the job's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Processes that it killed for memory.
    pub oom_kills: u64,
    /// The largest memory of all the job's processes and files together, in bytes.
    pub peak: u64,
}

/// How a job's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It called exit.
    Code(u8),
    /// A signal killed it.
    Signal(u8),
    /// It never became the job.
    NotStarted {
        /// What was wrong.
        why: NotStarted,
        /// The `errno` behind it.
        errno: i32,
    },
}

/// Why a job's process could not become the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    /// No such program.
    NotFound,
    /// The program is there and cannot be run.
    NotExecutable,
    /// The working directory cannot be entered.
    Workdir,
    /// Arguments and environment are too long together.
    TooLong,
    /// A resource limit was refused.
    Rlimit,
    /// Anything else.
    Other,
}

/// Writes the two `Message` impls from one table each, so that a number is said once.
macro_rules! wire {
    ($enum:ident { $($kind:literal => $variant:ident $(($payload:ident))?),+ $(,)? }) => {
        impl Message for $enum {
            fn kind(&self) -> u8 {
                match self { $(Self::$variant { .. } => $kind),+ }
            }

            fn write_payload(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                match self { $(wire!(@pattern $variant $(, payload $payload)?) => wire!(@write out, $kind $(, payload $payload)?)),+ }
            }

            fn read_payload(kind: u8, bytes: &[u8]) -> Result<Self, CodecError> {
                match kind {
                    $($kind => wire!(@read bytes, $kind, $variant $(, $payload)?),)+
                    other => Err(CodecError::UnknownKind(other)),
                }
            }
        }
    };
    (@pattern $variant:ident) => { Self::$variant };
    (@pattern $variant:ident, $name:ident $payload:ident) => { Self::$variant($name) };
    (@write $out:ident, $kind:literal) => { Ok(()) };
    (@write $out:ident, $kind:literal, $name:ident bytes) => {{ $out.extend_from_slice($name); Ok(()) }};
    (@write $out:ident, $kind:literal, $name:ident postcard) => { write_postcard($kind, $name, $out) };
    (@read $bytes:ident, $kind:literal, $variant:ident) => {
        if $bytes.is_empty() { Ok(Self::$variant) } else { Err(CodecError::Malformed($kind)) }
    };
    (@read $bytes:ident, $kind:literal, $variant:ident, bytes) => { Ok(Self::$variant($bytes.to_vec())) };
    (@read $bytes:ident, $kind:literal, $variant:ident, postcard) => { read_postcard($kind, $bytes).map(Self::$variant) };
}

wire!(ToAgent {
    0x01 => Hello(postcard),
    0x04 => Resume(postcard),
    0x06 => Bound(postcard),
    0x10 => Run(postcard),
    0x11 => Signal(postcard),
    0x20 => Data(bytes),
    0x21 => Credit(postcard),
    0x22 => End,
    0x23 => Reset,
    0x30 => Put(postcard),
    0x31 => Get(postcard),
});

wire!(ToHost {
    0x02 => Ready(postcard),
    0x03 => Fault(postcard),
    0x05 => Resumed(postcard),
    0x12 => Exit(postcard),
    0x20 => Data(bytes),
    0x21 => Credit(postcard),
    0x22 => End,
    0x23 => Reset,
    0x32 => PutDone(postcard),
    0x33 => Entry(postcard),
    0x34 => EntryDone(postcard),
    0x35 => Skipped(postcard),
    0x36 => GetDone(postcard),
    0x40 => Tunnel(postcard),
});

fn write_postcard<T: Serialize>(kind: u8, value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let bytes = postcard::to_stdvec(value).map_err(|_| CodecError::Malformed(kind))?;
    out.extend_from_slice(&bytes);
    Ok(())
}

fn read_postcard<'a, T: Deserialize<'a>>(kind: u8, bytes: &'a [u8]) -> Result<T, CodecError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        // Bytes behind the value are as wrong as too few: both ends are built from one source.
        _ => Err(CodecError::Malformed(kind)),
    }
}

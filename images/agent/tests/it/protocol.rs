//! The wire protocol as a property: whatever is said arrives, and nothing else does any harm.

use agent::codec::{Decoder, Frame, HEADER_LEN, MAX_PAYLOAD, Message};
use agent::flow::{INITIAL_CREDIT, ReceiveWindow, SendWindow};
use agent::message::{
    Armed, Bounds, Ending, Entry, Exit, Fault, FileError, Get, GetDone, GetLimit, Hello, Identity, Memory,
    NotStarted, Put, Ready, Resume, Resumed, Rlimit, Run, Signal, Skipped, ToAgent, ToHost, Tunnel,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

fn file_error() -> impl Strategy<Value = FileError> {
    use FileError::{
        BadPath, BadPattern, Denied, Directory, Full, NotFound, NotRegular, Os, ReadOnly, Symlink, Truncated,
    };
    let named = vec![
        NotFound, Symlink, NotRegular, Directory, BadPath, BadPattern, Denied, Full, ReadOnly, Truncated,
    ];
    prop_oneof![select(named), any::<i32>().prop_map(Os)]
}

fn hello() -> impl Strategy<Value = Hello> {
    let identity =
        option::of(any::<(u32, u32, u32)>().prop_map(|(agent, uid, gid)| Identity { agent, uid, gid }));
    (any::<u16>(), any::<[u8; 32]>(), identity, any::<bool>()).prop_map(
        |(version, nonce, identity, writable_root)| Hello { version, nonce, identity, writable_root },
    )
}

fn run() -> impl Strategy<Value = Run> {
    let limit = select(vec![Rlimit::Nofile, Rlimit::Fsize, Rlimit::Nproc, Rlimit::Core]);
    let limits = vec((limit, any::<u64>()), 0..4);
    (vec(bytes(), 0..5), vec(bytes(), 0..20), bytes(), limits, any::<bool>(), vec(any::<u16>(), 0..4))
        .prop_map(|(argv, env, cwd, rlimits, stdin, listen)| Run { argv, env, cwd, rlimits, stdin, listen })
}

fn bounds() -> impl Strategy<Value = Bounds> {
    any::<(u64, u32, u64, u64)>().prop_map(|(memory, pids, disk, inodes)| Bounds {
        memory,
        pids,
        disk,
        inodes,
    })
}

fn resume() -> impl Strategy<Value = Resume> {
    let names = any::<(String, String, String)>();
    (any::<[u8; 32]>(), any::<[u8; 32]>(), any::<u64>(), names, bounds()).prop_map(
        |(nonce, entropy, time, (hostname, machine_id, boot_id), bounds)| Resume {
            nonce,
            entropy,
            time,
            hostname,
            machine_id,
            boot_id,
            bounds,
        },
    )
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        hello().prop_map(ToAgent::Hello),
        resume().prop_map(ToAgent::Resume),
        bounds().prop_map(ToAgent::Bound),
        run().prop_map(ToAgent::Run),
        select(vec![Signal::Term, Signal::Kill]).prop_map(ToAgent::Signal),
        (bytes(), any::<u32>()).prop_map(|(path, mode)| ToAgent::Put(Put { path, mode })),
        (vec(any::<String>(), 0..5), any::<u32>(), any::<u64>(), any::<u32>()).prop_map(
            |(patterns, max_files, max_bytes, max_visited)| {
                ToAgent::Get(Get { patterns, max_files, max_bytes, max_visited })
            }
        ),
        bytes().prop_map(ToAgent::Data),
        any::<u32>().prop_map(ToAgent::Credit),
        Just(ToAgent::End),
        Just(ToAgent::Reset),
    ]
}

fn ending() -> impl Strategy<Value = Ending> {
    use NotStarted::{NotExecutable, NotFound, Other, Rlimit, TooLong, Workdir};
    let why = select(vec![NotFound, NotExecutable, Workdir, TooLong, Rlimit, Other]);
    prop_oneof![
        any::<u8>().prop_map(Ending::Code),
        any::<u8>().prop_map(Ending::Signal),
        (why, any::<i32>()).prop_map(|(why, errno)| Ending::NotStarted { why, errno }),
    ]
}

fn ready() -> impl Strategy<Value = Ready> {
    (any::<u16>(), any::<[u8; 32]>(), any::<String>(), any::<String>(), any::<(u32, u32, u32)>()).prop_map(
        |(version, nonce, boot_id, kernel, (pid, uid, landlock_abi))| Ready {
            version,
            nonce,
            boot_id,
            kernel,
            job: Armed { pid, uid, landlock_abi },
        },
    )
}

fn to_host() -> impl Strategy<Value = ToHost> {
    let limit = select(vec![GetLimit::Files, GetLimit::Bytes, GetLimit::Visited]);
    prop_oneof![
        ready().prop_map(ToHost::Ready),
        (any::<String>(), any::<i32>()).prop_map(|(step, errno)| ToHost::Fault(Fault { step, errno })),
        (ending(), any::<(u64, u64, u64, u32)>(), any::<Option<(u64, u64)>>()).prop_map(
            |(ending, (user_us, system_us, max_rss_kib, stragglers), memory)| ToHost::Exit(Exit {
                ending,
                user_us,
                system_us,
                max_rss_kib,
                stragglers,
                memory: memory.map(|(oom_kills, peak)| Memory { oom_kills, peak }),
            })
        ),
        (any::<[u8; 32]>(), any::<String>(), any::<u64>())
            .prop_map(|(nonce, boot_id, time)| ToHost::Resumed(Resumed { nonce, boot_id, time })),
        prop::result::maybe_ok(any::<u64>(), file_error()).prop_map(ToHost::PutDone),
        (bytes(), any::<u32>(), any::<u64>()).prop_map(|(path, mode, size)| ToHost::Entry(Entry {
            path,
            mode,
            size
        })),
        prop::result::maybe_ok(Just(()), file_error()).prop_map(ToHost::EntryDone),
        (bytes(), file_error()).prop_map(|(path, error)| ToHost::Skipped(Skipped { path, error })),
        option::of(limit).prop_map(|stopped_by| ToHost::GetDone(GetDone { stopped_by })),
        any::<u16>().prop_map(|port| ToHost::Tunnel(Tunnel { port })),
        bytes().prop_map(ToHost::Data),
        any::<u32>().prop_map(ToHost::Credit),
        Just(ToHost::End),
        Just(ToHost::Reset),
    ]
}

/// Feeds `bytes` in pieces of the given sizes, over and over, and collects the frames.
fn decode<M: Message>(bytes: &[u8], sizes: &[usize]) -> Result<Vec<Frame<M>>, agent::codec::CodecError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        decoder.feed(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        assert!(decoder.pending() <= HEADER_LEN + MAX_PAYLOAD);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    Ok(frames)
}

fn round_trip<M: Message + Clone + PartialEq + std::fmt::Debug>(messages: Vec<(u16, M)>, sizes: &[usize]) {
    let frames: Vec<_> = messages.into_iter().map(|(stream, message)| Frame { stream, message }).collect();
    let mut bytes = Vec::new();
    for frame in &frames {
        frame.encode_into(&mut bytes).expect("short enough");
    }
    assert_eq!(decode::<M>(&bytes, sizes), Ok(frames));
}

fn harmless<M: Message>(bytes: &[u8], sizes: &[usize]) {
    for frame in decode::<M>(bytes, sizes).unwrap_or_default() {
        assert!(frame.encode().expect("what was decoded encodes").len() <= HEADER_LEN + MAX_PAYLOAD);
    }
}

proptest! {
    #[test]
    fn any_conversation_to_the_agent_survives_any_split(
        messages in vec((any::<u16>(), to_agent()), 0..10), sizes in vec(1_usize..600, 1..20)
    ) {
        round_trip(messages, &sizes);
    }

    #[test]
    fn any_conversation_to_the_host_survives_any_split(
        messages in vec((any::<u16>(), to_host()), 0..10), sizes in vec(1_usize..600, 1..20)
    ) {
        round_trip(messages, &sizes);
    }

    #[test]
    fn garbage_is_refused_or_understood_and_never_more(
        garbage in vec(any::<u8>(), 0..3000), sizes in vec(1_usize..600, 1..20)
    ) {
        harmless::<ToAgent>(&garbage, &sizes);
        harmless::<ToHost>(&garbage, &sizes);
    }

    /// Garbage behind a good header, which random bytes hardly ever are.
    #[test]
    fn a_garbled_payload_is_refused_or_understood(kind in 0_u8..0x40, payload in vec(any::<u8>(), 0..300)) {
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[kind, 0, 1, 0]);
        bytes.extend_from_slice(&payload);
        harmless::<ToAgent>(&bytes, &[bytes.len()]);
        harmless::<ToHost>(&bytes, &[bytes.len()]);
    }

    /// However sender and receiver take turns, credit is neither made nor lost.
    #[test]
    fn credit_is_conserved(turns in vec((any::<bool>(), 0_usize..200_000), 0..200)) {
        let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
        let mut unread = 0;
        let mut told = 0;
        for (sends, amount) in turns {
            if sends {
                let len = amount.min(sender.available());
                sender.consume(len);
                receiver.receive(len).expect("what the sender may send, the receiver takes");
                unread += len;
            } else {
                let len = amount.min(unread);
                unread -= len;
                told += len;
                if let Some(grant) = receiver.release(len) {
                    told -= grant as usize;
                    sender.grant(grant).expect("sane");
                }
            }
            prop_assert_eq!(sender.available() + unread + told, INITIAL_CREDIT as usize);
            // A sender without credit is never forgotten: something unread is still to be taken.
            prop_assert!(sender.available() > 0 || unread > 0);
        }
        let beyond = sender.available() + 1;
        prop_assert!(receiver.receive(beyond).is_err());
    }
}

#[test]
fn a_payload_above_the_limit_is_neither_sent_nor_taken() {
    let mut out = vec![1, 2, 3];
    let frame = Frame { stream: 1, message: ToAgent::Data(vec![0; MAX_PAYLOAD + 1]) };
    assert!(frame.encode_into(&mut out).is_err());
    assert_eq!(out, [1, 2, 3]);
    let mut decoder = Decoder::default();
    decoder.feed(&[1, 0, 0x10, 0, 0x20, 0, 1, 0]);
    assert!(decoder.next_frame::<ToAgent>().is_err());
}

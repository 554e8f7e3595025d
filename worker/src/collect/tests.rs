//! Collecting from scripted agents, honest and hostile, on paused time.

use super::*;
use crate::{
    cancel::cancellation,
    peer::{Peer, pair},
};

/// Remembers what it was given.
#[derive(Default)]
struct Shelf {
    kept: Vec<(Vec<u8>, Vec<u8>, u32)>,
    current: Option<(Vec<u8>, Vec<u8>, u32)>,
    discarded: usize,
    /// Fails for this path.
    refuses: Vec<u8>,
}

impl ArtifactSink for Shelf {
    async fn begin(&mut self, arrival: Arrival<'_>) -> io::Result<()> {
        if arrival.path == self.refuses {
            return Err(io::Error::other("the shelf is full"));
        }
        self.current = Some((arrival.path.to_vec(), Vec::new(), arrival.mode));
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.current.as_mut().expect("a file began").1.extend_from_slice(bytes);
        Ok(())
    }

    async fn keep(&mut self) -> io::Result<()> {
        self.kept.push(self.current.take().expect("a file began"));
        Ok(())
    }

    async fn discard(&mut self) {
        self.current = None;
        self.discarded += 1;
    }
}

fn caps() -> Caps {
    Caps { files: 3, bytes: 100, file_bytes: 50, visited: 10, time: Duration::from_secs(5) }
}

async fn collected(shelf: &mut Shelf, agent: impl AsyncFnOnce(&mut Peer)) -> Collected {
    let (mut channel, mut peer) = pair();
    let patterns = ["/job/out".to_owned()];
    let host = async {
        let collected = collect(&mut channel, &patterns, caps(), shelf, cancellation().1).await;
        drop(channel);
        collected
    };
    let agent = async {
        assert!(matches!(peer.is_told().await, ToAgent::Get(_)));
        agent(&mut peer).await;
        peer.is_silent().await;
    };
    tokio::join!(host, agent).0
}

fn entry(path: &str) -> ToHost {
    ToHost::Entry(Entry { path: path.as_bytes().to_vec(), mode: 0o4777, size: 1 })
}

const DONE: ToHost = ToHost::EntryDone(Ok(()));
const ALL: ToHost = ToHost::GetDone(GetDone { stopped_by: None });

fn data(len: usize) -> ToHost {
    ToHost::Data(vec![b'x'; len])
}

#[tokio::test(start_paused = true)]
async fn files_come_out_with_their_digests_and_harmless_modes() {
    let mut shelf = Shelf::default();
    let collected = collected(&mut shelf, async |peer| {
        for message in [entry("/job/out/a"), ToHost::Data(b"abc".to_vec()), DONE, entry("/job/out/b"), DONE] {
            peer.says(GET_STREAM, message).await;
        }
        let link = Skipped { path: b"/job/out/\x1b[2J".to_vec(), error: FileError::Symlink };
        peer.says(GET_STREAM, ToHost::Skipped(link)).await;
        peer.says(GET_STREAM, ALL).await;
    })
    .await;
    assert_eq!(collected.cut_short, None);
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let expected = Artifact { path: "/job/out/a".to_owned(), size: 3, sha256: digest.to_owned() };
    assert_eq!((&collected.artifacts[0], collected.artifacts.len()), (&expected, 2));
    assert_eq!(collected.skipped[0].path, "/job/out/\\x1b[2J");
    assert_eq!(shelf.kept[0], (b"/job/out/a".to_vec(), b"abc".to_vec(), 0o755), "setuid is gone");
}

#[tokio::test(start_paused = true)]
async fn one_lie_ends_the_collection_and_what_came_before_is_kept() {
    let done = |limit| ToHost::GetDone(GetDone { stopped_by: limit });
    let a = || entry("/job/out/a");
    let lies: [(&str, Vec<ToHost>); 12] = [
        ("not asked for", vec![entry("/etc/shadow")]),
        ("not asked for", vec![entry("/job/out/../../etc/shadow")]),
        ("not asked for", vec![entry("job/out/x")]),
        ("twice", vec![entry("/job/out/first")]),
        ("inside another", vec![a(), entry("/job/out/b")]),
        ("bytes of no artifact", vec![data(1)]),
        ("ended no artifact", vec![DONE]),
        ("in the middle", vec![a(), done(None)]),
        ("too many", vec![a(), DONE, entry("/job/out/b"), DONE, entry("/job/out/c")]),
        ("more bytes", vec![a(), data(101)]),
        ("nothing asked for", vec![ToHost::PutDone(Ok(0))]),
        ("skipped more", vec![ToHost::Skipped(Skipped { path: vec![], error: FileError::Denied }); 12]),
    ];
    for (expected, lie) in lies {
        let mut shelf = Shelf::default();
        let collected = collected(&mut shelf, async |peer| {
            peer.says(GET_STREAM, entry("/job/out/first")).await;
            peer.says(GET_STREAM, DONE).await;
            for message in lie {
                peer.says(GET_STREAM, message).await;
            }
        })
        .await;
        let said = collected.cut_short.expect(expected);
        assert!(said.contains(expected), "{expected:?} was expected, {said:?} was said");
        assert_eq!(collected.artifacts[0].path, "/job/out/first");
        assert!(shelf.current.is_none(), "nothing half-written stays: {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_answering_costs_no_more_than_the_cap_on_time() {
    let started = tokio::time::Instant::now();
    let mut shelf = Shelf::default();
    let collected = collected(&mut shelf, async |peer| {
        peer.says(GET_STREAM, entry("/job/out/a")).await;
        peer.says(GET_STREAM, data(1)).await;
    })
    .await;
    assert_eq!(started.elapsed(), caps().time);
    assert!(collected.cut_short.unwrap().contains("longer than 5s"));
    assert_eq!((shelf.discarded, collected.artifacts.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_kept_is_left_out_and_the_others_still_come() {
    let mut shelf = Shelf { refuses: b"/job/out/bad".to_vec(), ..Shelf::default() };
    let cut = ToHost::EntryDone(Err(FileError::Truncated));
    let collected = collected(&mut shelf, async |peer| {
        let story = [entry("/job/out/bad"), data(9), DONE, entry("/job/out/big"), data(51), DONE];
        for message in story.into_iter().chain([entry("/job/out/cut"), data(1), cut, ALL]) {
            peer.says(GET_STREAM, message).await;
        }
    })
    .await;
    assert_eq!(collected.cut_short, None);
    let reasons: Vec<_> = collected.skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "it cannot be kept: the shelf is full",
            "it is larger than 50 B",
            "a limit on the bytes to collect cut it short"
        ]
    );
    assert_eq!((collected.artifacts.len(), shelf.kept.len(), shelf.discarded), (0, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_ended_the_walk_is_said() {
    let mut shelf = Shelf::default();
    let collected = collected(&mut shelf, async |peer| {
        peer.says(GET_STREAM, ToHost::GetDone(GetDone { stopped_by: Some(GetLimit::Visited) })).await;
    })
    .await;
    assert_eq!(
        collected.skipped[0].reason,
        "not all of it came: there are more than 10 directory entries to look at"
    );
}

#[test]
fn only_what_lies_below_the_literal_part_of_a_pattern_was_asked_for() {
    let table: [(&[u8], &str, bool); 12] = [
        (b"/job/out.txt", "/job/out.txt", true),
        (b"/job/out/a/b", "/job/out", true),
        (b"/job/out/a", "/job/out/", true),
        (b"/job/a.log", "/job/*.log", true),
        (b"/anything", "/*", true),
        (b"/job/out.txt.bak", "/job/out.txt", false),
        (b"/job/../etc/passwd", "/job", false),
        (b"/job//a", "/job", false),
        (b"/job/./a", "/job", false),
        (b"job/a", "/job", false),
        (b"/etc/passwd", "/job/*", false),
        (b"/job/a\0b", "/job", false),
    ];
    for (path, pattern, inside) in table {
        assert_eq!(is_inside(path, pattern), inside, "{} in {pattern}", printable(path));
    }
}

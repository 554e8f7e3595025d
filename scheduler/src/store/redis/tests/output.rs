//! Live output.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, time::timeout};
use worker::{ErrorReport, JobResult, Outcome};

use super::bed::Bed;
use crate::{
    key::{BodyDigest, JobKey},
    store::{
        Begun, Store,
        redis::{Follow, RedisStore, Said, Stream},
    },
};

const LONG: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);

fn job() -> JobKey {
    JobKey::new("local", "job")
}

async fn next(follow: &mut Follow) -> Option<Said> {
    timeout(PATIENCE, follow.next()).await.expect("something comes").unwrap()
}

async fn end(store: &RedisStore) {
    let Begun::Attempt(attempt) = store.begin(&job(), &BodyDigest::of(b"")).await.unwrap() else { panic!() };
    let result = JobResult::never_started(
        "job",
        "local",
        Outcome::Failed,
        ErrorReport::new("what", "why", "what to do"),
    );
    store.finish(attempt, &result).await.unwrap();
}

/// Reads what is said until one stream has said so many bytes, or everything is over.
async fn gather(follow: &mut Follow, until: usize) -> (Vec<u8>, Vec<u8>, u64) {
    let (mut out, mut err, mut missing) = (Vec::new(), Vec::new(), 0);
    while out.len() + err.len() + (missing as usize) < until
        && let Some(said) = next(follow).await
    {
        match said {
            Said::Attempt(_) => {}
            Said::Output(Stream::Stdout, bytes) => out.extend(bytes),
            Said::Output(Stream::Stderr, bytes) => err.extend(bytes),
            Said::Missing(_, bytes) => missing += bytes,
        }
    }
    (out, err, missing)
}

#[tokio::test]
async fn what_a_job_writes_is_seen_while_it_runs() {
    let Some(mut bed) = Bed::start("what_a_job_writes_is_seen_while_it_runs") else { return };
    bed.begin_anew(LONG);
    let (host, reader) = (bed.one_more(), RedisStore::look_on(bed.settings()).unwrap());
    reader.submitted(&job(), None).await.unwrap();
    let live = host.live_output(&job(), 1);
    let (mut out, mut err) = (live.stdout(), live.stderr());
    let mut follow = reader.follow(&job());
    out.write_all(b"one\n").await.unwrap();
    assert_eq!(next(&mut follow).await, Some(Said::Attempt(1)));
    assert_eq!(next(&mut follow).await, Some(Said::Output(Stream::Stdout, b"one\n".to_vec())));
    err.write_all(&[0xff, 0]).await.unwrap();
    assert_eq!(next(&mut follow).await, Some(Said::Output(Stream::Stderr, vec![0xff, 0])));
    // The next attempt begins from its beginning.
    drop(live);
    let live = host.live_output(&job(), 2);
    live.stdout().write_all(b"again").await.unwrap();
    assert_eq!(next(&mut follow).await, Some(Said::Attempt(2)));
    assert_eq!(next(&mut follow).await, Some(Said::Output(Stream::Stdout, b"again".to_vec())));
    drop(live);
    end(&host).await;
    assert_eq!(next(&mut follow).await, None);
}

#[tokio::test]
async fn a_flood_is_bounded_and_what_is_missing_is_said() {
    let Some(mut bed) = Bed::start("a_flood_is_bounded_and_what_is_missing_is_said") else { return };
    bed.begin_anew(LONG);
    let host = bed.one_more();
    host.submitted(&job(), None).await.unwrap();
    let live = host.live_output(&job(), 1);
    let mut out = live.stdout();
    let block = vec![b'x'; 64 * 1024];
    // While Redis stands still, so that not all of it can have been taken.
    bed.server.freeze().unwrap();
    let flood = async {
        for _ in 0..256 {
            out.write_all(&block).await.unwrap();
        }
    };
    timeout(PATIENCE, flood).await.expect("a job is never held back");
    bed.server.thaw().unwrap();
    let total = 256 * block.len();
    // The bytes after a gap tell how large it was.
    let mut follow = host.follow(&job());
    let tail = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if out.write_all(b"the end").await.is_err() {
                return;
            }
        }
    };
    let (text, _, missing) = tokio::select! {
        gathered = gather(&mut follow, total) => gathered,
        () = tail => unreachable!(),
    };
    assert!(missing > 0 && text.len() < 8 * 1024 * 1024, "{} kept, {missing} missing", text.len());
    assert!(text.len() as u64 + missing >= total as u64);
    let mut size = redis::cmd("XLEN");
    size.arg(host.shared.keys.output(&job()));
    assert!(host.shared.commands.ask::<u64>(&size).await.unwrap() < 2048);
}

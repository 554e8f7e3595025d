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
    let total = 256 * block.len() + b"the end".len();
    // While Redis stands still, so that not all of it can have been taken.
    bed.server.freeze().unwrap();
    let flood = async {
        for _ in 0..256 {
            out.write_all(&block).await.unwrap();
        }
        out.write_all(b"the end").await.unwrap();
    };
    timeout(PATIENCE, flood).await.expect("a job is never held back");
    bed.server.thaw().unwrap();
    let mut follow = host.follow(&job());
    let (text, _, missing) = gather(&mut follow, total).await;
    assert!(missing > 0 && text.len() < 8 * 1024 * 1024, "{} kept, {missing} missing", text.len());
    assert_eq!(text.len() as u64 + missing, total as u64);
    assert!(text.ends_with(b"the end"), "the newest is kept, though nothing comes after it");
    let mut size = redis::cmd("XLEN");
    size.arg(host.shared.keys.output(&job()));
    assert!(host.shared.commands.ask::<u64>(&size).await.unwrap() < 2048);
}

#[tokio::test]
async fn a_job_that_floods_does_not_hold_up_what_another_shows() {
    let Some(mut bed) = Bed::start("a_job_that_floods_does_not_hold_up_what_another_shows") else { return };
    bed.begin_anew(LONG);
    let host = bed.one_more();
    let other = JobKey::new("local", "other");
    for job in [&job(), &other] {
        host.submitted(job, None).await.unwrap();
    }
    let (flood, quiet) = (host.live_output(&job(), 1), host.live_output(&other, 1));
    let held = host.shared.pump.link().hold_up().await;
    flood.stdout().write_all(&vec![b'x'; 1024 * 1024]).await.unwrap();
    quiet.stdout().write_all(b"here").await.unwrap();
    drop(held);
    let mut follow = host.follow(&other);
    assert_eq!(next(&mut follow).await, Some(Said::Attempt(1)));
    assert_eq!(next(&mut follow).await, Some(Said::Output(Stream::Stdout, b"here".to_vec())));
    // The flood is under way still, and all of it comes: less than a mebibyte with its overhead is left out.
    let (text, _, missing) = gather(&mut host.follow(&job()), 1024 * 1024).await;
    assert_eq!(text.len() as u64 + missing, 1024 * 1024);
    assert!(missing < 64 * 1024, "{missing}");
    drop((flood, quiet));
}

//! The artifact store on a folder, and on an S3 server.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use object_store::ObjectStore;
use servers::S3;
use worker::{Arrival, ArtifactSink};

use super::{ArtifactError, ArtifactSettings, ArtifactStore, ArtifactsOfJob, Place, Swept};
use crate::key::JobKey;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn settings(place: Place, folder: &Path) -> ArtifactSettings {
    ArtifactSettings { place, arriving: folder.join("arriving"), quota: None, retention: 7 * DAY }
}

fn in_folder(folder: &Path) -> ArtifactSettings {
    settings(Place::Folder(folder.join("kept")), folder)
}

fn job(id: &str) -> JobKey {
    JobKey::new("tenant", id)
}

async fn give(sink: &mut ArtifactsOfJob, path: &str, bytes: &[u8]) -> std::io::Result<()> {
    sink.begin(Arrival { asked: 0, path: path.as_bytes(), mode: 0o644 }).await?;
    for chunk in bytes.chunks(60_000) {
        sink.write(chunk).await?;
    }
    sink.keep().await
}

async fn leave(store: &ArtifactStore, job: &JobKey, path: &str, bytes: &[u8]) {
    let mut sink = store.of_job(job, 1).unwrap();
    give(&mut sink, path, bytes).await.unwrap();
    sink.seal().await.unwrap();
}

async fn fetch(store: &ArtifactStore, job: &JobKey, path: &str) -> Result<Vec<u8>, ArtifactError> {
    let mut fetching = store.get(job, 1, path).await?;
    let mut all = Vec::new();
    while let Some(bytes) = fetching.next().await? {
        all.extend(bytes);
    }
    Ok(all)
}

async fn objects(store: &ArtifactStore) -> Vec<String> {
    let mut names: Vec<String> =
        store.shared.objects.list(None).map(|object| object.unwrap().location.to_string()).collect().await;
    names.sort();
    names
}

/// Large enough for several parts.
fn large() -> Vec<u8> {
    (0..20 * 1024 * 1024_u32).map(|n| (n ^ (n >> 9)) as u8).collect()
}

/// What holds wherever they are kept.
async fn artifacts_are_kept(store: &ArtifactStore) {
    let (one, two) = (job("one"), job("two"));
    let large = large();
    let mut sink = store.of_job(&one, 1).unwrap();
    give(&mut sink, "/job/a.txt", b"text").await.unwrap();
    give(&mut sink, "/job/empty", b"").await.unwrap();
    give(&mut sink, "/job/large", &large).await.unwrap();
    // Half a file is none.
    sink.begin(Arrival { asked: 0, path: b"/job/torn", mode: 0o644 }).await.unwrap();
    sink.write(b"half").await.unwrap();
    sink.discard().await;
    assert_eq!(store.list(&one, 1).await.unwrap(), [], "nothing is listed before it is sealed");
    let sealed = sink.seal().await.unwrap();
    assert_eq!(store.list(&one, 1).await.unwrap(), sealed);
    assert_eq!(
        sealed.iter().map(|kept| kept.path.as_str()).collect::<Vec<_>>(),
        ["/job/a.txt", "/job/empty", "/job/large"]
    );
    assert_eq!(fetch(store, &one, "/job/a.txt").await.unwrap(), b"text");
    assert_eq!(fetch(store, &one, "/job/empty").await.unwrap(), b"");
    assert!(fetch(store, &one, "/job/large").await.unwrap() == large);
    assert!(matches!(fetch(store, &one, "/job/torn").await, Err(ArtifactError::Missing { .. })));
    assert_eq!(store.list(&one, 2).await.unwrap(), [], "each attempt has its own");
    // The same bytes are kept once for a tenant, and another tenant's are its own.
    let before = objects(store).await.len();
    leave(store, &two, "/job/b.txt", b"text").await;
    assert_eq!(objects(store).await.len(), before + 1, "a list, and no file");
    let stranger = JobKey::new("..", "one");
    leave(store, &stranger, "/job/a.txt", b"text").await;
    assert_eq!(objects(store).await.len(), before + 3);
    assert!(matches!(store.of_job(&JobKey::new("a/b", "c"), 1), Err(ArtifactError::Name(_))));

    // What is still listed stays, however old it is; what is not goes.
    let mut unsealed = store.of_job(&job("three"), 1).unwrap();
    give(&mut unsealed, "/job/c", b"nobody's").await.unwrap();
    let later = SystemTime::now() + 2 * DAY;
    assert_eq!(store.sweep().await.unwrap(), Swept::default(), "it may be listed yet");
    assert_eq!(store.sweep_as_of(later).await.unwrap(), Swept { lists: 0, files: 1, bytes: 8 });
    assert_eq!(fetch(store, &two, "/job/b.txt").await.unwrap(), b"text");
    let swept = store.sweep_as_of(SystemTime::now() + 8 * DAY).await.unwrap();
    assert_eq!((swept.lists, swept.files), (3, 4));
    assert_eq!(objects(store).await, [""; 0]);
}

#[tokio::test]
async fn artifacts_are_kept_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    artifacts_are_kept(&ArtifactStore::open(in_folder(folder.path())).unwrap()).await;
    assert_eq!(
        std::fs::read_dir(folder.path().join("arriving")).unwrap().count(),
        0,
        "nothing half-written stays"
    );
}

#[tokio::test]
async fn artifacts_are_kept_in_s3() {
    let server = S3::start("artifacts").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = |key: &str| Place::S3 {
        bucket: "artifacts".to_owned(),
        prefix: "mayfly".to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(server.url()),
        key_id: S3::KEY_ID.to_owned(),
        key: key.to_owned(),
    };
    let store = ArtifactStore::open(settings(place(S3::KEY), folder.path())).unwrap();
    artifacts_are_kept(&store).await;
    let wrong = ArtifactStore::open(settings(place("wrong"), folder.path())).unwrap();
    let refused = wrong.list(&job("one"), 1).await.unwrap_err();
    assert!(matches!(refused, ArtifactError::Store { .. }), "{refused:?}");
    assert!(!format!("{wrong:?}").contains("wrong"), "a key is never shown");
}

#[tokio::test]
async fn a_tenant_keeps_no_more_than_its_quota() {
    let folder = tempfile::tempdir().unwrap();
    let limited = ArtifactSettings { quota: Some(1000), ..in_folder(folder.path()) };
    let store = ArtifactStore::open(limited).unwrap();
    let mut sink = store.of_job(&job("one"), 1).unwrap();
    give(&mut sink, "/job/a", &[1; 600]).await.unwrap();
    let refused = give(&mut sink, "/job/b", &[2; 600]).await.unwrap_err();
    assert!(refused.to_string().contains("1000 B"), "{refused}");
    sink.discard().await;
    give(&mut sink, "/job/c", &[3; 300]).await.unwrap();
    assert_eq!(sink.seal().await.unwrap().len(), 2);
    let mut stranger = store.of_job(&JobKey::new("other", "one"), 1).unwrap();
    give(&mut stranger, "/job/a", &[1; 600]).await.unwrap();
}

#[tokio::test]
async fn damage_is_seen_when_a_file_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(in_folder(folder.path())).unwrap();
    leave(&store, &job("one"), "/job/a", b"text").await;
    let name = objects(&store).await.into_iter().find(|name| name.contains("sha256")).unwrap();
    std::fs::write(folder.path().join("kept").join(name), b"tex!").unwrap();
    assert!(matches!(fetch(&store, &job("one"), "/job/a").await, Err(ArtifactError::Damaged { .. })));
}

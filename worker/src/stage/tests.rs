//! Staging against scripted agents.

use agent::flow::INITIAL_CREDIT;

use super::*;
use crate::{
    assignment::Content,
    peer::{Peer, pair},
};

fn file(bytes: Vec<u8>) -> StagedFile {
    StagedFile { path: "/job/a".to_owned(), mode: 0o644, content: Content::Bytes(bytes) }
}

async fn staged<T>(
    files: &[StagedFile],
    agent: impl AsyncFnOnce(&mut Peer) -> T,
) -> (Result<(), StageError>, T) {
    let (mut channel, mut peer) = pair();
    let both = async { tokio::join!(stage(&mut channel, files), agent(&mut peer)) };
    timeout(Duration::from_secs(3600), both).await.expect("the story ends")
}

#[tokio::test(start_paused = true)]
async fn a_file_larger_than_the_window_goes_in_whole() {
    let window = INITIAL_CREDIT as usize;
    let (done, ()) = staged(&[file(vec![1; 2 * window + 1])], async |peer| {
        let ToAgent::Put(put) = peer.is_told().await else { panic!("a put comes first") };
        assert_eq!((put.path.as_slice(), put.mode), (b"/job/a".as_slice(), 0o644));
        let (mut received, mut credit) = (0, window);
        while let ToAgent::Data(bytes) = peer.is_told().await {
            received += bytes.len();
            credit -= bytes.len();
            if credit == 0 {
                peer.says(PUT_STREAM, ToHost::Credit(INITIAL_CREDIT)).await;
                credit = window;
            }
        }
        peer.says(PUT_STREAM, ToHost::PutDone(Ok(received as u64))).await;
        assert_eq!(received, 2 * window + 1);
    })
    .await;
    done.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_ends_the_put_in_the_middle() {
    let (done, ()) = staged(&[file(vec![1; 4 * INITIAL_CREDIT as usize])], async |peer| {
        assert!(matches!(peer.is_told().await, ToAgent::Put(_)));
        peer.says(PUT_STREAM, ToHost::PutDone(Err(FileError::Full))).await;
    })
    .await;
    assert!(matches!(done, Err(StageError::Refused { error: FileError::Full, .. })), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_wrote_another_length_or_answers_too_early_or_never_is_lost() {
    let answers = [Some(ToHost::PutDone(Ok(2))), Some(ToHost::Data(vec![1])), None];
    for answer in answers {
        let (done, ()) = staged(&[file(vec![1; 3])], async |peer| {
            while peer.is_told().await != ToAgent::End {}
            match answer {
                Some(answer) => peer.says(PUT_STREAM, answer).await,
                None => tokio::time::sleep(2 * ANSWER).await,
            }
        })
        .await;
        assert!(matches!(done, Err(StageError::Lost(_))), "{done:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_file_that_cannot_be_read_is_named_by_where_it_should_go() {
    let file = StagedFile { content: Content::LocalFile("/nowhere/at/all".into()), ..file(Vec::new()) };
    let (done, ()) = staged(&[file], async |_| {}).await;
    assert!(matches!(done, Err(StageError::Unreadable { path, .. }) if path == "/job/a"));
}

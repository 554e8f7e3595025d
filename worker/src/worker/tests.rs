//! The whole story in a sandbox that a test plays.

use agent::message::{Ending, Entry, FileError, GetDone, Signal, ToAgent, ToHost};
use pool::Usage;

use super::*;
use crate::{
    assignment::{Content, StagedFile},
    cancel::cancellation,
    collect::Discard,
    peer::{FakeSandbox, Peer, assignment, image_config, pair},
    result::{ObservedBy, Outcome},
    traffic::{GET_STREAM, PUT_STREAM},
};

async fn told(
    job: &Assignment,
    usage: Usage,
    survivors: Option<usize>,
    agent: impl AsyncFnOnce(&mut Peer),
) -> JobResult {
    let (channel, peer) = pair();
    told_in(FakeSandbox { channel, usage, survivors, is_halted: false }, peer, job, agent).await
}

async fn told_in(
    mut sandbox: FakeSandbox,
    mut peer: Peer,
    job: &Assignment,
    agent: impl AsyncFnOnce(&mut Peer),
) -> JobResult {
    let (config, settings) = (image_config(), Settings::default());
    let host = async move {
        let mut report = Report::new(job);
        let story = Story { job, config: &config, settings: &settings };
        story.tell(&mut sandbox, Company::default(), &mut Discard, cancellation().1, &mut report).await;
        report.done()
    };
    let agent = async {
        agent(&mut peer).await;
        peer.is_silent().await;
    };
    let both = async { tokio::join!(host, agent).0 };
    timeout(Duration::from_secs(3600), both).await.expect("the story ends")
}

/// Whoever stops a sandbox's process from outside uses up the time of a job that cannot help it.
#[tokio::test(start_paused = true)]
async fn a_job_is_not_blamed_for_a_sandbox_that_somebody_has_stopped() {
    for (is_halted, answers, outcome) in [
        (true, false, Outcome::SandboxLost),
        (false, false, Outcome::TimedOut),
        // Stopped after the job had its time.
        (true, true, Outcome::TimedOut),
    ] {
        let (channel, peer) = pair();
        let sandbox = FakeSandbox { channel, usage: Usage::default(), survivors: None, is_halted };
        let result = told_in(sandbox, peer, &assignment(), async |peer| {
            peer.is_started().await;
            if answers {
                peer.is_signalled(Signal::Term).await;
                peer.ends(Ending::Signal(15)).await;
            }
        })
        .await;
        assert_eq!((result.outcome, result.observed_by), (outcome, ObservedBy::Host));
    }
}

async fn gives_an_artifact(peer: &mut Peer) {
    assert!(matches!(peer.is_told().await, ToAgent::Get(_)));
    let entry = Entry { path: b"/job/out".to_vec(), mode: 0o644, size: 0 };
    for message in
        [ToHost::Entry(entry), ToHost::EntryDone(Ok(())), ToHost::GetDone(GetDone { stopped_by: None })]
    {
        peer.says(GET_STREAM, message).await;
    }
}

#[tokio::test(start_paused = true)]
async fn files_go_in_the_command_runs_and_artifacts_come_out() {
    let mut job = assignment();
    job.artifacts = vec!["/job/out".to_owned()];
    let content = Content::Bytes(b"in".to_vec());
    job.files = vec![StagedFile { path: "/job/in".to_owned(), mode: 0o644, content }];
    let result = told(&job, Usage::default(), Some(0), async |peer| {
        while peer.is_told().await != ToAgent::End {}
        peer.says(PUT_STREAM, ToHost::PutDone(Ok(2))).await;
        peer.is_started().await;
        peer.ends(Ending::Code(0)).await;
        gives_an_artifact(peer).await;
    })
    .await;
    assert_eq!((result.outcome, result.observed_by), (Outcome::Succeeded, ObservedBy::Guest));
    assert_eq!(result.artifacts.len(), 1);
    assert_eq!(result.usage.unwrap().max_rss_bytes, 3 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_timed_out_keeps_its_artifacts() {
    let mut job = assignment();
    job.artifacts = vec!["/job/out".to_owned()];
    let result = told(&job, Usage::default(), Some(0), async |peer| {
        peer.is_started().await;
        peer.is_signalled(Signal::Term).await;
        peer.ends(Ending::Signal(15)).await;
        gives_an_artifact(peer).await;
    })
    .await;
    assert_eq!((result.outcome, result.observed_by), (Outcome::TimedOut, ObservedBy::Host));
    assert_eq!((result.signal, result.artifacts.len()), (Some(15), 1));
    assert_eq!(result.phases.run_us, 10_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_fit_is_the_jobs_bad_input_and_nothing_runs() {
    let mut job = assignment();
    let content = Content::Bytes(b"in".to_vec());
    job.files = vec![StagedFile { path: "/job/in".to_owned(), mode: 0o644, content }];
    let result = told(&job, Usage::default(), Some(0), async |peer| {
        while peer.is_told().await != ToAgent::End {}
        peer.says(PUT_STREAM, ToHost::PutDone(Err(FileError::Full))).await;
        assert!(peer.hears().await.is_none(), "nothing more is asked");
    })
    .await;
    assert_eq!(result.outcome, Outcome::Rejected);
    assert!(result.error.unwrap().what.contains("/job/in"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_the_job_is_gone_while_the_host_still_sees_it_is_not_believed() {
    let mut job = assignment();
    job.artifacts = vec!["/job/out".to_owned()];
    let result = told(&job, Usage::default(), Some(2), async |peer| {
        peer.is_started().await;
        peer.ends(Ending::Code(0)).await;
        peer.is_signalled(Signal::Kill).await;
    })
    .await;
    assert_eq!((result.outcome, result.observed_by), (Outcome::SandboxLost, ObservedBy::Host));
    assert!(result.error.unwrap().why.contains("2 processes"));
    assert!(result.artifacts.is_empty() && result.notes[0].contains("could not be collected"));
}

#[tokio::test(start_paused = true)]
async fn a_kill_for_memory_is_the_hosts_word_whatever_the_agent_says() {
    let usage = Usage { oom_kills: 1, ..Usage::default() };
    let result = told(&assignment(), usage, Some(0), async |peer| {
        peer.is_started().await;
        peer.ends(Ending::Code(1)).await;
    })
    .await;
    assert_eq!((result.outcome, result.observed_by), (Outcome::OutOfMemory, ObservedBy::Host));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_before_its_start_never_starts() {
    let (asking, cancelled) = cancellation();
    asking.politely();
    let (channel, mut peer) = pair();
    let (job, config, settings) = (assignment(), image_config(), Settings::default());
    let mut report = Report::new(&job);
    let mut sandbox = FakeSandbox { channel, usage: Usage::default(), survivors: None, is_halted: false };
    let story = Story { job: &job, config: &config, settings: &settings };
    story.tell(&mut sandbox, Company::default(), &mut Discard, cancelled, &mut report).await;
    drop(sandbox);
    assert_eq!(report.done().outcome, Outcome::Cancelled);
    assert!(peer.hears().await.is_none());
}

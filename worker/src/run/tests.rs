//! The command's run against scripted agents, honest and hostile, on paused time.

use agent::{flow::INITIAL_CREDIT, message::Ending};
use tokio::io::{AsyncWriteExt, duplex};

use super::*;
use crate::{
    cancel::cancellation,
    output::Live,
    peer::{Peer, STDERR, STDOUT, assignment, exit, image_config, pair},
    result::Text,
};

const WINDOW: usize = INITIAL_CREDIT as usize;

struct Script {
    job: Assignment,
    stdin: Option<Reader>,
    live: Option<Live>,
    cancelled: Cancelled,
}

impl Default for Script {
    fn default() -> Self {
        // Nobody holds the other end: such a job cannot be cancelled.
        Self { job: assignment(), stdin: None, live: None, cancelled: cancellation().1 }
    }
}

impl Script {
    /// Runs against what `agent` plays, and returns both ends of the story.
    async fn against<T>(self, agent: impl AsyncFnOnce(&mut Peer) -> T) -> (Ended, T) {
        let (mut channel, mut peer) = pair();
        let orders = Orders::new(&self.job, &image_config(), self.stdin.is_some(), None);
        let outputs = [Output::new(1024 * 1024, self.live), Output::new(1024 * 1024, None)];
        let host = async {
            let ended = run(&mut channel, orders, self.stdin, outputs, None, self.cancelled).await;
            drop(channel);
            ended
        };
        let agent = async {
            let told = agent(&mut peer).await;
            peer.is_silent().await;
            told
        };
        // On paused time an hour costs nothing, and a story that never ends is a failure and not a hang.
        let both = async { tokio::join!(host, agent) };
        tokio::time::timeout(Duration::from_secs(3600), both).await.expect("the story ends")
    }
}

fn stdout(ended: Ended) -> Text {
    ended.stdout.into_text()
}

#[tokio::test(start_paused = true)]
async fn a_command_gets_its_words_and_gives_its_output() {
    let (ended, told) = Script::default()
        .against(async |peer| {
            let told = peer.is_told().await;
            peer.says(STDOUT, ToHost::Data(b"out".to_vec())).await;
            peer.says(STDERR, ToHost::Data(b"err".to_vec())).await;
            peer.ends(Ending::Code(3)).await;
            told
        })
        .await;
    let ToAgent::Run(run) = told else { panic!("{told:?}") };
    assert_eq!(run.argv, [b"tool".to_vec(), b"argument".to_vec()]);
    assert_eq!(run.env, [b"A=job".to_vec(), b"PATH=/bin".to_vec()], "the job's word goes above the image's");
    assert_eq!(run.cwd, b"/job");
    assert_eq!(ended.exit.as_ref().unwrap().ending, Ending::Code(3));
    assert!(ended.stop.is_none() && ended.lost.is_none());
    assert_eq!(ended.stderr.into_text().text, "err");
    assert_eq!(
        ended.stdout.into_text(),
        Text { text: "out".into(), base64: None, bytes: 3, truncated: false }
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_is_given_term_then_kill_and_then_up() {
    let started = Instant::now();
    let (ended, ()) = Script::default()
        .against(async |peer| {
            peer.is_started().await;
            peer.is_signalled(Signal::Term).await;
            assert_eq!(started.elapsed().as_secs(), 10);
            peer.is_signalled(Signal::Kill).await;
            assert_eq!(started.elapsed().as_secs(), 11);
        })
        .await;
    assert_eq!(started.elapsed().as_secs(), 13);
    assert_eq!(ended.stop, Some(Stop::TimedOut));
    assert!(matches!(ended.lost, Some(Lost::Silent(..))));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ends_well_after_term_has_timed_out_all_the_same() {
    let (ended, ()) = Script::default()
        .against(async |peer| {
            peer.is_started().await;
            peer.is_signalled(Signal::Term).await;
            peer.ends(Ending::Code(0)).await;
        })
        .await;
    assert_eq!(ended.stop, Some(Stop::TimedOut));
    assert!(ended.may_be_asked());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_holds_up_neither_the_deadline_nor_more_than_the_window() {
    let (live, mut reader) = duplex(1);
    let started = Instant::now();
    let script = Script { live: Some(Box::new(live)), ..Script::default() };
    let (ended, credit) = script
        .against(async |peer| {
            peer.is_started().await;
            for _ in 0..WINDOW / 1024 {
                peer.says(STDOUT, ToHost::Data(vec![b'x'; 1024])).await;
            }
            let next = peer.hears().await.unwrap().message;
            assert_eq!(next, ToAgent::Signal(Signal::Term), "no credit comes for what nobody took");
            assert_eq!(started.elapsed().as_secs(), 10);
            peer.says(CHANNEL, exit(Ending::Signal(15))).await;
            // The reader wakes up a minute later. That is not the sandbox's silence.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let mut taken = vec![0; WINDOW];
            reader.read_exact(&mut taken).await.unwrap();
            let credit = peer.hears().await.unwrap().message;
            peer.says(STDOUT, ToHost::Data(b"last".to_vec())).await;
            peer.says(STDOUT, ToHost::End).await;
            peer.says(STDERR, ToHost::End).await;
            let mut last = [0; 4];
            reader.read_exact(&mut last).await.unwrap();
            assert_eq!(&last, b"last");
            credit
        })
        .await;
    assert!(matches!(credit, ToAgent::Credit(_)));
    assert!(ended.lost.is_none());
    let text = stdout(ended);
    assert_eq!((text.bytes, text.truncated), (WINDOW as u64 + 4, false));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_does_not_end_the_job() {
    let (live, reader) = duplex(1);
    drop(reader);
    let script = Script { live: Some(Box::new(live)), ..Script::default() };
    let (ended, ()) = script
        .against(async |peer| {
            peer.is_started().await;
            peer.says(STDOUT, ToHost::Data(b"unseen".to_vec())).await;
            peer.ends(Ending::Code(0)).await;
        })
        .await;
    assert!(ended.stop.is_none() && ended.lost.is_none());
    assert_eq!(stdout(ended).text, "unseen");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_breaks_the_rules_is_lost() {
    enum Breach {
        Garbage,
        Flood,
        TwoEnds,
        OutputAfterItsEnd,
        OutputOfNothing,
        Unasked,
        GivesUp,
        HangsUp,
    }
    use Breach::{Flood, Garbage, GivesUp, HangsUp, OutputAfterItsEnd, OutputOfNothing, TwoEnds, Unasked};
    let table = [
        (Garbage, "no frame"),
        (Flood, "flow control"),
        (TwoEnds, "ended twice"),
        (OutputAfterItsEnd, "not open"),
        (OutputOfNothing, "not open"),
        (Unasked, "nothing asked for"),
        (GivesUp, "gave up at the step \"dance\""),
        (HangsUp, "closed its channel"),
    ];
    for (breach, expected) in table {
        let (mut channel, mut peer) = pair();
        let orders = Orders::new(&assignment(), &image_config(), false, None);
        let outputs = [Output::new(10, None), Output::new(10, None)];
        let agent = async move {
            peer.is_started().await;
            match breach {
                Garbage => peer.says_raw(&[0xff; 64]).await,
                Flood => {
                    let chunk = vec![0; WINDOW + 1];
                    peer.says(STDOUT, ToHost::Data(chunk)).await;
                }
                TwoEnds => {
                    peer.says(CHANNEL, exit(Ending::Code(1))).await;
                    peer.says(CHANNEL, exit(Ending::Code(0))).await;
                }
                OutputAfterItsEnd => {
                    peer.says(STDOUT, ToHost::End).await;
                    peer.says(STDOUT, ToHost::Data(b"x".to_vec())).await;
                }
                OutputOfNothing => peer.says(99, ToHost::Data(b"x".to_vec())).await,
                Unasked => peer.says(1, ToHost::PutDone(Ok(1))).await,
                GivesUp => {
                    let fault = agent::message::Fault { step: "dance".to_owned(), errno: 5 };
                    peer.says(CHANNEL, ToHost::Fault(fault)).await;
                }
                HangsUp => return,
            }
            peer.is_silent().await;
        };
        let host = async {
            let ended = run(&mut channel, orders, None, outputs, None, cancellation().1).await;
            drop(channel);
            ended
        };
        let (ended, ()) = tokio::join!(host, agent);
        let lost = ended.lost.expect(expected).to_string();
        assert!(lost.contains(expected), "{expected:?} was expected, {lost:?} was said");
        assert!(ended.stop.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn more_output_than_allowed_is_cut_to_the_byte_and_the_job_killed() {
    let mut script = Script::default();
    script.job.output_limit = 10;
    let (ended, ()) = script
        .against(async |peer| {
            peer.is_started().await;
            peer.says(STDERR, ToHost::Data(b"1234".to_vec())).await;
            peer.says(STDOUT, ToHost::Data(b"123456789".to_vec())).await;
            peer.is_signalled(Signal::Kill).await;
            peer.says(STDOUT, ToHost::Data(b"more".to_vec())).await;
            peer.ends(Ending::Code(0)).await;
        })
        .await;
    assert_eq!(ended.stop, Some(Stop::OutputLimit));
    let text = stdout(ended);
    assert_eq!((text.text.as_str(), text.bytes, text.truncated), ("123456", 13, true));
}

#[tokio::test(start_paused = true)]
async fn output_that_never_ends_is_given_up_and_marked_as_cut() {
    let mut after_exit = None;
    let (ended, ()) = Script::default()
        .against(async |peer| {
            peer.is_started().await;
            peer.says(STDOUT, ToHost::Data(b"some".to_vec())).await;
            peer.says(CHANNEL, exit(Ending::Code(0))).await;
            after_exit = Some(Instant::now());
            // Dribbling buys no more time than silence.
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(900)).await;
                peer.says(STDOUT, ToHost::Data(b".".to_vec())).await;
                if after_exit.unwrap().elapsed() > Duration::from_secs(10) {
                    break;
                }
            }
        })
        .await;
    assert!(ended.lost.is_none() && ended.exit.is_some());
    let text = stdout(ended);
    assert!(text.truncated && text.bytes <= 4 + 4, "{text:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_is_cancelled_politely_and_then_at_once() {
    let (asking, cancelled) = cancellation();
    let script = Script { cancelled, ..Script::default() };
    let started = Instant::now();
    let (ended, ()) = script
        .against(async |peer| {
            peer.is_started().await;
            asking.politely();
            peer.is_signalled(Signal::Term).await;
            asking.at_once();
        })
        .await;
    assert_eq!(started.elapsed(), Duration::ZERO, "nothing was waited for");
    assert_eq!(ended.stop, Some(Stop::Cancelled));
    assert!(!ended.may_be_asked());
}

#[tokio::test(start_paused = true)]
async fn who_cancels_does_not_wait_for_a_slow_reader_either() {
    let (live, _reader) = duplex(1);
    let (asking, cancelled) = cancellation();
    let script = Script { live: Some(Box::new(live)), cancelled, ..Script::default() };
    let (ended, ()) = script
        .against(async |peer| {
            peer.is_started().await;
            peer.says(STDOUT, ToHost::Data(b"unread".to_vec())).await;
            peer.ends(Ending::Code(7)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            asking.politely();
        })
        .await;
    assert_eq!(ended.stop, None, "the job had ended before");
    assert_eq!(stdout(ended).text, "unread");
}

#[tokio::test(start_paused = true)]
async fn stdin_waits_for_credit_and_goes_on_when_it_comes() {
    let input = vec![7; WINDOW + 1000];
    let script = Script { stdin: Some(Box::new(std::io::Cursor::new(input))), ..Script::default() };
    let (ended, received) = script
        .against(async |peer| {
            peer.is_started().await;
            let mut received = 0;
            loop {
                match peer.is_told().await {
                    ToAgent::Data(bytes) => received += bytes.len(),
                    ToAgent::End => break,
                    other => panic!("{other:?}"),
                }
                if received == WINDOW {
                    peer.says(RUN_STREAM, ToHost::Credit(WINDOW as u32)).await;
                }
            }
            peer.ends(Ending::Code(0)).await;
            received
        })
        .await;
    assert_eq!(received, WINDOW + 1000);
    assert!(ended.stop.is_none());
}

#[tokio::test(start_paused = true)]
async fn stdin_that_the_job_closed_is_read_no_further() {
    let (mut typist, terminal) = duplex(1024);
    let script = Script { stdin: Some(Box::new(terminal)), ..Script::default() };
    let (ended, ()) = script
        .against(async |peer| {
            peer.is_started().await;
            peer.says(RUN_STREAM, ToHost::Reset).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(typist.write_all(b"unwanted").await.is_err(), "the reader is gone");
            peer.ends(Ending::Code(0)).await;
        })
        .await;
    assert!(ended.lost.is_none() && ended.exit.is_some());
}

//! The other end of a channel, as a test plays it: an agent that says exactly what the test wants.

use std::{
    collections::BTreeMap,
    pin::pin,
    task::{Context, Poll, Waker},
};

use agent::{
    codec::{Decoder, Frame, StreamId},
    message::{Ending, Exit, Signal, ToAgent, ToHost},
};
use images::ImageConfig;
use pool::{Channel, Limits, Tier, Usage, Want};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{
    assignment::Assignment,
    sandbox::Sandbox,
    traffic::{CHANNEL, RUN_STREAM},
};

pub(crate) const STDOUT: StreamId = RUN_STREAM + 1;
pub(crate) const STDERR: StreamId = RUN_STREAM + 2;

/// The agent's end.
pub(crate) struct Peer {
    stream: DuplexStream,
    decoder: Decoder,
}

/// A channel and the peer at its other end.
pub(crate) fn pair() -> (Channel, Peer) {
    let (ours, theirs) = tokio::io::duplex(4 * 1024 * 1024);
    let (reader, writer) = tokio::io::split(ours);
    (Channel::new(reader, writer), Peer { stream: theirs, decoder: Decoder::default() })
}

impl Peer {
    /// The next frame of the host. `None` once the host has hung up.
    pub(crate) async fn hears(&mut self) -> Option<Frame<ToAgent>> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the host sends frames") {
                return Some(frame);
            }
            let mut bytes = vec![0; 64 * 1024];
            match self.stream.read(&mut bytes).await.unwrap_or(0) {
                0 => return None,
                read => self.decoder.feed(&bytes[..read]),
            }
        }
    }

    /// A frame that has come already.
    pub(crate) fn hears_at_once(&mut self) -> Option<Frame<ToAgent>> {
        match pin!(self.hears()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        }
    }

    /// The next frame that is no credit.
    pub(crate) async fn is_told(&mut self) -> ToAgent {
        loop {
            match self.hears().await.expect("the host is there").message {
                ToAgent::Credit(_) => {}
                message => return message,
            }
        }
    }

    pub(crate) async fn is_started(&mut self) {
        assert!(matches!(self.is_told().await, ToAgent::Run(_)));
    }

    pub(crate) async fn is_signalled(&mut self, signal: Signal) {
        assert_eq!(self.is_told().await, ToAgent::Signal(signal));
    }

    pub(crate) async fn says(&mut self, stream: StreamId, message: ToHost) {
        self.says_raw(&Frame { stream, message }.encode().expect("tests send frames")).await;
    }

    pub(crate) async fn says_raw(&mut self, bytes: &[u8]) {
        // A host that hung up already is what some tests are about.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The command ends, and its output with it.
    pub(crate) async fn ends(&mut self, ending: Ending) {
        self.says(CHANNEL, exit(ending)).await;
        self.says(STDOUT, ToHost::End).await;
        self.says(STDERR, ToHost::End).await;
    }

    /// Waits until the host hangs up, and answers nothing.
    pub(crate) async fn is_silent(&mut self) {
        while self.hears().await.is_some() {}
    }
}

pub(crate) fn exit(ending: Ending) -> ToHost {
    ToHost::Exit(Exit { ending, user_us: 1, system_us: 2, max_rss_kib: 3, stragglers: 0, memory: None })
}

/// A sandbox without a kernel behind it.
pub(crate) struct FakeSandbox {
    pub(crate) channel: Channel,
    pub(crate) usage: Usage,
    pub(crate) survivors: Option<usize>,
    pub(crate) is_halted: bool,
}

impl Sandbox for FakeSandbox {
    fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn survivors(&self) -> Option<usize> {
        self.survivors
    }

    fn is_halted(&self) -> bool {
        self.is_halted
    }
}

pub(crate) fn image_config() -> ImageConfig {
    ImageConfig {
        user: 1000,
        group: 1000,
        workdir: "/job".to_owned(),
        env: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned()), ("A".to_owned(), "image".to_owned())]),
        root: images::RootMode::ReadOnly,
    }
}

pub(crate) fn assignment() -> Assignment {
    use std::time::Duration;

    Assignment {
        id: "job".to_owned(),
        tenant: "tenant".to_owned(),
        attempt: 1,
        queued: Duration::ZERO,
        want: Want {
            tier: Tier::Chroot,
            image: "base".parse().unwrap(),
            limits: Limits::default(),
            owner: None,
        },
        command: vec!["tool".to_owned(), "argument".to_owned()],
        env: BTreeMap::from([("A".to_owned(), "job".to_owned())]),
        workdir: None,
        stdin: None,
        files: Vec::new(),
        egress: None,
        timeout: Duration::from_secs(10),
        grace: Duration::from_secs(1),
        output_limit: 1024 * 1024,
        artifacts: Vec::new(),
    }
}

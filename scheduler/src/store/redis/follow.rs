//! Reading what a job writes while it runs, from any host.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use redis::{Cmd, cmd, streams::StreamReadReply};

use super::{RedisStore, RedisStoreError, link::Link, output::Stream};
use crate::{
    key::JobKey,
    store::{JobState, Store, StoreError},
};

/// How long Redis holds a question that has no answer yet. Then the job's state is looked at.
const BLOCK: Duration = Duration::from_secs(1);
/// The same once the attempt has ended: its result comes any moment.
const BLOCK_AT_END: Duration = Duration::from_millis(50);
/// Pieces in one answer.
const AT_ONCE: usize = 128;

/// Something of a job's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// What follows is of this start of the job, from 1.
    Attempt(u32),
    /// Some output.
    Output(Stream, Vec<u8>),
    /// So many bytes are not shown: they came too long ago, or too fast.
    Missing(Stream, u64),
}

/// Follows one job until it has its result.
#[derive(Debug)]
pub struct Follow {
    store: RedisStore,
    link: Arc<Link>,
    job: JobKey,
    read: String,
    attempt: u32,
    /// How far stdout and stderr have been said.
    reached: [u64; 2],
    ended: bool,
    said: VecDeque<Said>,
}

impl RedisStore {
    /// Follows a job from the oldest output that is kept.
    #[must_use]
    pub fn follow(&self, job: &JobKey) -> Follow {
        let settings = &self.shared.settings;
        // A question that blocks gets a connection of its own: everything behind it would wait too.
        let patience = settings.patience + BLOCK;
        let link = Link::new(
            self.shared.client.clone(),
            settings.patience,
            Some(patience),
            self.shared.outlook.clone(),
        );
        Follow {
            store: self.clone(),
            link,
            job: job.clone(),
            read: "0".to_owned(),
            attempt: 0,
            reached: [0; 2],
            ended: false,
            said: VecDeque::new(),
        }
    }
}

impl Follow {
    /// What comes next; `None`: the job has its result, or nobody knows it. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Said>, StoreError> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Ok(Some(said));
            }
            if self.look(true).await? {
                continue;
            }
            let state = self.store.state(&self.job).await?;
            // The last of it may have come between the two questions.
            if matches!(state, None | Some(JobState::Over { .. })) && !self.look(false).await? {
                return Ok(None);
            }
        }
    }

    /// Whether anything came.
    async fn look(&mut self, wait: bool) -> Result<bool, RedisStoreError> {
        let reply: Option<StreamReadReply> = self.link.ask(&self.question(wait)).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        let mut any = false;
        for entry in entries {
            any = true;
            self.ended = false;
            if let Some(attempt) = entry.get("attempt") {
                self.turn_to(attempt);
            }
            for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
                if let (Some(at), Some(bytes)) = (entry.get("at"), entry.get(stream.code())) {
                    self.output(index, stream, at, bytes);
                }
            }
            self.ended |= entry.map.contains_key("end");
            self.read = entry.id;
        }
        Ok(any)
    }

    fn question(&self, wait: bool) -> Cmd {
        let mut ask = cmd("XREAD");
        ask.arg("COUNT").arg(AT_ONCE);
        if wait {
            let block = if self.ended { BLOCK_AT_END } else { BLOCK };
            ask.arg("BLOCK").arg(block.as_millis() as u64);
        }
        ask.arg("STREAMS").arg(self.store.shared.keys.output(&self.job)).arg(&self.read);
        ask
    }

    fn turn_to(&mut self, attempt: u32) {
        if attempt != self.attempt {
            self.attempt = attempt;
            self.reached = [0; 2];
            self.said.push_back(Said::Attempt(attempt));
        }
    }

    fn output(&mut self, index: usize, stream: Stream, at: u64, mut bytes: Vec<u8>) {
        let reached = &mut self.reached[index];
        if at > *reached {
            self.said.push_back(Said::Missing(stream, at - *reached));
        }
        // A piece that came twice is said once.
        let known = usize::try_from(reached.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        bytes.drain(..known);
        *reached = (*reached).max(at + (known + bytes.len()) as u64);
        if !bytes.is_empty() {
            self.said.push_back(Said::Output(stream, bytes));
        }
    }
}

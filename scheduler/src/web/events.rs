//! Server-sent events: the moment, again and again, and what one job writes.
//!
//! Whoever reads slowly holds up nobody: an event is made when the one before it has been taken, and what a job wrote
//! meanwhile is the store's to keep. How many look on is bounded, and so are an event and all that one is told of a job.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt, try_unfold, unfold};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    key::JobKey,
    live::{JobCard, Look, text},
    store::{
        JobState, StoreError,
        redis::{Follow, Said, Stream as Which},
    },
};

/// How often the moment is told.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes of a job's output that one who looks on is told.
const OUTPUT: usize = 4 * 1024 * 1024;

type Told = Result<Frame<Bytes>, Infallible>;

fn event(name: &str, data: &str) -> Frame<Bytes> {
    Frame::data(format!("event: {name}\ndata: {data}\n\n").into())
}

fn ticks() -> Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The moment, each second, for as long as the process lives.
pub(super) fn moments(look: Look, place: OwnedSemaphorePermit) -> impl Stream<Item = Told> + Send {
    unfold((look, ticks(), place), |(look, mut ticks, place)| async {
        ticks.tick().await;
        // It is JSON in one line.
        let moment = look.moment()?;
        Some((Ok(event("moment", &moment)), (look, ticks, place)))
    })
}

/// One job, until it has its result.
pub(super) fn job(look: Look, job: JobKey, place: OwnedSemaphorePermit) -> impl Stream<Item = Told> + Send {
    let follow = look.follow(&job).map(output);
    let onlooker = Onlooker {
        look,
        job,
        follow,
        streams: Default::default(),
        told: 0,
        last: String::new(),
        ready: VecDeque::new(),
        ticks: ticks(),
        over: false,
        _place: place,
    };
    unfold(onlooker, |mut onlooker| async {
        let told = onlooker.next().await?;
        Some((Ok(told), onlooker))
    })
}

/// What it writes. A question under way outlives a tick: asked anew each second, a slow one would never be answered.
fn output(follow: Follow) -> BoxStream<'static, Result<Said, StoreError>> {
    try_unfold(follow, |mut follow| async { Ok(follow.next().await?.map(|said| (said, follow))) }).boxed()
}

/// Somebody who looks at one job.
struct Onlooker {
    look: Look,
    job: JobKey,
    /// `None`: its output cannot be followed, or there is no more of it.
    follow: Option<BoxStream<'static, Result<Said, StoreError>>>,
    streams: [text::Stream; 2],
    /// Bytes of its output so far.
    told: usize,
    /// What was said of it last.
    last: String,
    ready: VecDeque<(&'static str, String)>,
    ticks: Interval,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Onlooker {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        loop {
            if let Some((name, data)) = self.ready.pop_front() {
                return Some(event(name, &data));
            }
            if self.over {
                return None;
            }
            let follow = async {
                match &mut self.follow {
                    Some(follow) => follow.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.ticks.tick() => self.look_at_it().await,
                said = follow => match said {
                    Some(Ok(said)) => self.hear(said),
                    // Its result is next, by the next tick.
                    None => self.follow = None,
                    Some(Err(error)) => {
                        self.say("trouble", &json!(text::line(&worker::causes(&error), 300)));
                        self.follow = None;
                    }
                },
            }
        }
    }

    fn say(&mut self, name: &'static str, data: &Value) {
        self.ready.push_back((name, data.to_string()));
    }

    async fn look_at_it(&mut self) {
        let card: Result<Option<JobCard>, String> = self.look.job(self.job.clone()).await;
        let data = match &card {
            Ok(card) => serde_json::to_string(card).unwrap_or_default(),
            Err(why) => return self.say("trouble", &json!(why)),
        };
        if data != self.last {
            self.last.clone_from(&data);
            self.ready.push_back(("job", data));
        }
        let is_over = matches!(&card, Ok(Some(JobCard { state: JobState::Over { .. }, .. })));
        if is_over && self.follow.is_none() {
            self.say("end", &Value::Null);
            self.over = true;
        }
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Attempt(number) => {
                self.streams = Default::default();
                self.say("attempt", &json!(number));
            }
            Said::Missing(stream, bytes) => {
                self.say("missing", &json!({ "stream": name(stream), "bytes": bytes }));
            }
            Said::Output(..) if self.told >= OUTPUT => {}
            Said::Output(stream, bytes) => {
                self.told += bytes.len();
                let index = usize::from(stream == Which::Stderr);
                let text = self.streams[index].push(&bytes);
                self.say("output", &json!({ "stream": name(stream), "text": text }));
                if self.told >= OUTPUT {
                    self.say("enough", &json!(OUTPUT));
                }
            }
        }
    }
}

fn name(stream: Which) -> &'static str {
    match stream {
        Which::Stdout => "stdout",
        Which::Stderr => "stderr",
    }
}

/// Takes a place among those who look on, if there is one.
pub(super) fn place(places: &Arc<tokio::sync::Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(places).try_acquire_owned().ok()
}

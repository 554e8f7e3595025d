//! Learns that there is something to pull: by the bell, and by looking.
//!
//! The bell tells at once and which lane, but not everything rings: a job that the broker takes back from a host that
//! died does not. So each lane is looked at now and then; with many lanes, less often.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::time::sleep;
use tokio_stream::StreamExt;
use worker::causes;

use super::{
    intake::{Intake, RINGS},
    state::State,
};
use crate::broker::{
    declare::depth,
    link::{Link, Session},
};

/// No lane is looked at more often.
const SHORTEST_ROUND: Duration = Duration::from_secs(1);
/// What one look costs in time: so many lanes make the round longer.
const EACH: Duration = Duration::from_millis(10);
/// The broker gives a ring that is held too long to nobody else, but ends the channel. While all slots are busy one is
/// let through in this time.
const RING_HELD: Duration = Duration::from_secs(60);

/// Attends one session after the other.
pub(super) async fn attend(state: Arc<State>, intake: Arc<Link<Intake>>) {
    loop {
        let session = intake.session().await;
        let ended = tokio::select! {
            () = session.ended() => continue,
            ended = hear(&state, &session) => ended,
            ended = look(&state, &session) => ended,
        };
        session.fail(ended);
    }
}

/// Hears the bell, until it says why it cannot any more.
async fn hear(state: &State, session: &Session<Intake>) -> String {
    let bell = &session.parts.bell;
    let rings = bell.rings.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut rings) = rings else { return "nobody hears the bell".to_owned() };
    // Some rings were lost, and nobody knows which. Looking at all lanes waits until there is time.
    let mut lost = false;
    loop {
        let ring = tokio::select! {
            ring = rings.next() => ring,
            () = state.idle.notified(), if lost => {
                lost = false;
                state.sweep.notify_one();
                continue;
            }
        };
        let ring = match ring {
            Some(Ok(ring)) => ring,
            Some(Err(error)) => return causes(&error),
            // Who cancels a consumer, the broker or its operator, says so by ending the stream.
            None => return "the broker took the bell away".to_owned(),
        };
        state.tally.rings.fetch_add(1, Ordering::Relaxed);
        came(state, ring.exchange.as_str(), ring.routing_key.as_str());
        let busy = tokio::select! {
            () = state.idle.notified() => false,
            () = state.busy.notified() => true,
            () = sleep(RING_HELD) => false,
        };
        // What rang meanwhile. Only then is this ring done with, so that nothing rings unheard in between.
        loop {
            let get = bell.channel.basic_get(bell.queue.as_str().into(), BasicGetOptions { no_ack: true });
            let missed = match session.connected.in_time("hearing the bell", get).await {
                Ok(Some(missed)) => missed,
                Ok(None) => break,
                Err(error) => return causes(&error),
            };
            lost |= missed.message_count + 1 >= RINGS;
            came(state, missed.exchange.as_str(), missed.routing_key.as_str());
        }
        if lost && !busy {
            lost = false;
            state.sweep.notify_one();
        }
        if !matches!(ring.acker.ack(BasicAckOptions::default()).await, Ok(true)) {
            return "the bell's channel was closed".to_owned();
        }
    }
}

fn came(state: &State, exchange: &str, key: &str) {
    if let Some(lane) = state.rung(exchange, key) {
        state.fair().came(lane);
        state.changed.notify_one();
    }
}

/// Looks how much waits in each lane, around and around, until it says why it cannot any more.
async fn look(state: &State, session: &Session<Intake>) -> String {
    let pause = (SHORTEST_ROUND / state.lanes() as u32).max(EACH);
    let mut at_once = true;
    'round: loop {
        for lane in 0..state.lanes() {
            let version = state.fair().version(lane);
            let depth = depth(&session.parts.looking, state.queue_of(lane));
            match session.connected.in_time("looking how much waits", depth).await {
                Ok(waiting) => state.fair().counted(lane, version, waiting),
                Err(error) => return causes(&error),
            }
            if state.fair().waiting_in(lane) > 0 {
                state.changed.notify_one();
            }
            if !at_once {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = state.sweep.notified() => {
                        at_once = true;
                        continue 'round;
                    }
                }
            }
        }
        if at_once {
            state.swept.send_modify(|times| *times += 1);
            state.changed.notify_one();
        }
        at_once = false;
    }
}

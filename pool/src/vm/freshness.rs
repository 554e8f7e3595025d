//! The gate between a machine that goes on from another's memory and one that may be called clean.
//!
//! All that begin in the same memory would draw the same random numbers, say the same names and live in the same second. The
//! agent is told who it is, and what it answers is checked: the nonce, the name of its boot, and the time by its clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::message::{Bounds, Resume, Resumed, ToAgent, ToHost};
use thiserror::Error;

use super::hex;
use crate::{
    channel::{Channel, ChannelError},
    failpoint,
    id::GenerationId,
};

/// How far a machine's clock may be from the host's when a job begins.
const SKEW: Duration = Duration::from_millis(100);

/// By how much a test has a clock be wrong.
const HOUR: Duration = Duration::from_secs(3600);

/// How often a clock is set before it is given up: on a host that is busy for so long nothing keeps time.
const TRIES: u32 = 5;

/// The machine did not become somebody new.
#[derive(Debug, Error)]
pub enum Stale {
    /// The stream failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A step failed inside.
    #[error("it cannot {step}: {error}")]
    Fault {
        /// Which.
        step: String,
        /// Why.
        error: std::io::Error,
    },
    /// It said something else, or answered another life's question.
    #[error("it did not answer what it was asked")]
    Unexpected,
    /// Its programs read another's name.
    #[error("it calls its boot {0}, which is not what it was given")]
    Name(String),
    /// Its clock is wrong.
    #[error("its clock is {0:?} away from the host's")]
    Clock(Duration),
}

/// Makes a machine somebody new and checks that it is.
pub(super) async fn renew(
    channel: &mut Channel,
    generation: GenerationId,
    bounds: Bounds,
) -> Result<(), Stale> {
    if failpoint::is_off("vm-gate") {
        return Ok(());
    }
    renew_as_of(channel, generation, bounds, Duration::ZERO).await
}

/// The same in a machine in which others are to begin. Nobody waits for it to be old: a test has its clock be wrong.
pub(super) async fn renew_first(
    channel: &mut Channel,
    generation: GenerationId,
    bounds: Bounds,
) -> Result<(), Stale> {
    let ago = if failpoint::is_off("vm-template-clock") { HOUR } else { Duration::ZERO };
    renew_as_of(channel, generation, bounds, ago).await
}

async fn renew_as_of(
    channel: &mut Channel,
    generation: GenerationId,
    bounds: Bounds,
    ago: Duration,
) -> Result<(), Stale> {
    let mut skew = Duration::ZERO;
    for _ in 0..TRIES {
        let mut resume = somebody_new(generation, bounds);
        resume.time -= ago.as_nanos() as u64;
        channel.send(0, ToAgent::Resume(resume.clone()))?;
        let resumed = match channel.next().await?.message {
            ToHost::Resumed(resumed) => resumed,
            ToHost::Fault(fault) => {
                let error = std::io::Error::from_raw_os_error(fault.errno);
                return Err(Stale::Fault { step: fault.step, error });
            }
            _ => return Err(Stale::Unexpected),
        };
        skew = check(&resume, &resumed, nanoseconds() - ago.as_nanos() as u64)?;
        if skew < SKEW {
            return Ok(());
        }
    }
    Err(Stale::Clock(skew))
}

/// Checks an answer and gives how far its clock is away.
fn check(resume: &Resume, resumed: &Resumed, now: u64) -> Result<Duration, Stale> {
    if resumed.nonce != resume.nonce {
        return Err(Stale::Unexpected);
    }
    if resumed.boot_id != resume.boot_id {
        return Err(Stale::Name(resumed.boot_id.chars().take(64).collect()));
    }
    Ok(Duration::from_nanos(resumed.time.abs_diff(now)))
}

fn somebody_new(generation: GenerationId, bounds: Bounds) -> Resume {
    let mut random = [0; 96];
    getrandom::fill(&mut random).expect("the kernel gives random numbers");
    let part = |from: usize, length: usize| &random[from..from + length];
    let fixed = |from: usize| part(from, 32).try_into().expect("32 of 96 bytes");
    let name = hex(part(64, 16));
    let mut boot: [u8; 16] = part(80, 16).try_into().expect("16 of 96 bytes");
    // A random UUID, see RFC 9562.
    boot[6] = boot[6] & 0x0f | 0x40;
    boot[8] = boot[8] & 0x3f | 0x80;
    let boot = hex(&boot);
    Resume {
        nonce: fixed(0),
        entropy: fixed(32),
        time: nanoseconds(),
        hostname: format!("mayfly-{generation}").chars().take(64).collect(),
        machine_id: name,
        boot_id: [&boot[..8], &boot[8..12], &boot[12..16], &boot[16..20], &boot[20..]].join("-"),
        bounds,
    }
}

fn nanoseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    fn resume() -> Resume {
        somebody_new(Id::random(), Bounds { memory: 1, pids: 1, disk: 1, inodes: 1 })
    }

    fn answer(resume: &Resume) -> Resumed {
        Resumed { nonce: resume.nonce, boot_id: resume.boot_id.clone(), time: resume.time }
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let (asked, other) = (resume(), resume());
        let of_another_life = Resumed { nonce: other.nonce, ..answer(&asked) };
        assert!(matches!(check(&asked, &of_another_life, asked.time), Err(Stale::Unexpected)));
        let unnamed = Resumed { boot_id: other.boot_id, ..answer(&asked) };
        assert!(matches!(check(&asked, &unnamed, asked.time), Err(Stale::Name(_))));
    }

    #[test]
    fn a_clock_that_lies_an_hour_back_is_seen() {
        let asked = resume();
        let hour = Duration::from_secs(3600);
        let late = Resumed { time: asked.time - hour.as_nanos() as u64, ..answer(&asked) };
        assert_eq!(check(&asked, &late, asked.time).unwrap(), hour);
        assert_eq!(check(&asked, &answer(&asked), asked.time).unwrap(), Duration::ZERO);
    }

    #[test]
    fn nobody_is_given_the_same_twice() {
        let (one, other) = (resume(), resume());
        assert_ne!(one.entropy, other.entropy);
        assert_ne!(one.boot_id, other.boot_id);
        assert_ne!(one.machine_id, other.machine_id);
        assert_ne!(one.hostname, other.hostname);
        assert_eq!((one.boot_id.len(), &one.boot_id[14..15]), (36, "4"));
    }
}

//! What became of the latest jobs, in constant room: for whoever looks on, and for nothing that decides.

use std::{
    collections::{HashMap, VecDeque},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use pool::{Source, Tier};
use serde::{Deserialize, Serialize};
use worker::{JobResult, Outcome, Phases};

use crate::{key::JobKey, live::text};

/// Seconds of which is known how many jobs ended.
pub(crate) const SECONDS: usize = 60;
/// Jobs of which is known how they ended.
const ENDED: usize = 30;
/// The same of those that failed.
const FAILED: usize = 15;
/// Jobs whose times are looked at.
const TIMES: usize = 512;
/// Tenants that are told apart. They are the configuration's, or a batch's one.
const TENANTS: usize = 1024;
/// Letters of a reason.
const REASON: usize = 240;

/// A job that has its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedJob {
    /// Which.
    pub job: JobKey,
    /// How it ended.
    pub outcome: Outcome,
    /// How its sandbox was isolated, if it had one.
    pub tier: Option<Tier>,
    /// Whether that waited for it.
    pub source: Option<Source>,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How long it had waited in its queue.
    pub queued_us: u64,
    /// How long it took from there.
    pub took_us: u64,
    /// What went wrong.
    pub why: Option<String>,
}

/// How long one phase took lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseNow {
    /// Which; `queued` is the wait before the first.
    pub phase: String,
    /// In how many jobs.
    pub jobs: usize,
    /// Half of them took no longer.
    pub p50_us: u64,
    /// 95 of 100 took no longer.
    pub p95_us: u64,
}

/// What a tenant's jobs came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OfTenant {
    pub(crate) ended: u64,
    pub(crate) failed: u64,
}

/// A phase's name and where its time is.
type PhaseOf = (&'static str, fn(&Phases) -> u64);

/// The latest jobs.
#[derive(Debug)]
pub(crate) struct Recent {
    began: Instant,
    /// Jobs that ended in each second, by its number since `began`; the newest last.
    seconds: VecDeque<(u64, u32)>,
    ended: VecDeque<EndedJob>,
    failed: VecDeque<EndedJob>,
    times: VecDeque<Phases>,
    tenants: HashMap<String, OfTenant>,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            seconds: VecDeque::new(),
            ended: VecDeque::new(),
            failed: VecDeque::new(),
            times: VecDeque::new(),
            tenants: HashMap::new(),
        }
    }
}

/// Whether whoever runs the host wants to know why.
fn is_failure(outcome: Outcome) -> bool {
    !matches!(outcome, Outcome::Succeeded | Outcome::Cancelled)
}

impl Recent {
    pub(crate) fn note(&mut self, result: &JobResult) {
        let second = self.began.elapsed().as_secs();
        match self.seconds.back_mut() {
            Some((last, count)) if *last == second => *count += 1,
            _ => push(&mut self.seconds, (second, 1), SECONDS),
        }
        let failed = is_failure(result.outcome);
        if self.tenants.len() < TENANTS || self.tenants.contains_key(&result.tenant) {
            let tenant = self.tenants.entry(result.tenant.clone()).or_default();
            tenant.ended += 1;
            tenant.failed += u64::from(failed);
        }
        let Phases { queued_us, checkout_us, stage_us, run_us, collect_us, clean_us } = result.phases;
        let ended = EndedJob {
            job: JobKey::new(text::line(&result.tenant, 128), text::line(&result.id, 128)),
            outcome: result.outcome,
            tier: result.tier,
            source: result.source,
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
            queued_us,
            took_us: checkout_us + stage_us + run_us + collect_us + clean_us,
            why: why(result),
        };
        if failed {
            push(&mut self.failed, ended.clone(), FAILED);
        }
        push(&mut self.ended, ended, ENDED);
        push(&mut self.times, result.phases, TIMES);
    }

    /// How many jobs ended in each of the last seconds, this one last.
    pub(crate) fn per_second(&self) -> Vec<u32> {
        let mut counts = vec![0; SECONDS];
        let now = self.began.elapsed().as_secs();
        for (second, count) in &self.seconds {
            if let Some(place) = (SECONDS as u64 - 1).checked_sub(now - second) {
                counts[place as usize] = *count;
            }
        }
        counts
    }

    /// The latest jobs, and the latest that failed; the newest first.
    pub(crate) fn ended(&self) -> [Vec<EndedJob>; 2] {
        [&self.ended, &self.failed].map(|jobs| jobs.iter().rev().cloned().collect())
    }

    pub(crate) fn tenants(&self) -> &HashMap<String, OfTenant> {
        &self.tenants
    }

    /// How long each phase took in those of the latest jobs that reached it.
    pub(crate) fn phases(&self) -> Vec<PhaseNow> {
        let of: [PhaseOf; 6] = [
            ("queued", |it| it.queued_us),
            ("checkout", |it| it.checkout_us),
            ("stage", |it| it.stage_us),
            ("run", |it| it.run_us),
            ("collect", |it| it.collect_us),
            ("clean", |it| it.clean_us),
        ];
        let times = of.into_iter().map(|(phase, time)| {
            let mut times: Vec<u64> = self.times.iter().map(time).filter(|us| *us > 0).collect();
            times.sort_unstable();
            let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
            PhaseNow { phase: phase.to_owned(), jobs: times.len(), p50_us: at(50), p95_us: at(95) }
        });
        times.filter(|phase| phase.jobs > 0).collect()
    }
}

/// What went wrong, in one line: what the host says of it, else how the command ended.
fn why(result: &JobResult) -> Option<String> {
    if !is_failure(result.outcome) {
        return None;
    }
    let said = match (&result.error, result.exit_code, result.signal) {
        (Some(error), ..) => format!("{}: {}", error.what, error.why),
        (None, Some(code), _) => format!("exit code {code}"),
        (None, None, Some(signal)) => format!("ended by signal {signal}"),
        _ => return None,
    };
    Some(text::line(&said, REASON))
}

fn push<T>(queue: &mut VecDeque<T>, new: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(new);
}

#[cfg(test)]
mod tests {
    use worker::ErrorReport;

    use super::*;

    fn result(number: u64, outcome: Outcome) -> JobResult {
        let report = ErrorReport::new("it\u{1b}[2J", "why", "");
        let mut result =
            JobResult::never_started(&number.to_string(), &format!("t{}", number % 2), outcome, report);
        result.phases.run_us = number;
        result
    }

    #[test]
    fn the_latest_are_told_newest_first_and_what_is_kept_is_bounded() {
        let mut recent = Recent::default();
        for number in 0..2000 {
            let outcome = if number % 10 == 0 { Outcome::Failed } else { Outcome::Succeeded };
            recent.note(&result(number, outcome));
        }
        let [ended, failed] = recent.ended();
        assert_eq!((ended.len(), failed.len(), recent.times.len()), (ENDED, FAILED, TIMES));
        assert_eq!((ended[0].job.id.as_str(), failed[0].job.id.as_str()), ("1999", "1990"));
        assert_eq!(failed[0].why.as_deref(), Some("it^[[2J: why"), "no control character gets out");
        assert_eq!(recent.per_second().iter().sum::<u32>(), 2000);
        assert_eq!(recent.tenants()["t0"].ended, 1000);
        assert_eq!((recent.tenants()["t0"].failed, recent.tenants()["t1"].failed), (200, 0));
        let phases = recent.phases();
        assert_eq!(phases.len(), 1, "phases that none reached are left out");
        assert_eq!((phases[0].jobs, phases[0].p50_us), (TIMES, 2000 - TIMES as u64 / 2));
    }
}

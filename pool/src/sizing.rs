//! How many clean sandboxes should wait: a formula over measured demand.
//!
//! ```text
//! target = clamp(⌈λ · R · 1.5⌉ + 1, idle_count, expected)      while jobs come, or
//!          idle_count                                          when none has come for idle_time
//! ```
//!
//! λ is the arrival rate (jobs a second), R the refill horizon: the time from a checkout to the moment when its
//! replacement is clean, as measured. What is asked for during one horizon must already wait; half as much
//! again covers chance. `expected` is what the caller knows to be still to come (a batch's remaining jobs, a
//! queue's backlog), or no bound. λ is the larger of two averages, over 0.25 s and over 2 s: a step up is seen
//! at once, a pause does not empty the pool.

use std::time::Duration;

use tokio::time::Instant;

/// Half again what one refill horizon is expected to ask for.
const MARGIN: f64 = 1.5;
const FAST: Duration = Duration::from_millis(250);
const SLOW: Duration = Duration::from_secs(2);

/// What is measured of one kind of sandbox.
#[derive(Debug)]
pub(crate) struct Demand {
    fast: Rate,
    slow: Rate,
    /// Smoothed time from a checkout to its replacement.
    horizon: Duration,
    last: Option<Instant>,
    /// Jobs that the caller knows to come.
    expected: Option<usize>,
    /// When anybody last asked or told anything.
    touched: Option<Instant>,
}

/// An exponentially weighted rate of events.
#[derive(Debug)]
struct Rate {
    over: Duration,
    value: f64,
    at: Option<Instant>,
}

impl Demand {
    pub(crate) fn new() -> Self {
        let rate = |over| Rate { over, value: 0.0, at: None };
        // Before the first measurement a chroot sandbox's making time stands in.
        Self {
            fast: rate(FAST),
            slow: rate(SLOW),
            horizon: Duration::from_millis(10),
            last: None,
            expected: None,
            touched: None,
        }
    }

    /// A sandbox was asked for.
    pub(crate) fn asked(&mut self, now: Instant) {
        self.fast.event(now);
        self.slow.event(now);
        self.last = Some(now);
        self.touched = Some(now);
        self.expected = self.expected.map(|jobs| jobs.saturating_sub(1));
    }

    /// A sandbox became clean `took` after it was needed.
    pub(crate) fn refilled(&mut self, took: Duration) {
        self.horizon = self.horizon.mul_f64(0.8) + took.mul_f64(0.2);
    }

    /// How long a replacement takes, smoothed.
    pub(crate) fn horizon(&self) -> Duration {
        self.horizon
    }

    /// The caller knows how many jobs are still to come.
    pub(crate) fn expect(&mut self, jobs: usize, now: Instant) {
        self.expected = Some(jobs);
        self.touched = Some(now);
    }

    /// Whether what was learnt here is of no use any more.
    pub(crate) fn is_stale(&self, now: Instant, idle_time: Duration) -> bool {
        self.touched.is_none_or(|at| now.duration_since(at) > idle_time)
    }

    /// How many should wait at `now`.
    pub(crate) fn target(&self, now: Instant, idle_count: usize, idle_time: Duration) -> usize {
        let coming = self.expected.unwrap_or(usize::MAX);
        let quiet = self.last.is_none_or(|last| now.duration_since(last) > idle_time);
        if quiet {
            return idle_count.min(coming);
        }
        let rate = self.fast.at(now).max(self.slow.at(now));
        let ahead = (rate * self.horizon.as_secs_f64() * MARGIN).ceil() as usize + 1;
        ahead.max(idle_count).min(coming)
    }
}

impl Rate {
    fn event(&mut self, now: Instant) {
        self.value = self.at(now) + 1.0 / self.over.as_secs_f64();
        self.at = Some(now);
    }

    /// Events a second, decayed to `now`.
    fn at(&self, now: Instant) -> f64 {
        let since = self.at.map_or(Duration::ZERO, |at| now.duration_since(at));
        self.value * (-since.as_secs_f64() / self.over.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn after(jobs: u32, every: Duration, demand: &mut Demand, mut now: Instant) -> Instant {
        for _ in 0..jobs {
            now += every;
            demand.asked(now);
        }
        now
    }

    #[test]
    fn without_demand_the_idle_count_waits() {
        assert_eq!(Demand::new().target(Instant::now(), 3, MINUTE), 3);
    }

    #[test]
    fn a_tenfold_step_is_seen_within_a_quarter_of_a_second() {
        let mut demand = Demand::new();
        demand.refilled(Duration::from_millis(100));
        let now = after(50, Duration::from_millis(100), &mut demand, Instant::now());
        let before = demand.target(now, 0, MINUTE);
        let now = after(25, Duration::from_millis(10), &mut demand, now);
        let after = demand.target(now, 0, MINUTE);
        assert!(after >= 2 * before, "from {before} to {after}");
    }

    #[test]
    fn no_more_wait_than_jobs_are_to_come() {
        let mut demand = Demand::new();
        demand.expect(10, Instant::now());
        let now = after(8, Duration::from_millis(1), &mut demand, Instant::now());
        assert_eq!(demand.target(now, 5, MINUTE), 2);
    }

    #[test]
    fn after_the_idle_time_only_the_idle_count_stays() {
        let mut demand = Demand::new();
        let now = after(1000, Duration::from_millis(1), &mut demand, Instant::now());
        assert!(demand.target(now, 1, MINUTE) > 1);
        assert_eq!(demand.target(now + MINUTE + FAST, 1, MINUTE), 1);
    }
}

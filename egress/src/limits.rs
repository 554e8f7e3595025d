//! How much a job may send and receive, alone and together with its tenant's other jobs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use crate::refusal::Refusal;

/// How far a rate may be run ahead of: what comes in one piece goes in one piece.
const BURST: Duration = Duration::from_millis(100);
/// The same for attempts: who needs many connections needs them at the beginning.
const CROWD: Duration = Duration::from_secs(5);

const HOUR: Duration = Duration::from_secs(60 * 60);
/// Names of one tenant's jobs that may be looked up at once.
pub(crate) const TENANTS_LOOK_UPS: usize = 16;

/// What holds for each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections to outside at once.
    pub connections: usize,
    /// Bytes sent and received, together.
    pub bytes: u64,
    /// Bytes a second, sent and received together; `None`: as fast as they come.
    pub rate: Option<u64>,
    /// Connections asked for in a second, whether they are made or refused. Those of five seconds may come at once.
    pub attempts: u64,
}

/// What holds for all jobs of a tenant together, on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantLimits {
    /// Connections to outside at once.
    pub connections: usize,
    /// Bytes in an hour, sent and received together; `None`: as many as come. Those of one hour may go over at once; from
    /// then on they come back at that rate.
    pub bytes: Option<u64>,
    /// Bytes a second, sent and received together; `None`: as fast as they come.
    pub rate: Option<u64>,
    /// Connections asked for in a second, whether they are made or refused. Those of five seconds may come at once.
    pub attempts: u64,
}

/// What a job has sent and received so far, in all its tries together.
#[derive(Debug, Default)]
pub(crate) struct Spent(AtomicU64);

/// What the jobs of a tenant share on this host.
#[derive(Debug)]
pub struct Share {
    limits: TenantLimits,
    open: AtomicUsize,
    bytes: Option<Bucket>,
    bucket: Option<Bucket>,
    attempts: Bucket,
    look_ups: Arc<Semaphore>,
}

/// Counts for one job.
#[derive(Debug)]
pub(crate) struct Meter {
    limits: Limits,
    spent: Arc<Spent>,
    open: AtomicUsize,
    bucket: Option<Bucket>,
    attempts: Bucket,
    share: Arc<Share>,
}

/// The right to have one connection open.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Meter>);

/// A rate, so much within some time: the moment at which all that was taken so far would have been had at that rate.
#[derive(Debug)]
struct Bucket {
    amount: u64,
    within: Duration,
    paid_until: Mutex<Instant>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 128, bytes: 1024 * 1024 * 1024, rate: None, attempts: 100 }
    }
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self { connections: 1024, bytes: None, rate: None, attempts: 1000 }
    }
}

impl Share {
    /// With nothing taken of it.
    #[must_use]
    pub fn new(limits: TenantLimits) -> Self {
        Self {
            limits,
            open: AtomicUsize::new(0),
            bytes: limits.bytes.map(|bytes| Bucket::new(bytes, HOUR)),
            bucket: limits.rate.map(Bucket::a_second),
            attempts: Bucket::a_second(limits.attempts),
            look_ups: Arc::new(Semaphore::new(TENANTS_LOOK_UPS)),
        }
    }

    /// Counts bytes that went over, and refuses where they are more than may be in an hour.
    fn spend(&self, bytes: u64) -> Result<(), Refusal> {
        match &self.bytes {
            Some(bucket) if bucket.is_beyond(bytes, HOUR) => Err(Refusal::TenantBytes(bucket.amount)),
            _ => Ok(()),
        }
    }

    /// Places for names that are looked up.
    pub(crate) fn look_ups(&self) -> &Arc<Semaphore> {
        &self.look_ups
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new(TenantLimits::default())
    }
}

impl PartialEq for Share {
    /// What is open at the moment makes no difference to what is allowed.
    fn eq(&self, other: &Self) -> bool {
        self.limits == other.limits
    }
}

impl Eq for Share {}

impl PartialEq for Spent {
    /// What was spent makes no difference to what is allowed.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Spent {}

impl Meter {
    pub(crate) fn new(limits: Limits, share: Arc<Share>, spent: Arc<Spent>) -> Self {
        let (bucket, attempts) = (limits.rate.map(Bucket::a_second), Bucket::a_second(limits.attempts));
        Self { limits, spent, open: AtomicUsize::new(0), bucket, attempts, share }
    }

    /// Counts a connection that is asked for. What the job itself may not ask takes nothing from the others' share.
    pub(crate) fn attempt(&self) -> Result<(), Refusal> {
        if !self.attempts.take_one(CROWD) {
            return Err(Refusal::Attempts("the job asks for connections faster than it may"));
        }
        if !self.share.attempts.take_one(CROWD) {
            return Err(Refusal::Attempts("the tenant's jobs ask for connections faster than they may"));
        }
        Ok(())
    }

    /// Takes a place for one more connection.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Pass, Refusal> {
        if self.spent.0.load(Ordering::Relaxed) >= self.limits.bytes {
            return Err(Refusal::Bytes(self.limits.bytes));
        }
        self.share.spend(0)?;
        if !take_place(&self.open, self.limits.connections) {
            return Err(Refusal::Connections("the job has as many connections as it may have at once"));
        }
        if !take_place(&self.share.open, self.share.limits.connections) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Connections(
                "the tenant's jobs have as many connections as they may have at once",
            ));
        }
        Ok(Pass(self.clone()))
    }

    /// Counts bytes that went over, and says until when to wait before more may.
    pub(crate) fn spend(&self, bytes: usize) -> Result<Option<Instant>, Refusal> {
        let bytes = bytes as u64;
        if self.spent.0.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limits.bytes {
            return Err(Refusal::Bytes(self.limits.bytes));
        }
        self.share.spend(bytes)?;
        let buckets = [&self.bucket, &self.share.bucket].into_iter().flatten();
        Ok(buckets.filter_map(|bucket| bucket.take(bytes)).max())
    }
}

fn take_place(open: &AtomicUsize, most: usize) -> bool {
    let taken =
        open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < most).then_some(open + 1));
    taken.is_ok()
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.share.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bucket {
    fn new(amount: u64, within: Duration) -> Self {
        Self { amount, within, paid_until: Mutex::new(Instant::now()) }
    }

    fn a_second(amount: u64) -> Self {
        Self::new(amount, Duration::from_secs(1))
    }

    /// Takes one, or nothing where it would run further ahead than this.
    fn take_one(&self, ahead: Duration) -> bool {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let then = (*paid_until).max(now) + self.time_of(1);
        let may = then <= now + ahead;
        if may {
            *paid_until = then;
        }
        may
    }

    fn time_of(&self, taken: u64) -> Duration {
        self.within.mul_f64(taken as f64 / self.amount as f64)
    }

    /// Takes what went over already, and says until when to wait before more may.
    fn take(&self, bytes: u64) -> Option<Instant> {
        let (now, paid_until) = self.add(bytes);
        let free = paid_until.checked_sub(BURST)?;
        (free > now).then_some(free)
    }

    /// The same where nobody waits: whether it is now further ahead than this.
    fn is_beyond(&self, bytes: u64, ahead: Duration) -> bool {
        let (now, paid_until) = self.add(bytes);
        paid_until > now + ahead
    }

    fn add(&self, taken: u64) -> (Instant, Instant) {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *paid_until = (*paid_until).max(now) + self.time_of(taken);
        (now, *paid_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(connections: usize, bytes: u64, share: &Arc<Share>) -> Arc<Meter> {
        let limits = Limits { connections, bytes, ..Limits::default() };
        Arc::new(Meter::new(limits, share.clone(), Arc::default()))
    }

    #[test]
    fn places_are_given_back_and_a_tenants_jobs_share_theirs() {
        let share = Arc::new(Share::new(TenantLimits { connections: 3, ..TenantLimits::default() }));
        let (one, other) = (meter(2, 10, &share), meter(2, 10, &share));
        let (first, second) = (one.begin().unwrap(), one.begin().unwrap());
        assert!(matches!(one.begin(), Err(Refusal::Connections(why)) if why.starts_with("the job")));
        let third = other.begin().unwrap();
        assert!(matches!(other.begin(), Err(Refusal::Connections(why)) if why.starts_with("the tenant")));
        drop((first, second, third));
        assert!(other.begin().is_ok(), "and what was refused took no place");
        assert_eq!(share.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_beyond_the_allowance_is_refused_from_then_on() {
        let meter = meter(2, 10, &Arc::default());
        assert_eq!(meter.spend(10), Ok(None));
        assert_eq!(meter.spend(1), Err(Refusal::Bytes(10)));
        assert!(matches!(meter.begin(), Err(Refusal::Bytes(10))));
    }

    #[test]
    fn an_allowance_does_not_begin_anew_with_another_try() {
        let spent: Arc<Spent> = Arc::default();
        let limits = Limits { bytes: 10, ..Limits::default() };
        let meter = || Arc::new(Meter::new(limits, Arc::default(), spent.clone()));
        assert_eq!(meter().spend(8), Ok(None));
        assert_eq!(meter().spend(3), Err(Refusal::Bytes(10)));
        assert!(matches!(meter().begin(), Err(Refusal::Bytes(10))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_bytes_are_all_its_jobs_together_and_come_back_by_the_hour() {
        let share = Arc::new(Share::new(TenantLimits { bytes: Some(1000), ..TenantLimits::default() }));
        let (one, other) = (meter(2, 5000, &share), meter(2, 5000, &share));
        assert_eq!((one.spend(600), other.spend(300)), (Ok(None), Ok(None)));
        assert!(one.begin().is_ok());
        assert_eq!(other.spend(200), Err(Refusal::TenantBytes(1000)));
        assert_eq!(one.begin().unwrap_err(), Refusal::TenantBytes(1000));
        tokio::time::advance(HOUR / 5).await;
        assert!(one.begin().is_ok());
        assert_eq!((one.spend(90), one.spend(90)), (Ok(None), Err(Refusal::TenantBytes(1000))));
        tokio::time::advance(HOUR * 100).await;
        assert_eq!((one.spend(990), one.spend(20)), (Ok(None), Err(Refusal::TenantBytes(1000))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_too_fast_is_refused_and_takes_nothing_from_the_others_of_the_tenant() {
        let share = Arc::new(Share::new(TenantLimits { attempts: 4, ..TenantLimits::default() }));
        let limits = Limits { attempts: 2, ..Limits::default() };
        let meter = || Meter::new(limits, share.clone(), Arc::default());
        let (fast, slow) = (meter(), meter());
        let refused = |meter: &Meter| match meter.attempt() {
            Err(Refusal::Attempts(why)) => Some(why.split(' ').take(2).last().unwrap()),
            Err(refusal) => panic!("{refusal}"),
            Ok(()) => None,
        };
        // Those of five seconds at once, and then at the rate.
        for _ in 0..10 {
            assert_eq!(refused(&fast), None);
        }
        for _ in 0..1000 {
            assert_eq!(refused(&fast), Some("job"));
        }
        for _ in 0..10 {
            assert_eq!(refused(&slow), None, "it has what the other took in vain");
        }
        assert_eq!(refused(&meter()), Some("tenant's"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([(); 3].map(|()| refused(&fast)), [None, None, Some("job")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_over_time() {
        let bucket = Bucket::a_second(1000);
        let began = Instant::now();
        for _ in 0..20 {
            if let Some(free) = bucket.take(100) {
                tokio::time::sleep_until(free).await;
            }
        }
        let took = began.elapsed();
        assert!((1.8..=2.0).contains(&took.as_secs_f64()), "2000 bytes at 1000 a second took {took:?}");
    }
}

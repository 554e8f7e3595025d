//! Moments at which a test can end the process as `kill -9` would, here and in whatever is built on the pool.
//!
//! `MAYFLY_FAILPOINT=name:n` ends it at the n-th time that it comes by the point `name`. Only with the feature
//! `failpoints`; otherwise nothing of this exists at run time. `MAYFLY_FAILPOINT=name:off` leaves out the step of that name
//! instead, so that a test of it can be seen to fail: no configuration can say that, and no release is built with it.

/// The process may be ended here.
#[cfg(not(feature = "failpoints"))]
pub fn pass(_name: &str) {}

/// Whether a step is left out.
#[must_use]
#[cfg(not(feature = "failpoints"))]
pub fn is_off(_name: &str) -> bool {
    false
}

/// Whether a step is left out.
#[must_use]
#[cfg(feature = "failpoints")]
pub fn is_off(name: &str) -> bool {
    std::env::var("MAYFLY_FAILPOINT").is_ok_and(|text| text.strip_suffix(":off") == Some(name))
}

/// The process may be ended here.
#[cfg(feature = "failpoints")]
pub fn pass(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    /// The point, and how many times it is still passed.
    static ARMED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let text = std::env::var("MAYFLY_FAILPOINT").ok()?;
        let (name, times) = text.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });

    if let Some((armed, times)) = &*ARMED
        && armed == name
        && times.fetch_sub(1, Ordering::Relaxed) == 1
    {
        // Nothing is flushed, no destructor runs: what a crash leaves is what is left.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    }
}

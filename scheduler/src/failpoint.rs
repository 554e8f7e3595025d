//! Moments at which a test can end the process as `kill -9` would.
//!
//! `MAYFLY_FAILPOINT=name:n` ends it at the n-th time that it comes by the point `name`. Only with the feature
//! `failpoints`; otherwise nothing of this exists at run time.

/// The process may be ended here.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn pass(_name: &str) {}

/// The process may be ended here.
#[cfg(feature = "failpoints")]
pub(crate) fn pass(name: &str) {
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

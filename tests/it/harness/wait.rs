//! The only place in which a test waits for something that tells nobody when it happens.

use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// What mayfly itself gives a machine to boot, and then its first life to begin: 60 and 30 seconds.
const BOOT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until there is something to see.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// The same where a machine must boot first.
pub(crate) fn once_booted<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(BOOT, what, look)
}

fn within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < patience, "did not happen within {patience:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

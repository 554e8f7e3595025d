//! The only place in which a test waits for something that tells nobody when it happens.

use std::time::{Duration, Instant};

/// Only a test that fails waits for so long. A host that emulates machines, and runs other tests beside this one, takes half a
/// minute until the first of them has booted.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until there is something to see.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "did not happen within {PATIENCE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

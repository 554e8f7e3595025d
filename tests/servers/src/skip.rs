//! Tests that cannot be run here.

use std::{
    fs::File,
    io::{self, Write},
};

/// Says that a test was skipped, by its name, and why. Fails instead where `MAYFLY_SERVERS_REQUIRED` is set.
///
/// # Panics
///
/// Where no test may be skipped.
pub fn skipped(test: &str, why: &str) {
    let required = std::env::var_os("MAYFLY_SERVERS_REQUIRED").is_some_and(|value| !value.is_empty());
    assert!(!required, "{test} cannot be skipped here, as MAYFLY_SERVERS_REQUIRED is set: {why}");
    tell_skipped(test, why);
}

/// The same for what is never required.
///
/// It goes past the test runner, which keeps to itself what a test prints that does not fail, and into the list that
/// `MAYFLY_SKIPPED` names, which `make test` shows at its end.
pub fn tell_skipped(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    // A list that cannot be written must not fail what could not even be run; the word on stderr stays.
    let _ = io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os("MAYFLY_SKIPPED")
        && let Ok(mut list) = File::options().create(true).append(true).open(list)
    {
        let _ = list.write_all(line.as_bytes());
    }
}

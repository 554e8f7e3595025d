//! Tests that cannot be run here.

/// Says that a test was skipped, by its name, and why. Fails instead where `MAYFLY_SERVERS_REQUIRED` is set.
///
/// # Panics
///
/// Where no test may be skipped.
pub fn skipped(test: &str, why: &str) {
    let required = std::env::var_os("MAYFLY_SERVERS_REQUIRED").is_some_and(|value| !value.is_empty());
    assert!(!required, "{test} cannot be skipped here, as MAYFLY_SERVERS_REQUIRED is set: {why}");
    tell(test, why);
}

/// The same for a server that no Debian package has, which is never required.
pub fn skipped_for_want_of_a_package(test: &str, why: &str) {
    tell(test, why);
}

#[expect(clippy::print_stderr, reason = "the test runner has no other word for a skipped test")]
fn tell(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
}

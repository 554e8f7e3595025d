//! Mayfly's own voice on stderr: what failed, why, and what to do.

use std::io::{self, Write};

use worker::ErrorReport;

use crate::log::{VOICE, is_for_programs};

/// Says what went wrong. Whoever closed stderr does not want to hear it.
pub(crate) fn complain(report: &ErrorReport) {
    let ErrorReport { what, why, what_to_do } = report;
    if is_for_programs() {
        tracing::error!(target: VOICE, why, hint = what_to_do, "{what}");
    } else {
        let _ = writeln!(io::stderr(), "mayfly: {what}: {why}\nhint: {what_to_do}");
    }
}

/// Says something that is worth knowing.
pub(crate) fn remark(text: &str) {
    if is_for_programs() {
        tracing::info!(target: VOICE, "{text}");
    } else {
        let _ = writeln!(io::stderr(), "mayfly: {text}");
    }
}

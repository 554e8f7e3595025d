//! What a probe saw, piece by piece, and what that makes together.

use std::fmt;

use nix::errno::Errno;

/// The longest evidence for one probe, in bytes.
const LONGEST: usize = 600;

/// The pieces of one probe. One that is open opens the whole; a whole without any piece is unknown.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    held: Vec<String>,
    open: Vec<String>,
    unknown: Vec<String>,
}

impl Checks {
    /// Something that is to be so, and what is seen of it.
    pub(crate) fn holds(&mut self, holds: bool, seen: impl Into<String>) {
        if holds { &mut self.held } else { &mut self.open }.push(seen.into());
    }

    /// A call that is to be refused before the kernel looks at what is asked.
    pub(crate) fn refused<T>(&mut self, call: &str, got: Result<T, Errno>) {
        match got {
            Ok(given) => {
                drop(given);
                self.open.push(format!("{call} works"));
            }
            Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => {
                self.held.push(format!("{call}: {errno:?}"));
            }
            Err(errno) => self.open.push(format!("{call} gets through to {errno:?}")),
        }
    }

    /// Something that cannot be told here.
    pub(crate) fn unknown(&mut self, why: impl Into<String>) {
        self.unknown.push(why.into());
    }
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, pieces) = if !self.open.is_empty() {
            ("open", &self.open)
        } else if !self.unknown.is_empty() || self.held.is_empty() {
            ("unknown", &self.unknown)
        } else {
            ("held", &self.held)
        };
        let mut text = pieces.join("; ");
        if text.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        // A line is one probe, whatever the sandbox put into it.
        text.retain(|character| !character.is_control());
        write!(f, "{word}\t{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_open_piece_opens_the_whole() {
        let mut checks = Checks::default();
        checks.holds(true, "a");
        checks.unknown("b");
        checks.holds(false, "c");
        assert_eq!(checks.to_string(), "open\tc");
    }

    #[test]
    fn what_cannot_be_told_does_not_count_as_held() {
        let mut checks = Checks::default();
        assert_eq!(checks.to_string(), "unknown\t");
        checks.holds(true, "a");
        checks.unknown("no such mechanism");
        assert_eq!(checks.to_string(), "unknown\tno such mechanism");
    }

    #[test]
    fn a_call_that_reaches_the_kernel_is_open_even_if_it_fails() {
        for (errno, expected) in [(Errno::EPERM, "held\tx: EPERM"), (Errno::ENOSYS, "held\tx: ENOSYS")] {
            let mut checks = Checks::default();
            checks.refused::<()>("x", Err(errno));
            assert_eq!(checks.to_string(), expected);
        }
        let mut checks = Checks::default();
        checks.refused::<()>("x", Err(Errno::EINVAL));
        assert_eq!(checks.to_string(), "open\tx gets through to EINVAL");
    }

    #[test]
    fn evidence_stays_on_its_line() {
        let mut checks = Checks::default();
        checks.holds(true, "a\nF01\topen\u{1b}[31m");
        assert_eq!(checks.to_string(), "held\taF01open[31m");
    }
}

//! Which versions of runc are known to let a container out.

/// The first versions without CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881, which let a container write to the host's
/// `/proc`: one for each line that was mended. Every later line has it too.
const MENDED: [Version; 3] = [
    Version { line: (1, 2), patch: 8, candidate: FINAL },
    Version { line: (1, 3), patch: 3, candidate: FINAL },
    Version { line: (1, 4), patch: 0, candidate: 3 },
];

/// What the messages name.
pub(super) const FLOOR: &str = "1.2.8, 1.3.3 or 1.4.0";

/// Above every release candidate.
const FINAL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    line: (u32, u32),
    patch: u32,
    candidate: u32,
}

/// Whether a runc of this version is below the floor. One that cannot be read is: what is not proved does not hold.
pub(super) fn is_old(version: &str) -> bool {
    let Some(version) = Version::read(version) else { return true };
    match MENDED.iter().find(|mended| mended.line == version.line) {
        Some(mended) => (version.patch, version.candidate) < (mended.patch, mended.candidate),
        None => version.line < MENDED[0].line,
    }
}

impl Version {
    /// Reads `1.4.0-rc.3`, and `1.1.5+ds1` as distributions write it.
    fn read(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let text = text.split(['+', '~', ' ']).next()?;
        let (numbers, candidate) = match text.split_once("-rc") {
            Some((numbers, candidate)) => (numbers, candidate.trim_start_matches('.').parse().ok()?),
            None => (text.split('-').next()?, FINAL),
        };
        let mut numbers = numbers.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { line: (next()?, next()?), patch: next().unwrap_or(0), candidate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_mended_passes_and_what_came_before_does_not() {
        for old in ["1.1.5+ds1", "1.1.15", "1.2.7", "1.3.0", "1.3.2", "1.4.0-rc.2", "1.4.0-rc2", "1.0.0-rc93"]
        {
            assert!(is_old(old), "{old}");
        }
        for new in
            ["1.2.8", "1.2.10", "1.3.3", "1.3.3-0ubuntu1", "1.4.0-rc.3", "1.4.0", "1.5.0-rc.1", "v2.0.0"]
        {
            assert!(!is_old(new), "{new}");
        }
    }

    #[test]
    fn a_version_that_cannot_be_read_is_below_the_floor() {
        for odd in ["", "unknown", "1", "latest"] {
            assert!(is_old(odd), "{odd}");
        }
    }
}

//! What a build tells whoever waits for it. The library reports; how it looks is the caller's.

/// Receives the steps of a build, an export or an import.
pub trait Progress {
    /// A new step begins.
    fn step(&mut self, what: &str);

    /// A line of the current step's own output.
    fn detail(&mut self, line: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&mut self, _what: &str) {}

    fn detail(&mut self, _line: &str) {}
}

//! Whether the host has room for more work now.

use std::fs;

/// Stalls of more than this share of the last ten seconds mean that more making would only make all slower.
const STALLED_PERCENT: f64 = 40.0;

/// Less available memory than this share of the whole means that nothing is made ahead.
const LEAST_AVAILABLE: f64 = 0.05;

/// How busy the host is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// For which share of the last ten seconds some process waited for a CPU, in percent. `None`: the kernel does not say.
    pub cpu: Option<f64>,
    /// The same for memory.
    pub memory: Option<f64>,
    /// The same for disks.
    pub io: Option<f64>,
    /// Which share of the memory is available.
    pub available: Option<f64>,
}

impl Pressure {
    /// How it is now: from `/proc/pressure` where the kernel keeps it, and `/proc/meminfo`.
    #[must_use]
    pub fn now() -> Self {
        let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_share(&text));
        Self { cpu: stalled("cpu"), memory: stalled("memory"), io: stalled("io"), available }
    }
}

/// How many sandboxes may be made at once, of `most`: fewer under CPU pressure, one when memory is short.
pub(crate) fn making_now(most: usize) -> usize {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_share(&text));
    limit(most, stalled("cpu"), stalled("memory"), available)
}

fn stalled(what: &str) -> Option<f64> {
    fs::read_to_string(format!("/proc/pressure/{what}")).ok().and_then(|text| some_avg10(&text))
}

fn limit(most: usize, cpu: Option<f64>, memory: Option<f64>, available: Option<f64>) -> usize {
    let above = |value: Option<f64>| value.is_some_and(|percent| percent > STALLED_PERCENT);
    if above(memory) || available.is_some_and(|share| share < LEAST_AVAILABLE) {
        1
    } else if above(cpu) {
        (most / 2).max(1)
    } else {
        most
    }
}

/// `avg10` of the `some` line, in percent.
fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

fn available_share(text: &str) -> Option<f64> {
    let value = |key: &str| -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    Some(value("MemAvailable:")? / value("MemTotal:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_files_are_read_as_the_kernel_writes_them() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(some_avg10(text), Some(12.34));
        assert_eq!(available_share("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:   250 kB\n"), Some(0.25));
    }

    #[test]
    fn short_memory_leaves_one_place_and_cpu_pressure_half() {
        assert_eq!(limit(8, None, None, None), 8);
        assert_eq!(limit(8, Some(60.0), Some(0.0), Some(0.5)), 4);
        assert_eq!(limit(8, Some(0.0), Some(60.0), Some(0.5)), 1);
        assert_eq!(limit(8, None, None, Some(0.01)), 1);
        assert_eq!(limit(1, Some(99.0), None, None), 1);
    }
}

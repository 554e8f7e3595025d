//! What begins anew with each life of the machine: randomness, names, the clock.

use std::fs::File;
use std::os::unix::fs::FileExt;

use agent::message::Resume;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::sethostname;

use crate::failure::{At, Failure};
use crate::sys;

const NANOS: u64 = 1_000_000_000;

/// The files that programs read a machine's names from. They lie in a place of their own and are bound over the image's.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) boot_id: Name,
    pub(super) machine_id: Name,
}

/// A file of one line.
#[derive(Debug)]
pub(super) struct Name {
    file: File,
    length: usize,
}

impl Names {
    pub(super) fn renew(&mut self, resume: &Resume) -> Result<(), Failure> {
        sethostname(&resume.hostname).at("set the host name")?;
        self.boot_id.rewrite(&resume.boot_id).map_err(|error| Failure::of_io("renew the boot id", &error))?;
        self.machine_id
            .rewrite(&resume.machine_id)
            .map_err(|error| Failure::of_io("renew the machine id", &error))
    }
}

impl Name {
    /// An empty file is a name that is yet to be given.
    pub(super) fn of(file: File) -> Self {
        Self { file, length: 0 }
    }

    /// In place: a file that is emptied first gives its page away and takes another one.
    fn rewrite(&mut self, line: &str) -> std::io::Result<()> {
        let text = format!("{line}\n");
        self.file.write_all_at(text.as_bytes(), 0)?;
        if text.len() < self.length {
            self.file.set_len(text.len() as u64)?;
        }
        self.length = text.len();
        Ok(())
    }
}

/// Mixes the host's bytes into the kernel's generator and has it begin anew with them, on every CPU.
pub(super) fn reseed(generator: &File, entropy: &[u8; 32]) -> Result<(), Failure> {
    sys::add_entropy(generator, entropy).at("add entropy")?;
    sys::reseed(generator).at("reseed the random generator")
}

/// When the host's word arrived, by a clock that nobody sets.
pub(super) struct Arrival(TimeSpec);

impl Arrival {
    pub(super) fn now() -> Result<Self, Failure> {
        clock_gettime(ClockId::CLOCK_MONOTONIC).map(Self).at("read the monotonic clock")
    }

    /// Sets the clock, given the time on arrival.
    pub(super) fn set_clock(&self, nanoseconds: u64) -> Result<(), Failure> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).at("read the monotonic clock")?;
        let then = TimeSpec::new((nanoseconds / NANOS) as i64, (nanoseconds % NANOS) as i64);
        clock_settime(ClockId::CLOCK_REALTIME, then + (now - self.0)).at("set the clock")
    }
}

pub(super) fn clock() -> Result<u64, Failure> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).at("read the clock")?;
    Ok(now.tv_sec() as u64 * NANOS + now.tv_nsec() as u64)
}

//! What begins anew with each life of the machine: randomness, names, the clock.

use std::fs::{self, File};
use std::io::{Seek, Write};

use agent::message::Resume;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::sethostname;

use crate::failure::{At, Failure};
use crate::sys;

const NANOS: u64 = 1_000_000_000;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The files that programs read a machine's names from. They lie in a place of their own and are bound over the image's.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) boot_id: File,
    pub(super) machine_id: File,
}

impl Names {
    pub(super) fn renew(&mut self, resume: &Resume) -> Result<(), Failure> {
        sethostname(&resume.hostname).at("set the host name")?;
        rewrite(&mut self.boot_id, &resume.boot_id)
            .map_err(|error| Failure::of_io("renew the boot id", &error))?;
        rewrite(&mut self.machine_id, &resume.machine_id)
            .map_err(|error| Failure::of_io("renew the machine id", &error))
    }
}

fn rewrite(file: &mut File, line: &str) -> std::io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    writeln!(file, "{line}")
}

/// Mixes the host's bytes into the kernel's generator and has it begin anew with them, on every CPU.
pub(super) fn reseed(entropy: &[u8; 32]) -> Result<(), Failure> {
    let device = File::options().write(true).open("/dev/random");
    let device = device.map_err(|error| Failure::of_io("open /dev/random", &error))?;
    sys::add_entropy(&device, entropy).at("add entropy")?;
    sys::reseed(&device).at("reseed the random generator")
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

/// As every program of the machine reads it.
pub(super) fn boot_id() -> Result<String, Failure> {
    let text = fs::read_to_string(BOOT_ID).map_err(|error| Failure::of_io("read the boot id", &error))?;
    Ok(text.trim_end().to_owned())
}

//! The drivers that the machine's kernel has as modules, and the port where the host is.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;

use crate::failure::{At, Failure};
use crate::sys;

/// Where the builder put the modules, named so that the order of their names is that of their needs.
const MODULES: &str = "/modules";

/// How long a driver may take to find its device.
const PATIENCE: Duration = Duration::from_secs(10);

const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// The image's files.
pub(super) const DISK: &str = "/dev/vda";

/// Loads every module.
pub(super) fn load() -> Result<(), Failure> {
    let of_io = |error: std::io::Error| Failure::of_io("list the modules", &error);
    let mut paths = Vec::<PathBuf>::new();
    for entry in fs::read_dir(MODULES).map_err(of_io)? {
        paths.push(entry.map_err(of_io)?.path());
    }
    paths.sort();
    for path in paths {
        let file = File::open(&path).map_err(|error| Failure::of_io("open a module", &error))?;
        match sys::load_module(&file) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).at(&format!("load {}", path.display())),
        }
    }
    Ok(())
}

/// The serial port, once its driver has found it. It can be opened once.
pub(super) fn await_port() -> Result<OwnedFd, Failure> {
    let port = await_node(|name| name.starts_with("vport"), "find the host's port")?;
    open(&port, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).at("open the host's port")
}

/// The disk, once its driver has found it.
pub(super) fn await_disk() -> Result<(), Failure> {
    await_node(|name| DISK.ends_with(name), "find the image's disk").map(drop)
}

fn await_node(is_it: impl Fn(&str) -> bool, step: &str) -> Result<PathBuf, Failure> {
    let started = Instant::now();
    loop {
        let entries = fs::read_dir("/dev").map_err(|error| Failure::of_io(step, &error))?;
        let mut paths = entries.flatten().map(|entry| entry.path());
        let found = paths.find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&is_it));
        match found {
            Some(path) => return Ok(path),
            None if started.elapsed() > PATIENCE => return Err(Errno::ENODEV).at(step),
            None => sleep(BETWEEN_LOOKS),
        }
    }
}

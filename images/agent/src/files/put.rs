//! One file on its way in.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::flow::{FlowError, ReceiveWindow};
use agent::message::{FileError, Put};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};

use super::place;

/// A file that is being written, or the reason why its bytes are thrown away.
pub(crate) struct Upload {
    window: ReceiveWindow,
    file: Result<File, FileError>,
    written: u64,
}

impl Upload {
    /// Makes the file. A failure is kept until the end: the bytes are on their way already.
    pub(crate) fn begin(put: &Put) -> Self {
        Self { window: ReceiveWindow::default(), file: create(put).map(File::from), written: 0 }
    }

    /// Writes bytes, and returns what the host may be granted again.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Option<u32>, FlowError> {
        self.window.receive(bytes.len())?;
        if let Ok(file) = &mut self.file {
            match file.write_all(bytes) {
                Ok(()) => self.written += bytes.len() as u64,
                Err(error) => {
                    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                    self.file = Err(place::file_error(errno));
                }
            }
        }
        Ok(self.window.release(bytes.len()))
    }

    /// How it went.
    pub(crate) fn finish(self) -> Result<u64, FileError> {
        self.file.map(|_| self.written)
    }
}

fn create(put: &Put) -> Result<OwnedFd, FileError> {
    let names = place::names(&put.path)?;
    let (name, parents) = names.split_last().ok_or(FileError::BadPath)?;
    let mut dir = place::root()?;
    for parent in parents {
        dir = enter_or_make(dir.as_fd(), parent)?;
    }
    // Non-blocking, so that a fifo in the file's place does not hold the agent up.
    let flags = OFlag::O_WRONLY
        | OFlag::O_CREAT
        | OFlag::O_TRUNC
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(put.mode & 0o777);
    let file = openat(&dir, name.as_c_str(), flags, mode).map_err(place::file_error)?;
    let found = fstat(&file).map_err(place::file_error)?;
    if place::kind(&found) != SFlag::S_IFREG {
        return Err(FileError::NotRegular);
    }
    // A file that was there before keeps its mode over O_CREAT.
    if found.st_mode & 0o777 != mode.bits() {
        fchmod(&file, mode).map_err(place::file_error)?;
    }
    Ok(file)
}

fn enter_or_make(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, FileError> {
    match place::enter(dir, name) {
        Err(FileError::NotFound) => {
            match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
                // A running job may have been faster.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(place::file_error(errno)),
            }
            place::enter(dir, name)
        }
        other => other,
    }
}

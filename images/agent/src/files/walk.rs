//! Finds what a `Get` asks for, a small step at a time, with a bound on everything that a job could make large.
//!
//! Depth first, each directory's names in order. Held at any time: one descriptor for each open directory, at most
//! [`MAX_DEPTH`], and the names that are still to be looked at, at most [`MAX_NAMES`] bytes.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use agent::message::{Entry, FileError, GetLimit, Skipped};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::glob::{Pattern, Position};
use super::place;
use crate::sys;

/// Directories within one another, at most.
const MAX_DEPTH: usize = 256;

/// Bytes of names that wait, in all open directories together. A larger one counts as a reached `max_visited`.
const MAX_NAMES: usize = 4 * 1024 * 1024;

/// What is held of a name beside its bytes: type, NUL, and its place in the order.
const NAME_COST: usize = 2 + size_of::<u32>();

/// Bytes of directory entries that one step reads.
const LISTING: usize = 32 * 1024;

/// What a step brought.
pub(crate) enum Found {
    /// A file to send.
    File(File, Entry),
    /// Something that matched and is not given.
    Skipped(Skipped),
    /// Only progress.
    Nothing,
    /// The walk is over, and whether `max_visited` cut it short.
    End(Option<GetLimit>),
}

pub(crate) struct Walk {
    patterns: std::vec::IntoIter<String>,
    /// Patterns that were walked, and at the end the one that is. What an earlier one gave is not given again.
    parsed: Vec<Pattern>,
    /// What the host called the present pattern, until something matched it.
    unmatched: Option<String>,
    levels: Vec<Level>,
    path: Vec<u8>,
    visits_left: u32,
    names_held: usize,
    cut_short: bool,
    buffer: Vec<u8>,
}

/// An open directory.
struct Level {
    /// Shared with the visit of one of its names, which may open the next level.
    dir: Rc<OwnedFd>,
    path_len: usize,
    position: Position,
    /// Each name behind its `d_type`, with a NUL.
    names: Vec<u8>,
    order: Vec<u32>,
    next: usize,
    listed: bool,
}

impl Walk {
    pub(crate) fn new(patterns: Vec<String>, max_visited: u32) -> Self {
        Self {
            patterns: patterns.into_iter(),
            parsed: Vec::new(),
            unmatched: None,
            levels: Vec::new(),
            path: Vec::new(),
            visits_left: max_visited,
            names_held: 0,
            cut_short: false,
            buffer: vec![0; LISTING],
        }
    }

    /// Goes one step on.
    pub(crate) fn step(&mut self) -> Found {
        match self.levels.last() {
            None => self.next_pattern(),
            Some(level) if !level.listed => self.list(),
            Some(_) => self.next_name(),
        }
    }

    fn pattern(&self) -> &Pattern {
        self.parsed.last().expect("a level is open, so its pattern was parsed")
    }

    fn next_pattern(&mut self) -> Found {
        if self.cut_short {
            return Found::End(Some(GetLimit::Visited));
        }
        if let Some(pattern) = self.unmatched.take() {
            return Found::Skipped(Skipped { path: pattern.into_bytes(), error: FileError::NotFound });
        }
        let Some(text) = self.patterns.next() else { return Found::End(None) };
        self.unmatched = Some(text.clone());
        let begun = Pattern::parse(&text).and_then(|pattern| {
            self.parsed.push(pattern);
            self.begin()
        });
        begun.unwrap_or_else(|error| {
            self.unmatched = None;
            Found::Skipped(Skipped { path: text.into_bytes(), error })
        })
    }

    /// Goes down the fixed names of the present pattern: nothing is listed there, so nothing need be readable.
    fn begin(&mut self) -> Result<Found, FileError> {
        let pattern = self.pattern();
        let mut dir = place::root()?;
        let mut path = Vec::new();
        let mut depth = 0;
        for name in pattern.fixed_prefix() {
            dir = place::enter(dir.as_fd(), name)?;
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            depth += 1;
        }
        let position = Position::after(depth);
        let last = pattern.fixed_last().map(CStr::to_owned);
        self.path = path;
        match last {
            Some(name) => {
                let kind = place::kind(&place::look(dir.as_fd(), &name).map_err(place::file_error)?);
                let position = self.pattern().step(position, name.to_bytes());
                self.visit(dir.as_fd(), &name, kind, position)
            }
            None => self.open_level(dir.as_fd(), c".", position).map(|()| Found::Nothing),
        }
    }

    /// Reads a piece of the innermost directory.
    fn list(&mut self) -> Found {
        let level = self.levels.last_mut().expect("the caller looked");
        let read = match sys::getdents(level.dir.as_fd(), &mut self.buffer) {
            Ok(read) => read,
            Err(Errno::EINTR) => return Found::Nothing,
            // What was read before is still good.
            Err(_) => 0,
        };
        let pattern = self.parsed.last().expect("a level is open, so its pattern was parsed");
        let mut cut = false;
        for (kind, name) in dirents(&self.buffer[..read]) {
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            if self.visits_left == 0 || self.names_held + NAME_COST + name.count_bytes() > MAX_NAMES {
                cut = true;
                break;
            }
            self.visits_left -= 1;
            let may_lead_on = matches!(kind, libc::DT_DIR | libc::DT_UNKNOWN);
            let position = pattern.step(level.position, name.to_bytes());
            if pattern.is_match(position) || (may_lead_on && !position.is_lost()) {
                level.order.push(level.names.len() as u32);
                level.names.push(kind);
                level.names.extend_from_slice(name.to_bytes_with_nul());
                self.names_held += NAME_COST + name.count_bytes();
            }
        }
        if cut || read == 0 {
            self.cut_short |= cut;
            level.listed = true;
            let names = &level.names;
            level.order.sort_unstable_by(|one, other| name_at(names, *one).1.cmp(name_at(names, *other).1));
        }
        Found::Nothing
    }

    /// Looks at the next name of the innermost directory.
    fn next_name(&mut self) -> Found {
        let level = self.levels.last_mut().expect("the caller looked");
        let Some(offset) = level.order.get(level.next) else {
            self.names_held -= level.names.len() + size_of::<u32>() * level.order.len();
            self.levels.pop();
            return Found::Nothing;
        };
        level.next += 1;
        let (d_type, name) = name_at(&level.names, *offset);
        let (name, dir, before) = (name.to_owned(), Rc::clone(&level.dir), level.position);
        self.path.truncate(level.path_len);
        let position = self.pattern().step(before, name.to_bytes());
        let kind = match known_kind(d_type) {
            Some(kind) => Ok(kind),
            None => place::look(dir.as_fd(), &name).map(|stat| place::kind(&stat)).map_err(place::file_error),
        };
        match kind.and_then(|kind| self.visit(dir.as_fd(), &name, kind, position)) {
            Ok(found) => found,
            // Gone since it was listed: as good as never there.
            Err(FileError::NotFound) => Found::Nothing,
            Err(error) => self.skip(&name, error),
        }
    }

    /// Deals with one name at a position that is not lost.
    fn visit(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        kind: SFlag,
        position: Position,
    ) -> Result<Found, FileError> {
        if position.is_lost() {
            return Ok(Found::Nothing);
        }
        let matched = self.pattern().is_match(position);
        if matched {
            self.unmatched = None;
        }
        match kind {
            SFlag::S_IFDIR if self.cut_short => Ok(Found::Nothing),
            SFlag::S_IFDIR => {
                self.push_name(name)?;
                self.open_level(dir, name, position).map(|()| Found::Nothing)
            }
            _ if !matched => Ok(Found::Nothing),
            SFlag::S_IFREG => self.open_file(dir, name),
            SFlag::S_IFLNK => Err(FileError::Symlink),
            _ => Err(FileError::NotRegular),
        }
    }

    fn open_file(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Found, FileError> {
        self.push_name(name)?;
        let earlier = &self.parsed[..self.parsed.len() - 1];
        if earlier.iter().any(|pattern| pattern.covers(&self.path)) {
            return Ok(Found::Nothing);
        }
        // Non-blocking: a fifo may have taken the file's place since it was looked at.
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = openat(dir, name, flags, Mode::empty()).map_err(place::file_error)?;
        let stat = fstat(&file).map_err(place::file_error)?;
        if place::kind(&stat) != SFlag::S_IFREG {
            return Err(FileError::NotRegular);
        }
        let entry = Entry { path: self.path.clone(), mode: stat.st_mode & 0o777, size: stat.st_size as u64 };
        Ok(Found::File(File::from(file), entry))
    }

    fn open_level(&mut self, dir: BorrowedFd<'_>, name: &CStr, position: Position) -> Result<(), FileError> {
        if self.levels.len() == MAX_DEPTH {
            return Err(FileError::Os(Errno::ENAMETOOLONG as i32));
        }
        let dir = place::open_listing(dir, name)?;
        self.levels.push(Level {
            dir: Rc::new(dir),
            path_len: self.path.len(),
            position,
            names: Vec::new(),
            order: Vec::new(),
            next: 0,
            listed: false,
        });
        Ok(())
    }

    /// Makes `path` the path of `name`. Where it is an error, [`Walk::skip`] says the name once more.
    fn push_name(&mut self, name: &CStr) -> Result<(), FileError> {
        if self.path.len() + 1 + name.count_bytes() >= libc::PATH_MAX as usize {
            return Err(FileError::Os(Errno::ENAMETOOLONG as i32));
        }
        self.path.push(b'/');
        self.path.extend_from_slice(name.to_bytes());
        Ok(())
    }

    fn skip(&mut self, name: &CStr, error: FileError) -> Found {
        let parent = self.levels.last().map_or(0, |level| level.path_len);
        self.path.truncate(parent);
        let mut path = self.path.clone();
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        Found::Skipped(Skipped { path, error })
    }
}

fn name_at(names: &[u8], offset: u32) -> (u8, &CStr) {
    let at = offset as usize;
    (names[at], CStr::from_bytes_until_nul(&names[at + 1..]).unwrap_or_default())
}

/// The file type behind a `d_type`, unless the file system leaves it open.
fn known_kind(d_type: u8) -> Option<SFlag> {
    match d_type {
        libc::DT_UNKNOWN => None,
        // `d_type` is the type bits of the mode, moved down.
        other => Some(SFlag::from_bits_truncate(u32::from(other) << 12)),
    }
}

/// Cuts what `getdents64` wrote into type and name.
fn dirents(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &CStr)> {
    // struct linux_dirent64: ino (8), off (8), reclen (2), type (1), name.
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes([*bytes.get(16)?, *bytes.get(17)?]);
        let (entry, rest) = bytes.split_at_checked(usize::from(len))?;
        bytes = rest;
        Some((*entry.get(18)?, CStr::from_bytes_until_nul(entry.get(19..)?).ok()?))
    })
}

//! Writes one process's segments: the chain, the space that is reserved ahead, and rotation.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use super::{
    record::{Chain, Entry, Event},
    segment::segment_path,
};
use crate::id::InstanceId;

/// Disk space that is reserved ahead, so that a full disk is known before work is taken and never when a
/// life's end must be written.
const RESERVE: u64 = 64 * 1024;

/// A segment that reaches this size is closed and another begun.
const LARGEST: u64 = 64 * 1024 * 1024;

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    instance: InstanceId,
    boot: String,
    serial: u32,
    largest: u64,
    file: File,
    chain: Chain,
    length: u64,
    reserved: u64,
}

impl Writer {
    pub(super) fn open(directory: PathBuf, instance: InstanceId, boot: String) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let file = create(&directory, instance, 0)?;
        let mut writer = Self {
            directory,
            instance,
            boot,
            serial: 0,
            largest: LARGEST,
            file,
            chain: Chain::default(),
            length: 0,
            reserved: 0,
        };
        writer.begin()?;
        Ok(writer)
    }

    pub(super) fn path(&self) -> PathBuf {
        segment_path(&self.directory, self.instance, self.serial)
    }

    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(super) fn append(&mut self, event: Event) -> io::Result<()> {
        if self.length >= self.largest {
            self.rotate()?;
        }
        // What begins needs room for its end too; an end uses that room.
        let begins = matches!(event, Event::Opened { .. } | Event::Clean { .. } | Event::Consumed { .. });
        let (line, next) = self.chain.line(&Entry::now(event));
        self.reserve(line.len() as u64, if begins { RESERVE / 2 } else { 0 })?;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line in the middle would be damage: take it back, so that the chain can go on.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += line.len() as u64;
        self.chain = next;
        Ok(())
    }

    /// Ends the segment in order: from now on any damage to it is damage.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.append_closed()
    }

    fn begin(&mut self) -> io::Result<()> {
        self.append(Event::Opened { instance: self.instance, boot: self.boot.clone() })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = create(&self.directory, self.instance, self.serial + 1)?;
        self.append_closed()?;
        // The old segment must be durable by itself: the group's flush only knows the new one.
        self.file.sync_data()?;
        self.file = next;
        self.serial += 1;
        (self.chain, self.length, self.reserved) = (Chain::default(), 0, 0);
        self.begin()
    }

    fn append_closed(&mut self) -> io::Result<()> {
        let (line, next) = self.chain.line(&Entry::now(Event::Closed));
        self.file.write_all(line.as_bytes())?;
        self.length += line.len() as u64;
        self.chain = next;
        // Gives back what was reserved and not needed.
        self.file.set_len(self.length)
    }

    fn reserve(&mut self, need: u64, headroom: u64) -> io::Result<()> {
        if self.length + need + headroom <= self.reserved {
            return Ok(());
        }
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, self.length, RESERVE) {
            // Not every file system can reserve; a full disk then shows at the write.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => self.reserved = self.length + RESERVE,
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

fn create(directory: &std::path::Path, instance: InstanceId, serial: u32) -> io::Result<File> {
    File::options().append(true).create_new(true).open(segment_path(directory, instance, serial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::Id,
        ledger::segment::{Rest, Segment, segments},
    };

    #[test]
    fn a_full_segment_is_closed_and_the_next_one_begun() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path().to_owned(), Id::random(), "b".to_owned()).unwrap();
        writer.largest = 1000;
        for _ in 0..20 {
            let generation = Id::random();
            writer.append(Event::Clean { generation, tier: crate::Tier::Vm, image: "i".to_owned() }).unwrap();
        }
        let found = segments(directory.path()).unwrap();
        assert!(found.len() > 2, "{found:?}");
        for (position, (instance, path)) in found.iter().enumerate() {
            let segment = Segment::read(path, *instance).unwrap();
            assert_eq!(segment.rest, Rest::Nothing);
            assert_eq!(segment.closed(), position + 1 < found.len());
        }
    }
}

//! Ranges of user ids, so that no two live sandboxes on the host share one, whichever process made them.
//!
//! The ids lie in 1879048192 to 2147418111, which systemd's table of user ids calls unused
//! (<https://systemd.io/UIDS-GIDS/>): clear of /etc/subuid's usual ranges and of what systemd-nspawn picks
//! (524288 to 1879048191). A claim is a file named for its range. It outlives a killed process on purpose:
//! only who has ended that process's sandboxes may take the claim away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::id::InstanceId;

pub(crate) const FIRST: u32 = 0x7000_0000;
pub(crate) const AFTER_LAST: u32 = 0x7FFF_0000;
/// Ids in one range: what an image's files may be owned by.
pub(crate) const RANGE: u32 = 0x1_0000;
const RANGES: u32 = (AFTER_LAST - FIRST) / RANGE;

/// No range of user ids can be had.
#[derive(Debug, Error)]
pub enum UidError {
    /// All are taken.
    #[error(
        "all {RANGES} ranges of user ids are claimed in {0}: too many sandboxes, or claims of dead processes: run `mayfly reap`"
    )]
    Exhausted(PathBuf),
    /// The claim could not be written.
    #[error("cannot claim user ids in {path}")]
    Claim {
        /// The claim's file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// One range, held until it is dropped.
#[derive(Debug)]
pub(crate) struct UidRange {
    number: u32,
    claim: PathBuf,
}

impl UidRange {
    /// Claims a free range for the process whose name is in `signature`.
    ///
    /// The claim is a link to that file: signed from the moment it is there, so that a process that is killed
    /// never leaves one that nobody can be told by.
    pub(crate) fn claim(directory: &Path, signature: &Path) -> Result<Self, UidError> {
        // A random start spares the walk over what the neighbours hold.
        let start = u32::from_le_bytes(random_bytes()) % RANGES;
        for number in (0..RANGES).map(|step| (start + step) % RANGES) {
            let claim = directory.join(number.to_string());
            match fs::hard_link(signature, &claim) {
                Ok(()) => return Ok(Self { number, claim }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(UidError::Claim { path: claim, error }),
            }
        }
        Err(UidError::Exhausted(directory.to_owned()))
    }

    /// The host's uid of the sandbox's uid 0.
    pub(crate) fn base(&self) -> u32 {
        FIRST + self.number * RANGE
    }

    /// Never gives the range back: something may still run under its ids. The reaper looks after it.
    pub(crate) fn keep(mut self) {
        self.claim = PathBuf::new();
    }
}

impl Drop for UidRange {
    fn drop(&mut self) {
        if self.claim.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = fs::remove_file(&self.claim) {
            tracing::warn!(claim = %self.claim.display(), %error, "cannot give back a range of user ids");
        }
    }
}

/// Takes away the claims of a process that is dead and whose sandboxes are gone.
pub(crate) fn release_claims_of(directory: &Path, instance: InstanceId) -> io::Result<()> {
    claims_of(directory, instance)?.into_iter().try_for_each(fs::remove_file)
}

/// The claims that a process has signed.
pub(crate) fn claims_of(directory: &Path, instance: InstanceId) -> io::Result<Vec<PathBuf>> {
    let owner = instance.to_string();
    let mut claims = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // A claim that its live owner removes at this moment is not this process's.
        if fs::read_to_string(&path).is_ok_and(|signed| signed == owner) {
            claims.push(path);
        }
    }
    Ok(claims)
}

fn random_bytes() -> [u8; 4] {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the kernel gives random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    fn signature(instance: InstanceId) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), instance.to_string()).unwrap();
        file
    }

    #[test]
    fn two_claims_never_overlap_and_a_dropped_one_is_free_again() {
        let directory = tempfile::tempdir().unwrap();
        let process = signature(Id::random());
        let first = UidRange::claim(directory.path(), process.path()).unwrap();
        let second = UidRange::claim(directory.path(), process.path()).unwrap();
        assert_ne!(first.base(), second.base());
        assert!(first.base() >= 100_000 && second.base().abs_diff(first.base()) >= RANGE);
        drop((first, second));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_the_dead_owners_claims_are_released() {
        let directory = tempfile::tempdir().unwrap();
        let (dead, live) = (Id::random(), Id::random());
        std::mem::forget(UidRange::claim(directory.path(), signature(dead).path()).unwrap());
        let kept = UidRange::claim(directory.path(), signature(live).path()).unwrap();
        release_claims_of(directory.path(), dead).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(kept.claim.exists());
    }
}

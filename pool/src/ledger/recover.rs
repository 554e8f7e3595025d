//! Closes the segment of a process that died: cuts a torn tail, ends what was open, and records both.

use std::{collections::BTreeSet, fs::File, path::Path};

use super::{
    Ledger, LedgerError, directory,
    record::Event,
    segment::{Rest, Segment, segment_path},
};
use crate::id::{GenerationId, InstanceId};

/// Records in `ledger` what the dead process `instance` left open. Its sandboxes must be gone.
pub(crate) fn recover(data_dir: &Path, instance: InstanceId, ledger: &Ledger) -> Result<(), LedgerError> {
    let path = segment_path(&directory(data_dir), instance);
    let write = |error| LedgerError::Write { path: path.clone(), error };
    let segment = match Segment::read(&path, instance) {
        Ok(segment) => segment,
        // It died before it wrote anything.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(write(error)),
    };
    if segment.closed() {
        return Ok(());
    }
    let cut = match segment.rest {
        Rest::Nothing => 0,
        Rest::Torn(bytes) => bytes,
        Rest::Damage { line, what } => return Err(LedgerError::Damaged { path, line, what }),
    };
    if cut > 0 {
        File::options().write(true).open(&path).and_then(|file| file.set_len(segment.length)).map_err(write)?;
    }
    ledger.append(Event::Recovered {
        instance,
        generations: open_generations(&segment),
        length: segment.length,
        cut,
        hash: segment.chain.as_str().to_owned(),
    })
}

/// Generations that began and did not end.
pub(super) fn open_generations(segment: &Segment) -> Vec<GenerationId> {
    let mut open = BTreeSet::new();
    for entry in &segment.entries {
        match &entry.event {
            Event::Clean { generation, .. } | Event::Consumed { generation, .. } => {
                open.insert(*generation);
            }
            Event::Ended { generation, .. } => {
                open.remove(generation);
            }
            _ => {}
        }
    }
    open.into_iter().collect()
}

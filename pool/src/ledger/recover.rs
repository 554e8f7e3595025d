//! Closes the segment of a process that died: cuts a torn tail, ends what was open, and records both.

use std::{collections::BTreeSet, fs::File, path::Path};

use super::{
    Ledger, LedgerError, directory,
    record::Event,
    segment::{Rest, Segment, segments as segments_in},
};
use crate::id::{GenerationId, InstanceId};

/// Records in `ledger` what the dead process `instance` left open. Its sandboxes must be gone.
pub(crate) fn recover(data_dir: &Path, instance: InstanceId, ledger: &Ledger) -> Result<(), LedgerError> {
    let directory = directory(data_dir);
    let unreadable = |error| LedgerError::Read { path: directory.clone(), error };
    let mut segments = Vec::new();
    for (writer, path) in segments_in(&directory).map_err(unreadable)? {
        if writer == instance {
            segments.push(Segment::read(&path, instance).map_err(unreadable)?);
        }
    }
    // Nothing: it died before it wrote anything.
    let Some(last) = segments.last().filter(|last| !last.closed()) else { return Ok(()) };
    let path = last.path.clone();
    let cut = match &last.rest {
        Rest::Nothing => 0,
        Rest::Torn(bytes) => *bytes,
        Rest::Damage { line, what } => {
            return Err(LedgerError::Damaged { path, line: *line, what: what.clone() });
        }
    };
    // Also gives back what was reserved behind the last record.
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(last.length))
        .map_err(|error| LedgerError::Write { path, error })?;
    ledger.append(Event::Recovered {
        instance,
        generations: open_generations(&segments),
        length: last.length,
        cut,
        hash: last.chain.as_str().to_owned(),
    })
}

/// Generations that began and did not end, in the segments of one process.
pub(super) fn open_generations(segments: &[Segment]) -> Vec<GenerationId> {
    let mut open = BTreeSet::new();
    for entry in segments.iter().flat_map(|segment| &segment.entries) {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        instance::Instance,
        ledger::{JobRef, audit, segment::segment_path},
        tier::Tier,
    };

    struct Node {
        data: tempfile::TempDir,
        run: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            Self { data: tempfile::tempdir().unwrap(), run: tempfile::tempdir().unwrap() }
        }

        fn open(&self) -> (Instance, Ledger) {
            let instance = Instance::register(self.run.path(), self.data.path()).unwrap();
            let ledger = Ledger::open(self.data.path(), &instance).unwrap();
            (instance, ledger)
        }

        /// A process that consumed a generation and died: its segment is left as it was.
        fn crash(&self) -> (InstanceId, std::path::PathBuf) {
            let (instance, ledger) = self.open();
            let generation = crate::id::Id::random();
            ledger.append(Event::Clean { generation, tier: Tier::Chroot, image: "i".to_owned() }).unwrap();
            let job = JobRef { id: "j".to_owned(), tenant: "t".to_owned(), attempt: 1 };
            ledger.append(Event::Consumed { generation, job }).unwrap();
            let path = segment_path(&directory(self.data.path()), instance.id(), 0);
            instance.retire();
            (instance.id(), path)
        }
    }

    #[test]
    fn what_a_crash_left_open_is_ended_and_the_audit_passes() {
        let node = Node::new();
        let (dead, _) = node.crash();
        assert!(!audit(node.data.path(), node.run.path()).unwrap().passed());
        let (_instance, ledger) = node.open();
        recover(node.data.path(), dead, &ledger).unwrap();
        let audit = audit(node.data.path(), node.run.path()).unwrap();
        assert!(audit.passed(), "{audit:?}");
        assert!(audit.unproved.is_empty());
    }

    #[test]
    fn a_torn_tail_is_cut_and_named_as_an_unproved_window() {
        let node = Node::new();
        let (dead, path) = node.crash();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 7]).unwrap();
        let (_instance, ledger) = node.open();
        recover(node.data.path(), dead, &ledger).unwrap();
        let audit = audit(node.data.path(), node.run.path()).unwrap();
        assert!(audit.passed(), "{audit:?}");
        assert_eq!(audit.unproved.len(), 1);
        assert_eq!(audit.unproved[0].instance, dead);
    }

    #[test]
    fn damage_in_the_middle_is_refused_with_its_line() {
        let node = Node::new();
        let (dead, path) = node.crash();
        let mut bytes = fs::read(&path).unwrap();
        bytes[10] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (_instance, ledger) = node.open();
        let refused = recover(node.data.path(), dead, &ledger).unwrap_err();
        assert!(matches!(refused, LedgerError::Damaged { line: 1, .. }), "{refused}");
    }

    #[test]
    fn a_recovered_segment_that_changes_afterwards_is_found() {
        let node = Node::new();
        let (dead, path) = node.crash();
        let (_instance, ledger) = node.open();
        recover(node.data.path(), dead, &ledger).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let shorter: String = text.split_inclusive('\n').take(2).collect();
        fs::write(&path, shorter).unwrap();
        assert!(!audit(node.data.path(), node.run.path()).unwrap().passed());
    }
}

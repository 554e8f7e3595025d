//! A kernel's first root file system: a `cpio` archive in the one format that Linux reads, see
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use crate::AGENT;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const NODE: u32 = 0o020_600;

/// The agent as `/init`, drivers below `/modules`, and what a program must find before it can mount anything.
pub(super) fn archive(modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "modules"] {
        archive.entry(directory, DIRECTORY, &[], (0, 0));
    }
    // The kernel opens the one for its first process; without the other Rust's runtime ends at once.
    archive.entry("dev/console", NODE, &[], (5, 1));
    archive.entry("dev/null", NODE, &[], (1, 3));
    archive.entry("init", PROGRAM, AGENT, (0, 0));
    for (name, module) in modules {
        archive.entry(&format!("modules/{name}"), FILE, module, (0, 0));
    }
    archive.entry("TRAILER!!!", 0, &[], (0, 0));
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let (links, owner, time) = (1, 0, 0);
        let length = content.len() as u32;
        let name_length = name.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        let fields =
            [self.entries, mode, owner, owner, links, time, length, 0, 0, device.0, device.1, name_length, 0];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_carry_their_lengths() {
        let mut archive = Archive::default();
        archive.entry("abc", FILE, b"12345", (0, 0));
        archive.entry("TRAILER!!!", 0, &[], (0, 0));
        let text = &archive.bytes;
        assert_eq!(&text[..14], b"07070100000001");
        assert_eq!(&text[54..62], b"00000005");
        // The head is 110 bytes; what follows begins at a multiple of four.
        assert_eq!((&text[110..113], &text[116..121]), (b"abc" as &[u8], b"12345" as &[u8]));
        assert_eq!(text.len() % 4, 0);
    }
}

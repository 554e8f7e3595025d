//! The terminal while it is drawn on: its other screen, keys one at a time, and everything as it was afterwards.

use std::io::{self, Write, stdin, stdout};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::read,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";
const HOME: &[u8] = b"\x1b[H";
const REST_OF_LINE: &[u8] = b"\x1b[K";
const REST_OF_SCREEN: &[u8] = b"\x1b[J";

/// A terminal that is ours until this is dropped.
pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    pub(super) fn take(out: &mut impl Write) -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut ours = before.clone();
        // Ctrl-C comes as a key, so that what follows from it is the same as from `q`.
        ours.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(stdin(), OptionalActions::Now, &ours)?;
        let terminal = Self { before };
        out.write_all(ENTER)?;
        out.flush()?;
        Ok(terminal)
    }

    /// Keys that were pressed. A terminal that has gone presses `q`.
    #[expect(clippy::unused_self, reason = "there are keys as long as the terminal is ours")]
    pub(super) fn keys(&self) -> io::Result<Vec<u8>> {
        let stdin = stdin();
        let mut watched = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
            return Ok(Vec::new());
        }
        let mut keys = [0; 64];
        match read(&stdin, &mut keys)? {
            0 => Ok(vec![b'q']),
            count => Ok(keys[..count].to_vec()),
        }
    }

    /// Columns and rows.
    #[expect(clippy::unused_self, reason = "it has a size as long as it is ours")]
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Draws over what was drawn before, in one go: nothing flickers.
    #[expect(clippy::unused_self, reason = "it is drawn on as long as it is ours")]
    pub(super) fn show(&self, out: &mut impl Write, lines: &[String]) -> io::Result<()> {
        let mut screen = HOME.to_vec();
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                screen.extend_from_slice(b"\r\n");
            }
            screen.extend_from_slice(line.as_bytes());
            screen.extend_from_slice(REST_OF_LINE);
        }
        screen.extend_from_slice(REST_OF_SCREEN);
        out.write_all(&screen)?;
        out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing is left to be done about a terminal that has gone.
        let _ = stdout().write_all(LEAVE).and_then(|()| stdout().flush());
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

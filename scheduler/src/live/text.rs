//! Untrusted bytes as text that can be shown: nothing in it is obeyed by a terminal, and nothing hides or turns letters.
//!
//! Control characters are written as `cat -v` does (`^[`), what has no such form or is no UTF-8 by its numbers (`\u{202e}`,
//! `\xff`).

use std::fmt::Write;

/// One line, of so many letters at most.
pub(crate) fn line(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (count, letter) in text.chars().enumerate() {
        if count == most {
            shown.push('…');
            break;
        }
        push(&mut shown, letter, false);
    }
    shown
}

/// Several lines, of so many bytes at most. Whether that is all.
pub(crate) fn lines(bytes: &[u8], most: usize) -> (String, bool) {
    let kept = &bytes[..bytes.len().min(most)];
    let mut stream = Stream::default();
    let mut shown = stream.push(kept);
    if kept.len() == bytes.len() {
        shown.push_str(&stream.end());
    }
    (shown, kept.len() == bytes.len())
}

/// Text that comes in pieces: a letter may be cut by the end of one.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    cut: Vec<u8>,
}

impl Stream {
    /// The next piece.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.cut);
        all.extend_from_slice(bytes);
        let mut shown = String::with_capacity(all.len());
        let mut chunks = all.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            chunk.valid().chars().for_each(|letter| push(&mut shown, letter, true));
            // Nothing follows: it may be the beginning of a letter, which has four bytes at most.
            if chunks.peek().is_none() && may_go_on(chunk.invalid()) {
                self.cut = chunk.invalid().to_vec();
            } else {
                escape(&mut shown, chunk.invalid());
            }
        }
        shown
    }

    /// No more comes.
    pub(crate) fn end(&mut self) -> String {
        let mut shown = String::new();
        escape(&mut shown, &std::mem::take(&mut self.cut));
        shown
    }
}

fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn push(shown: &mut String, letter: char, lines: bool) {
    match letter {
        '\n' | '\t' if lines => shown.push(letter),
        '\0'..='\u{1f}' | '\u{7f}' => shown.extend(['^', char::from(letter as u8 ^ 0x40)]),
        _ if letter.is_control() || turns_or_hides(letter) => {
            // A String takes everything.
            let _ = write!(shown, "\\u{{{:x}}}", letter as u32);
        }
        _ => shown.push(letter),
    }
}

/// Characters that turn the direction of writing or take no room: they make one text look like another.
fn turns_or_hides(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn escape(shown: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(shown, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_is_obeyed_or_hides() {
        let (shown, whole) = lines(b"a\x1b[31mred\r\n\tb\x00\x7f\xff\xfe\xc2\x9b", 100);
        assert_eq!((shown.as_str(), whole), ("a^[[31mred^M\n\tb^@^?\\xff\\xfe\\u{9b}", true));
        assert_eq!(line("x\ny\u{202e}z\u{200b}", 100), "x^Jy\\u{202e}z\\u{200b}");
        assert_eq!(line("abcdef", 3), "abc…");
        assert_eq!(lines(b"abcdef", 3), ("abc".to_owned(), false));
    }

    #[test]
    fn a_letter_that_comes_in_two_pieces_is_one() {
        let euro = "€".as_bytes();
        let mut stream = Stream::default();
        assert_eq!((stream.push(&euro[..2]), stream.push(&euro[2..])), (String::new(), "€".to_owned()));
        assert_eq!((stream.push(&euro[..1]), stream.push(b"a")), (String::new(), "\\xe2a".to_owned()));
        assert_eq!((stream.push(&euro[..2]), stream.end()), (String::new(), "\\xe2\\x82".to_owned()));
        assert_eq!(stream.push(b"\xff"), "\\xff", "that never begins a letter");
    }
}

//! Patterns of a `Get`: paths whose names may hold `*`, `?`, `[…]`, or be `**`.
//!
//! Names are matched one by one, as bytes that are usually UTF-8, so a job's odd file names cannot confuse it. The
//! usual crates match `str` or bring a whole regex engine along, which is half the agent's size.
//!
//! - `*` is any run of characters, a leading dot included; `?` is any one; neither crosses a `/`.
//! - `[abc]`, `[a-z]`, `[!a-z]` is one character of (or not of) a set; `[*]` is how to say a star itself.
//! - `**`, alone between slashes, is any number of directories, none included.
//! - A pattern that matches a directory means all that is below it.

use std::ffi::{CStr, CString};

use agent::message::FileError;

/// A pattern, ready to be walked.
#[derive(Debug)]
pub(crate) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Literal(CString),
    Wild(Vec<Token>),
    /// `**`
    Any,
}

#[derive(Debug)]
enum Token {
    Char(char),
    One,
    Run,
    Set { negated: bool, ranges: Vec<(char, char)> },
}

/// Where in a pattern a path may stand: a bit for each part that comes next. A path of many `**` stands at several
/// places at once, which is what keeps matching from ever going back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position(u128);

/// Parts of a pattern, at most, so that a [`Position`] has a bit for each and one for the end.
const MAX_PARTS: usize = 127;

impl Position {
    /// Before the first part after so many names that a pattern says literally.
    pub(crate) fn after(names: usize) -> Self {
        Self(1 << names)
    }

    fn has(self, part: usize) -> bool {
        self.0 & (1 << part) != 0
    }

    /// Nothing below can match.
    pub(crate) fn is_lost(self) -> bool {
        self.0 == 0
    }
}

impl Pattern {
    pub(crate) fn parse(pattern: &str) -> Result<Self, FileError> {
        let relative = pattern.strip_prefix('/').ok_or(FileError::BadPath)?;
        let parts = match relative {
            "" => Vec::new(),
            relative => relative.split('/').map(parse_part).collect::<Result<_, _>>()?,
        };
        if parts.len() > MAX_PARTS { Err(FileError::BadPattern) } else { Ok(Self { parts }) }
    }

    /// The names before the first wildcard, where there is nothing to search, but for the last name of all.
    pub(crate) fn fixed_prefix(&self) -> impl Iterator<Item = &CStr> {
        let all_but_last = self.parts.len().saturating_sub(1);
        self.parts[..all_but_last].iter().map_while(|part| match part {
            Part::Literal(name) => Some(name.as_c_str()),
            Part::Wild(_) | Part::Any => None,
        })
    }

    /// The last name, if the pattern has no wildcard at all.
    pub(crate) fn fixed_last(&self) -> Option<&CStr> {
        match self.parts.last() {
            Some(Part::Literal(name)) if self.fixed_prefix().count() == self.parts.len() - 1 => Some(name),
            _ => None,
        }
    }

    /// Whether a path at `position` is matched, by itself or by a directory above it.
    pub(crate) fn is_match(&self, position: Position) -> bool {
        position.has(self.parts.len())
    }

    /// The position one name further.
    pub(crate) fn step(&self, position: Position, name: &[u8]) -> Position {
        let mut next = 0;
        // Bits only ever move up, so one pass also takes each `**` as no directory at all.
        let mut here = position.0;
        for (at, part) in self.parts.iter().enumerate() {
            if here & (1 << at) == 0 {
                continue;
            }
            match part {
                Part::Any => {
                    next |= 1 << at;
                    here |= 1 << (at + 1);
                }
                Part::Literal(literal) if literal.to_bytes() == name => next |= 1 << (at + 1),
                Part::Wild(tokens) if matches(tokens, name) => next |= 1 << (at + 1),
                Part::Literal(_) | Part::Wild(_) => {}
            }
        }
        // Below a match everything matches.
        next |= here & (1 << self.parts.len());
        Position(next)
    }

    /// Whether an absolute path is matched.
    pub(crate) fn covers(&self, path: &[u8]) -> bool {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let end = names.fold(Position::after(0), |position, name| self.step(position, name));
        self.is_match(end)
    }
}

fn parse_part(part: &str) -> Result<Part, FileError> {
    match part {
        "" | "." | ".." => Err(FileError::BadPath),
        "**" => Ok(Part::Any),
        part if part.contains('\0') => Err(FileError::BadPath),
        part if part.contains("**") => Err(FileError::BadPattern),
        part if part.contains(['*', '?', '[']) => parse_tokens(part).map(Part::Wild),
        part => CString::new(part).map(Part::Literal).map_err(|_| FileError::BadPath),
    }
}

fn parse_tokens(part: &str) -> Result<Vec<Token>, FileError> {
    let mut tokens = Vec::new();
    let mut chars = part.chars();
    while let Some(char) = chars.next() {
        tokens.push(match char {
            '*' => Token::Run,
            '?' => Token::One,
            '[' => parse_set(&mut chars)?,
            other => Token::Char(other),
        });
    }
    Ok(tokens)
}

/// Reads a set, whose `[` is taken already. A `]` in the first place is a member of it.
fn parse_set(chars: &mut std::str::Chars<'_>) -> Result<Token, FileError> {
    let negated = chars.as_str().starts_with('!');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    loop {
        let low = chars.next().ok_or(FileError::BadPattern)?;
        if low == ']' && !ranges.is_empty() {
            return Ok(Token::Set { negated, ranges });
        }
        let rest = chars.as_str();
        // A `-` right before the end stands for itself.
        let high = if rest.starts_with('-') && !rest.starts_with("-]") {
            chars.next();
            chars.next().ok_or(FileError::BadPattern)?
        } else {
            low
        };
        ranges.push((low, high));
    }
}

/// Whether `name` as a whole is what `tokens` say. Goes back to the last `*` only, so it never takes more than
/// `tokens × name` steps.
fn matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut retry = None;
    loop {
        if let Some(Token::Run) = tokens.get(token) {
            retry = Some((token, at));
            token += 1;
            continue;
        }
        let (char, len) = first_char(&name[at..]);
        if len == 0 && token == tokens.len() {
            return true;
        }
        if len > 0 && tokens.get(token).is_some_and(|token| token.takes(char)) {
            token += 1;
            at += len;
            continue;
        }
        // Let the last `*` take one character more.
        let Some((run, from)) = retry else { return false };
        let (_, skipped) = first_char(&name[from..]);
        if skipped == 0 {
            return false;
        }
        retry = Some((run, from + skipped));
        (token, at) = (run + 1, from + skipped);
    }
}

/// The first character and its length in bytes. A byte that is not UTF-8 counts as one replacement character.
fn first_char(bytes: &[u8]) -> (char, usize) {
    let start = &bytes[..bytes.len().min(4)];
    let valid = match str::from_utf8(start) {
        Ok(text) => text,
        Err(error) => str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default(),
    };
    match (valid.chars().next(), bytes.is_empty()) {
        (Some(char), _) => (char, char.len_utf8()),
        (None, empty) => (char::REPLACEMENT_CHARACTER, usize::from(!empty)),
    }
}

impl Token {
    fn takes(&self, char: char) -> bool {
        match self {
            Self::Char(own) => *own == char,
            Self::One => true,
            Self::Run => false,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&char)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, path: &str) -> bool {
        Pattern::parse(pattern).expect("a pattern").covers(path.as_bytes())
    }

    #[test]
    fn a_star_stays_within_one_name() {
        assert!(covers("/job/*.txt", "/job/a.txt"));
        assert!(covers("/job/*.txt", "/job/.txt"));
        assert!(covers("/job/a*b*c", "/job/aXbbYc"));
        assert!(!covers("/job/a*b*c", "/job/aXbbYcd"));
        assert!(!covers("/job/*.txt", "/job/sub/a.txt"));
        assert!(!covers("/job/*.txt", "/job/a.txt.gz"));
    }

    #[test]
    fn a_question_mark_is_one_character_and_not_one_byte() {
        assert!(covers("/?", "/a"));
        assert!(covers("/?", "/ä"));
        assert!(!covers("/?", "/ab"));
        assert!(Pattern::parse("/a?b").expect("a pattern").covers(b"/a\xffb"));
    }

    #[test]
    fn a_set_takes_one_of_its_members() {
        assert!(covers("/[a-c]x", "/bx"));
        assert!(!covers("/[!a-c]x", "/bx"));
        assert!(covers("/[!a-c]x", "/dx"));
        assert!(covers("/[*]", "/*"));
        assert!(!covers("/[*]", "/a"));
        assert!(covers("/[]]", "/]"));
        assert!(covers("/[a-]", "/-"));
    }

    #[test]
    fn two_stars_take_any_number_of_directories() {
        assert!(covers("/job/**/x", "/job/x"));
        assert!(covers("/job/**/x", "/job/a/b/c/x"));
        assert!(covers("/**/a/**/b", "/1/a/2/a/3/b"));
        assert!(covers("/job/**", "/job/a/b"));
        assert!(!covers("/job/**", "/other/a"));
        assert!(!covers("/job/**/x", "/job/a/y"));
    }

    #[test]
    fn a_directory_means_all_below_it() {
        assert!(covers("/job/out", "/job/out/a/b"));
        assert!(covers("/job/o*", "/job/out/a/b"));
        assert!(covers("/", "/anything"));
        assert!(!covers("/job/out", "/job/outer"));
    }

    #[test]
    fn a_pattern_that_backtracks_everywhere_still_ends_at_once() {
        let pattern = format!("/{}b", "*a".repeat(100).replace("**", "*"));
        assert!(!covers(&pattern, &format!("/{}", "a".repeat(255))));
    }

    #[test]
    fn bad_patterns_are_told_apart() {
        let error = |pattern: &str| Pattern::parse(pattern).err();
        assert_eq!(error("job/*"), Some(FileError::BadPath));
        assert_eq!(error("/job/../x"), Some(FileError::BadPath));
        assert_eq!(error("/job//x"), Some(FileError::BadPath));
        assert_eq!(error("/job/\0"), Some(FileError::BadPath));
        assert_eq!(error("/job/[a"), Some(FileError::BadPattern));
        assert_eq!(error("/job/a**"), Some(FileError::BadPattern));
        assert_eq!(error(&"/a".repeat(128)), Some(FileError::BadPattern));
        assert_eq!(error(&"/a".repeat(127)), None);
    }
}

//! What whoever asks must show where others than this host can ask: a token, or, for a browser that has given it once, a
//! pass that is good for a while.
//!
//! The token comes in by a form and never in an address, so it is in no history and no log. A pass is a time and the
//! digest of that with a key of this process: nothing is remembered, and all passes end with the process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, COOKIE},
};
use sha2::{Digest, Sha256};

const SHORTEST: usize = 16;
/// How long a pass is good.
const LASTING: Duration = Duration::from_secs(12 * 60 * 60);

/// What whoever asks must show. Only its digest is kept.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
    key: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A token, unless it is too short or cannot be sent.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let good = text.len() >= SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut key = [0; 32];
        getrandom::fill(&mut key).ok()?;
        good.then(|| Self { digest: digest(&[text.as_bytes()]), key })
    }

    /// Whether this is it. Digests are compared, so how long that takes tells nothing of the token.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        digest(&[shown]) == self.digest
    }

    /// Whether the question shows it, or a pass that is still good.
    pub(super) fn is_shown(&self, headers: &HeaderMap, now: SystemTime, port: u16) -> bool {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let name = format!("{}=", cookie(port));
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut passes = cookies.flat_map(|all| all.split("; ")).filter_map(|one| one.strip_prefix(&name));
        bearer.is_some_and(|shown| self.is(shown)) || passes.any(|pass| self.lets_in(pass, now))
    }

    /// What a browser is given to keep, for its next questions.
    pub(super) fn pass(&self, now: SystemTime, port: u16) -> String {
        let until = seconds(now + LASTING);
        let (name, seal) = (cookie(port), self.seal(until));
        format!("{name}={until}.{seal}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict", LASTING.as_secs())
    }

    fn lets_in(&self, pass: &str, now: SystemTime) -> bool {
        let Some((until, seal)) = pass.split_once('.') else { return false };
        let Ok(until) = until.parse::<u64>() else { return false };
        until > seconds(now) && digest(&[seal.as_bytes()]) == digest(&[self.seal(until).as_bytes()])
    }

    fn seal(&self, until: u64) -> String {
        // All three are of a fixed length, the secret ones on both sides.
        let sealed = digest(&[&self.key, &until.to_be_bytes(), &self.digest]);
        URL_SAFE_NO_PAD.encode(sealed)
    }
}

/// Cookies know no port, and two processes of a host have two.
fn cookie(port: u16) -> String {
    format!("mayfly-{port}")
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), Sha256::chain_update).finalize().into()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cookie(pass: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, format!("other=1; {pass}").parse().unwrap());
        headers
    }

    #[test]
    fn a_pass_is_good_for_its_time_at_its_port_and_with_its_process() {
        let token = Token::new("0123456789abcdef").unwrap();
        let now = SystemTime::now();
        let pass = token.pass(now, 9477);
        assert!(pass.contains("; HttpOnly; SameSite=Strict") && !pass.contains("0123456789abcdef"), "{pass}");
        let pass = pass.split(';').next().unwrap();
        assert!(token.is_shown(&with_cookie(pass), now, 9477));
        assert!(!token.is_shown(&with_cookie(pass), now + LASTING, 9477), "its time is over");
        assert!(!token.is_shown(&with_cookie(pass), now, 9478), "it is another's");
        let later = pass.replacen(char::is_numeric, "9", 6);
        assert!(!token.is_shown(&with_cookie(&later), now, 9477), "its time was changed");
        let next = Token::new("0123456789abcdef").unwrap();
        assert!(!next.is_shown(&with_cookie(pass), now, 9477), "the process has another key");
        assert!(!token.is_shown(&HeaderMap::new(), now, 9477));
    }
}

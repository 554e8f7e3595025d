//! The live page: one document that holds all it needs, and is told what to show by events.
//!
//! Nothing that comes from a job or a tenant is ever part of the document: it comes as data and is put in as text. Should
//! that fail one day, the policy that goes with the document lets no script run but the one whose digest it names, and
//! lets nothing be fetched from or sent to anywhere else.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page/page.html");
const LOGIN: &str = include_str!("page/login.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// A document, and what it may do.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) html: Bytes,
    pub(super) policy: HeaderValue,
}

impl Document {
    /// The page, of an overview or of one job: its address tells it which.
    pub(super) fn page() -> Self {
        Self::of(PAGE)
    }

    /// The question for the token.
    pub(super) fn login() -> Self {
        Self::of(LOGIN)
    }

    fn of(frame: &str) -> Self {
        let html = frame.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
        let digest = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            digest(SCRIPT),
            digest(STYLE)
        );
        let policy = HeaderValue::try_from(policy).expect("base64 and constants are fit for a header");
        Self { html: html.into(), policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_holds_all_it_needs_and_no_handler() {
        for document in [Document::page(), Document::login()] {
            let html = std::str::from_utf8(&document.html).unwrap();
            assert!(
                html.contains(STYLE.trim()) && !html.contains("/*STYLE*/") && !html.contains("/*SCRIPT*/")
            );
            for word in ["http://", "https://", "src=", "@import", "url(", " onclick", " onload", " style=\""]
            {
                assert!(!html.contains(word), "{word}");
            }
        }
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!SCRIPT.contains(word), "{word}: what comes from a job is only ever text");
        }
    }
}

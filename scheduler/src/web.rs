//! What a live process shows over HTTP: `/metrics`, `/healthz` and `/readyz`. Read-only.
//!
//! Whoever can reach the port can ask; where that is not only this host, a token is needed. How many ask at once, how
//! long a question may be and how long an answer may take are bounded: nobody who asks holds up a job.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, WWW_AUTHENTICATE,
        X_CONTENT_TYPE_OPTIONS,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::metrics::{Metrics, View};

/// Who may ask at once. Others wait.
const CONNECTIONS: usize = 64;
/// How long a question may take to come.
const QUESTION: Duration = Duration::from_secs(10);
/// How long a connection may stay: whoever asks again makes another.
const CONNECTION: Duration = Duration::from_secs(300);
/// The longest head of a question.
const LONGEST_HEAD: usize = 16 * 1024;
const SHORTEST_TOKEN: usize = 16;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Nothing can be shown.
#[derive(Debug, Error)]
pub enum WebError {
    /// The address is another's, or none of this host's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// What whoever asks must show. Only its digest is kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A token, unless it is too short or cannot be sent.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let good = text.len() >= SHORTEST_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self::digest(text.as_bytes()))
    }

    fn digest(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether the question shows it. Digests are compared, so how long that takes tells nothing of the token.
    fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| Self::digest(shown).0 == self.0)
    }
}

/// How it is looked at what goes on. `None`: it has just ended.
pub type Look = Arc<dyn Fn() -> Option<View> + Send + Sync>;

/// A place to listen, taken: nobody is answered yet.
#[derive(Debug)]
pub struct Place {
    listener: TcpListener,
    address: SocketAddr,
    token: Option<Token>,
}

/// Answers until it is closed or dropped.
#[derive(Debug)]
pub struct Web {
    server: JoinHandle<()>,
}

impl Place {
    /// Takes the place. Port 0 is any that is free.
    pub async fn take(address: SocketAddr, token: Option<Token>) -> Result<Self, WebError> {
        let failed = |error| WebError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, token })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on.
    #[must_use]
    pub fn answer(self, metrics: Arc<Metrics>, look: Look) -> Web {
        let Self { listener, address, token } = self;
        let answerer = Arc::new(Answerer { metrics, look, token, local: address.ip().is_loopback() });
        Web { server: tokio::spawn(accept(listener, answerer)) }
    }
}

impl Web {
    /// Ends all answers, and waits until nobody looks any more.
    pub async fn close(mut self) {
        self.server.abort();
        // Aborted: that is what was asked for.
        let _ = (&mut self.server).await;
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, answerer: Arc<Answerer>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors left, say: tried again when there may be some.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answerer = Arc::clone(&answerer);
        connections.spawn(async move {
            let _place = place;
            // Whoever is too slow asks again.
            let _ = timeout(CONNECTION, attend(stream, answerer)).await;
        });
    }
}

async fn attend(stream: TcpStream, answerer: Arc<Answerer>) {
    let answer = service_fn(move |question: Request<Incoming>| {
        let answerer = Arc::clone(&answerer);
        async move { Ok::<_, Infallible>(answerer.answer(&question).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(QUESTION).max_buf_size(LONGEST_HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a connection ended");
    }
}

struct Answerer {
    metrics: Arc<Metrics>,
    look: Look,
    token: Option<Token>,
    /// Whether only this host can ask.
    local: bool,
}

type Answer = Response<Full<Bytes>>;

impl Answerer {
    async fn answer<B>(&self, question: &Request<B>) -> Answer {
        if !matches!(*question.method(), Method::GET | Method::HEAD) {
            let mut answer = said(StatusCode::METHOD_NOT_ALLOWED, "this is only to be read\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let trusted = self.token.as_ref().is_none_or(|token| token.is_shown(question.headers()));
        // A page that somebody reads here may have a name that leads here: its scripts are not to read along.
        if self.local && self.token.is_none() && !is_called_locally(question.headers()) {
            return said(StatusCode::MISDIRECTED_REQUEST, "ask by an IP address or as localhost\n");
        }
        match question.uri().path() {
            "/healthz" => said(StatusCode::OK, "ok\n"),
            // Whoever balances load may know whether, and not why.
            "/readyz" => self.readiness(trusted),
            _ if !trusted => {
                let mut answer =
                    said(StatusCode::UNAUTHORIZED, "the token of metrics.token_file is needed\n");
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                answer
            }
            "/metrics" => self.exposition().await,
            _ => said(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
        }
    }

    fn readiness(&self, why_too: bool) -> Answer {
        let Some(view) = (self.look)() else {
            return said(StatusCode::SERVICE_UNAVAILABLE, "not ready\nit has just ended\n");
        };
        let unready = view.unready();
        if unready.is_empty() {
            return said(StatusCode::OK, "ready\n");
        }
        let mut text = "not ready\n".to_owned();
        for why in unready.iter().filter(|_| why_too) {
            text.push_str(&why.replace(char::is_control, " "));
            text.push('\n');
        }
        said(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    async fn exposition(&self) -> Answer {
        let (metrics, view) = (Arc::clone(&self.metrics), (self.look)());
        // Thousands of lines: not on a thread that serves jobs.
        match tokio::task::spawn_blocking(move || metrics.text(view.as_ref())).await {
            Ok(text) => {
                let mut answer = said(StatusCode::OK, text);
                answer.headers_mut().insert(CONTENT_TYPE, EXPOSITION);
                answer
            }
            Err(_) => said(StatusCode::INTERNAL_SERVER_ERROR, "the numbers could not be written\n"),
        }
    }
}

/// Whether the question names this host in a way that no other name server had a say in.
fn is_called_locally(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !is_address(host) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || is_address(name.trim_matches(['[', ']']))
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, TEXT);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests;

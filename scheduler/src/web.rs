//! What a live process shows over HTTP: its page, `/metrics`, `/healthz` and `/readyz`. Read-only.
//!
//! | path | what |
//! | --- | --- |
//! | `/`, `/job/TENANT/ID` | the page (`page`) |
//! | `/events`, `/events/TENANT/ID` | what it shows, as it changes (`events`) |
//! | `/login` | where a browser gives the token (`token`) |
//! | `/metrics`, `/healthz`, `/readyz` | numbers and health |
//!
//! Whoever can reach the port can ask; where that is not only this host, a token is needed. How many ask at once, how
//! long a question may be and how long an answer may take are bounded: nobody who asks holds up a job.

mod events;
mod page;
mod token;

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, LOCATION,
        REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use self::page::Document;
pub use self::token::Token;
use crate::{key::JobKey, live::Look, metrics::Metrics};

/// Who may ask at once. Others wait.
const CONNECTIONS: usize = 64;
/// How long a question may take to come.
const QUESTION: Duration = Duration::from_secs(10);
/// How long a connection may stay: whoever asks again makes another.
const CONNECTION: Duration = Duration::from_secs(300);
/// The longest head of a question.
const LONGEST_HEAD: usize = 16 * 1024;
/// The longest form with a token.
const LONGEST_FORM: usize = 4096;
/// Who may look on at once. Whoever scrapes finds a place all the same.
const ONLOOKERS: usize = CONNECTIONS / 2;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
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
        let answerer = Arc::new(Answerer {
            metrics,
            look,
            token,
            address,
            page: Document::page(),
            login: Document::login(),
            onlookers: Arc::new(Semaphore::new(ONLOOKERS)),
        });
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
        async move {
            Ok::<_, Infallible>(match (question.method(), question.uri().path()) {
                (&Method::POST, "/login") => answerer.admit(question).await,
                _ => answerer.answer(&question).await,
            })
        }
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
    address: SocketAddr,
    page: Document,
    login: Document,
    onlookers: Arc<Semaphore>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Answerer {
    async fn answer<B>(&self, question: &Request<B>) -> Answer {
        if !matches!(*question.method(), Method::GET | Method::HEAD) {
            let mut answer = said(StatusCode::METHOD_NOT_ALLOWED, "this is only to be read\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        if let Some(refusal) = self.refuse_strangers(question.headers()) {
            return refusal;
        }
        let trusted = self
            .token
            .as_ref()
            .is_none_or(|token| token.is_shown(question.headers(), SystemTime::now(), self.address.port()));
        let path = question.uri().path();
        match path {
            "/healthz" => said(StatusCode::OK, "ok\n"),
            // Whoever balances load may know whether, and not why.
            "/readyz" => self.readiness(trusted),
            _ if !trusted => self.ask_for_token(path),
            "/metrics" => self.exposition().await,
            "/" => document(StatusCode::OK, &self.page),
            "/login" => elsewhere("/"),
            "/events" => match events::place(&self.onlookers) {
                Some(place) => stream(events::moments(Arc::clone(&self.look), place)),
                None => too_many(),
            },
            _ => self.of_one_job(path),
        }
    }

    fn of_one_job(&self, path: &str) -> Answer {
        let (of_page, of_events) = (path.strip_prefix("/job/"), path.strip_prefix("/events/"));
        let job = of_page.or(of_events).map(str::parse::<JobKey>);
        match (job, of_events) {
            (Some(Ok(_)), None) => document(StatusCode::OK, &self.page),
            (Some(Ok(job)), Some(_)) => match events::place(&self.onlookers) {
                Some(place) => stream(events::job(Arc::clone(&self.look), job, place)),
                None => too_many(),
            },
            (Some(Err(_)), _) => said(StatusCode::NOT_FOUND, "that names no job: write TENANT/ID\n"),
            (None, _) => said(StatusCode::NOT_FOUND, "there are /, /metrics, /healthz and /readyz\n"),
        }
    }

    /// A page that somebody reads here may have a name that leads here: its scripts are not to read along. One that
    /// asks under our own name is not to take the places of those who look on.
    fn refuse_strangers(&self, headers: &HeaderMap) -> Option<Answer> {
        if self.address.ip().is_loopback() && self.token.is_none() && !is_called_locally(headers) {
            return Some(said(StatusCode::MISDIRECTED_REQUEST, "ask by an IP address or as localhost\n"));
        }
        let value = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        let foreign = matches!(value("sec-fetch-site"), Some(b"cross-site" | b"same-site"));
        let embedded = foreign && value("sec-fetch-mode") != Some(b"navigate");
        embedded.then(|| said(StatusCode::FORBIDDEN, "this is for no other page to ask\n"))
    }

    fn ask_for_token(&self, path: &str) -> Answer {
        if matches!(path, "/" | "/login") || path.starts_with("/job/") {
            return document(StatusCode::UNAUTHORIZED, &self.login);
        }
        let mut answer = said(StatusCode::UNAUTHORIZED, "the token of metrics.token_file is needed\n");
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        answer
    }

    /// A browser gives the token.
    async fn admit<B>(&self, question: Request<B>) -> Answer
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        if let Some(refusal) = self.refuse_strangers(question.headers()) {
            return refusal;
        }
        let Some(token) = &self.token else { return elsewhere("/") };
        let read = timeout(QUESTION, Limited::new(question.into_body(), LONGEST_FORM).collect()).await;
        let Ok(Ok(form)) = read else { return said(StatusCode::BAD_REQUEST, "that is no token\n") };
        let form = form.to_bytes();
        let shown = form.strip_prefix(b"token=").map(decoded).unwrap_or_default();
        if !token.is(&shown) {
            return document(StatusCode::UNAUTHORIZED, &self.login);
        }
        let mut answer = elsewhere("/");
        if let Ok(pass) = HeaderValue::try_from(token.pass(SystemTime::now(), self.address.port())) {
            answer.headers_mut().insert(SET_COOKIE, pass);
        }
        answer
    }

    fn readiness(&self, why_too: bool) -> Answer {
        let Some(view) = self.look.view() else {
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
        let (metrics, view) = (Arc::clone(&self.metrics), self.look.view());
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
    answered(status, TEXT, Full::new(text.into()).boxed_unsync())
}

fn document(status: StatusCode, document: &Document) -> Answer {
    let mut answer = answered(status, HTML, Full::new(document.html.clone()).boxed_unsync());
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, document.policy.clone());
    answer
}

fn stream(events: impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static) -> Answer {
    answered(StatusCode::OK, EVENTS, StreamBody::new(events).boxed_unsync())
}

fn too_many() -> Answer {
    said(StatusCode::SERVICE_UNAVAILABLE, "too many look on already\n")
}

fn elsewhere(path: &'static str) -> Answer {
    let mut answer = said(StatusCode::SEE_OTHER, "");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static(path));
    answer
}

fn answered(status: StatusCode, kind: HeaderValue, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}

/// What a form wrote so that it could be sent.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter().copied();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        plain.push(match byte {
            b'+' => b' ',
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => (high << 4 | low) as u8,
                _ => return Vec::new(),
            },
            byte => byte,
        });
    }
    plain
}

#[cfg(test)]
mod tests;

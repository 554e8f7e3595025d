//! Bytes and requests on their way: from the job to whom it may reach, and back.

use std::{future::Future, io, sync::Arc};

use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_buf, split},
    sync::{oneshot, watch},
};

use crate::{
    record::{Ended, Entry},
    refusal::{Reason, Refusal},
    rule::Target,
};

/// Bytes that are moved at once.
const PIECE: usize = 64 * 1024;

/// Headers that are of one connection and none of the message's own (RFC 9110 §7.6.1), and those for proxies.
const OF_ONE_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const KEEP_ALIVE: [&str; 2] = ["keep-alive", "proxy-connection"];

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;
/// Turns true when the job is over.
pub(crate) type Over = watch::Receiver<bool>;

/// Moves bytes both ways until both sides are done. When the job is over, what it wrote before still goes out.
pub(crate) async fn carry(
    job: impl AsyncRead + AsyncWrite,
    upstream: impl AsyncRead + AsyncWrite,
    entry: &Entry,
    mut over: Over,
) {
    // They outlive both ways: a connection that is dropped has ended, and how is not said yet.
    let ((mut from_job, mut to_job), (mut from_outside, mut to_outside)) = (split(job), split(upstream));
    let out = one_way(&mut from_job, &mut to_outside);
    let back = one_way(&mut from_outside, &mut to_job);
    tokio::pin!(out, back);
    let (mut is_out, mut is_back) = (false, false);
    let ended = loop {
        if is_out && is_back {
            break Ok(());
        }
        tokio::select! {
            done = &mut out, if !is_out => match done {
                Ok(()) => is_out = true,
                Err(error) => break Err(error),
            },
            done = &mut back, if !is_back => match done {
                Ok(()) => is_back = true,
                Err(error) => break Err(error),
            },
            () = job_is_over(&mut over) => {
                let last = if is_out { Ok(()) } else { out.await };
                entry.end(if last.is_ok() { Ended::JobEnded } else { Ended::Failed }, None);
                return;
            }
        }
    };
    // Where a limit has cut it, that is known already.
    entry.end(if ended.is_ok() { Ended::Closed } else { Ended::Failed }, None);
}

/// Waits until the job is over.
pub(crate) async fn job_is_over(over: &mut Over) {
    // Whoever would say so is gone: then it is over, too.
    let _ = over.wait_for(|over| *over).await;
}

async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    copy_buf(&mut BufReader::with_capacity(PIECE, from), to).await?;
    to.shutdown().await
}

/// Where a request goes on to, and what it takes along.
pub(crate) struct Onward<'a> {
    pub(crate) target: &'a Target,
    /// The port that whoever speaks this scheme does not say.
    pub(crate) unsaid_port: u16,
    /// What the host adds, in place of the job's own of these names.
    pub(crate) headers: &'a [(HeaderName, HeaderValue)],
}

/// Sends one request on, over a connection of its own.
pub(crate) async fn request(
    mut request: Request<Incoming>,
    onward: Onward<'_>,
    upstream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    entry: Arc<Entry>,
    mut over: Over,
    spawn: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>),
) -> Result<Response<Body>, Refusal> {
    let target = onward.target;
    let failed = |error: hyper::Error| Refusal::Connect { target: target.clone(), why: error.to_string() };
    let (mut sender, mut connection) = http1::handshake(TokioIo::new(upstream)).await.map_err(failed)?;
    let (asks, is_answered) = oneshot::channel::<()>();
    let noted = entry.clone();
    spawn(Box::pin(async move {
        // It is dropped only after this: a connection that is dropped has ended, and how is not said yet.
        let ended = tokio::select! {
            biased;
            () = job_is_over(&mut over) => Ended::JobEnded,
            ended = async {
                let ended = (&mut connection).await;
                // Who waits for an answer that never comes says why.
                let _ = is_answered.await;
                ended
            } => if ended.is_ok() { Ended::Closed } else { Ended::Failed },
        };
        noted.end(ended, None);
    }));
    to_origin_form(&mut request);
    let host =
        HeaderValue::from_str(&onward.authority()).map_err(|_| Refusal::Request("its host is none"))?;
    let headers = request.headers_mut();
    strip(headers);
    headers.insert(header::HOST, host);
    // Only now: the job names the headers that are stripped.
    for (name, _) in onward.headers {
        headers.remove(name);
    }
    for (name, value) in onward.headers {
        headers.append(name, value.clone());
    }
    let answer = sender.send_request(request).await.map_err(failed);
    let answer = answer.inspect_err(|refusal| entry.end(Ended::Failed, Some(refusal)));
    drop(asks);
    let mut response = answer?;
    strip(response.headers_mut());
    // The other end is done after one request; this way it hears of that.
    Ok(response.map(|body| body.map_frame(move |frame| (&sender, frame).1).boxed()))
}

fn to_origin_form(request: &mut Request<Incoming>) {
    let uri = request.uri();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    // It was part of a URI until now, where a path may be missing before a query.
    *request.uri_mut() = Uri::try_from(format!("{}{query}", uri.path())).unwrap_or_default();
}

impl Onward<'_> {
    /// Default ports are left out: some servers compare.
    pub(crate) fn authority(&self) -> String {
        let Self { target, unsaid_port, .. } = self;
        if target.port == *unsaid_port { target.host.to_string() } else { target.to_string() }
    }
}

pub(crate) fn is_of_one_connection(name: &HeaderName) -> bool {
    OF_ONE_CONNECTION.contains(name) || KEEP_ALIVE.contains(&name.as_str())
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<_> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        .collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        headers.remove(name);
    }
    for name in KEEP_ALIVE {
        headers.remove(name);
    }
}

/// What a job reads that was refused.
pub(crate) fn refuse(refusal: &Refusal) -> Response<Body> {
    let status = match refusal.reason() {
        Reason::Request => StatusCode::BAD_REQUEST,
        Reason::Resolve | Reason::Connect => StatusCode::BAD_GATEWAY,
        Reason::Connections | Reason::Attempts | Reason::Bytes => StatusCode::TOO_MANY_REQUESTS,
        Reason::Name | Reason::Port | Reason::Literal | Reason::Address | Reason::Sni => {
            StatusCode::FORBIDDEN
        }
    };
    let mut response = Response::new(text(format!("{refusal}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("mayfly-denied", HeaderValue::from_static(refusal.reason().name()));
    response
}

/// A body.
pub(crate) fn text(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

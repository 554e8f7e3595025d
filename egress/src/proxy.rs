//! HTTP with the job: a forward proxy that goes by an allow-list, and tunnels that add what the job does not hold.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
    upgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{
    connect::{Upstream, Way},
    fixed::Fixed,
    forward::{self, Body, Onward, Over, carry, refuse},
    record::Ended,
    refusal::Refusal,
    rule::{Host, Rule, Target},
    session::Tasks,
    sni,
    tls::Trust,
};

/// How long a request's head may take, and how long a connection may wait for its next one.
const HEAD: Duration = Duration::from_secs(30);
/// How long the other end may take until TLS stands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The ports that URIs of the two schemes do not say.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;
/// The longest head.
const LONGEST_HEAD: usize = 64 * 1024;
/// The way's name in the record.
const PROXY: &str = "proxy";

/// A job's forward proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) way: Arc<Way>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) tasks: Tasks,
    pub(crate) over: Over,
}

/// A tunnel of kind `http`, with what it adds.
#[derive(Debug)]
pub(crate) struct Injector {
    pub(crate) way: Arc<Way>,
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) tls: Option<Trust>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) tasks: Tasks,
    pub(crate) over: Over,
}

/// Serves one connection of the job's until it ends.
async fn serve<S, F>(stream: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: AsyncAnswer,
{
    let service = service_fn(|request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer.answer(request).await.unwrap_or_else(|refusal| refuse(&refusal))) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD)
        // Who has asked may be done writing.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // What a job sends that is no HTTP has been answered as far as it can be.
    let _ = connection.await;
}

/// Answers the job's requests.
trait AsyncAnswer: Clone + Send + Sync {
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Refusal>> + Send;
}

impl Proxy {
    pub(crate) async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        serve(stream, self).await;
    }

    /// `CONNECT host:port`: from then on bytes, as they are.
    async fn connect(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let asked = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let target = self.target(&asked)?;
        let (upstream, rule) = self.way.reach(PROXY, &target, &self.rules).await?;
        let name = match (&target.host, rule.sni) {
            (Host::Name(name), true) => Some(name.clone()),
            (Host::Address(_), true) | (_, false) => None,
        };
        let over = self.over.clone();
        self.tasks.spawn(async move {
            if let Ok(job) = upgrade::on(request).await {
                tunnel(TokioIo::new(job), upstream, name, over).await;
            }
        });
        Ok(Response::new(forward::text(String::new())))
    }

    /// `GET http://host/…`: one request.
    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let uri = request.uri();
        let refuse = |asked: &str, why| self.refuse(asked, why);
        let Some(authority) = uri.authority() else {
            return Err(refuse(
                &uri.to_string(),
                "this is a proxy: it takes CONNECT host:port and http://host/path",
            ));
        };
        if uri.scheme_str() != Some("http") {
            return Err(refuse(
                authority.as_str(),
                "this proxy takes http:// alone; for https:// it takes CONNECT",
            ));
        }
        if authority.as_str().contains('@') {
            return Err(refuse(authority.host(), "a host with a name and a password before it is not taken"));
        }
        // A port that is none is not the same as no port.
        let asked = match authority.as_str().strip_prefix(authority.host()) {
            Some("" | ":") => format!("{}:{HTTP}", authority.host()),
            _ => authority.to_string(),
        };
        let target = self.target(&asked)?;
        if self.way.rule_for(&target, &self.rules).is_ok_and(|rule| rule.sni) {
            let refusal = Refusal::Sni(format!("{} is reached by TLS alone", target.host));
            self.way.book.refused(PROXY, &target.to_string(), &refusal);
            return Err(refusal);
        }
        let (upstream, _) = self.way.reach(PROXY, &target, &self.rules).await?;
        let (entry, over) = (upstream.entry(), self.over.clone());
        let onward = Onward { target: &target, unsaid_port: HTTP, headers: &[] };
        forward::request(request, onward, upstream, entry, over, |task| self.tasks.spawn(task)).await
    }

    fn target(&self, asked: &str) -> Result<Target, Refusal> {
        asked.parse().map_err(|problem| self.refuse(asked, problem))
    }

    fn refuse(&self, asked: &str, why: &'static str) -> Refusal {
        let refusal = Refusal::Request(why);
        self.way.book.refused(PROXY, asked, &refusal);
        refusal
    }
}

impl AsyncAnswer for Arc<Proxy> {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        if request.method() == Method::CONNECT {
            self.connect(request).await
        } else {
            self.forward(request).await
        }
    }
}

/// Bytes both ways; first, where a rule asks for it, TLS for exactly this name.
pub(crate) async fn tunnel(
    mut job: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: Upstream,
    name: Option<String>,
    over: Over,
) {
    let entry = upstream.entry();
    if let Some(name) = name {
        let begun = match sni::expect(&mut job, &name).await {
            Ok(hello) => upstream.write_all(&hello).await,
            Err(refusal) => {
                entry.end(Ended::Refused, Some(&refusal));
                return;
            }
        };
        if begun.is_err() {
            entry.end(Ended::Failed, None);
            return;
        }
    }
    carry(job, upstream, &entry, over).await;
}

impl Injector {
    pub(crate) async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        serve(stream, self).await;
    }
}

impl AsyncAnswer for Arc<Injector> {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let target = &self.fixed.to;
        let problem = match *request.method() {
            Method::CONNECT => Some("this tunnel leads to one place, and is no proxy"),
            // The other end would answer with the request, and with what was added to it.
            Method::TRACE => Some("this tunnel takes no TRACE"),
            _ => None,
        };
        if let Some(problem) = problem {
            let refusal = Refusal::Request(problem);
            self.way.book.refused(&self.fixed.name, &target.to_string(), &refusal);
            return Err(refusal);
        }
        let (upstream, _) = self.way.reach(&self.fixed.name, target, &[self.fixed.rule()]).await?;
        let entry = upstream.entry();
        let (over, spawn) = (self.over.clone(), |task| self.tasks.spawn(task));
        let onward = |unsaid_port| Onward { target, unsaid_port, headers: &self.headers };
        let Some(tls) = &self.tls else {
            return forward::request(request, onward(HTTP), upstream, entry, over, spawn).await;
        };
        let failed = |why: String| {
            let refusal = Refusal::Connect { target: target.clone(), why };
            entry.end(Ended::Failed, Some(&refusal));
            refusal
        };
        // It outlives what is said of its end, and holds the connection until then.
        let mut connecting = pin!(tls.connect(&target.host, upstream));
        let encrypted = match timeout(HANDSHAKE, &mut connecting).await {
            Ok(Ok(encrypted)) => encrypted,
            Ok(Err((error, _upstream))) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("no TLS stood within {HANDSHAKE:?}"))),
        };
        forward::request(request, onward(HTTPS), encrypted, entry, over, spawn).await
    }
}

//! The one way out: what is asked for is decided, resolved, looked at and only then connected to.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep_until, timeout},
};

use crate::{
    limits::{Meter, Pass},
    record::{Book, Ended, Entry},
    refusal::Refusal,
    resolve::Names,
    rule::{Host, Rule, Target},
};

/// How long one address may take to answer, and how many of a name's are tried.
const PATIENCE: Duration = Duration::from_secs(10);
const ADDRESSES: usize = 4;

/// What all connections of one job have in common.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) tenant: String,
    pub(crate) meter: Arc<Meter>,
    pub(crate) book: Arc<Book>,
    pub(crate) names: Names,
}

/// A connection to outside: counted, limited and recorded.
#[derive(Debug)]
pub(crate) struct Upstream {
    stream: TcpStream,
    entry: Arc<Entry>,
    book: Arc<Book>,
    meter: Arc<Meter>,
    _pass: Pass,
    /// Until the rate allows more.
    nap: Option<Pin<Box<Sleep>>>,
}

impl Way {
    /// Connects to what one of the rules allows. Either way it is recorded.
    pub(crate) async fn reach<'r>(
        &self,
        via: &str,
        target: &Target,
        rules: &'r [Rule],
    ) -> Result<(Upstream, &'r Rule), Refusal> {
        let reached = self.try_to_reach(via, target, rules).await;
        reached.inspect_err(|refusal| self.book.refused(via, &target.to_string(), refusal))
    }

    async fn try_to_reach<'r>(
        &self,
        via: &str,
        target: &Target,
        rules: &'r [Rule],
    ) -> Result<(Upstream, &'r Rule), Refusal> {
        self.meter.attempt()?;
        let rule = self.rule_for(target, rules)?;
        let pass = self.meter.begin()?;
        let addresses = self.names.resolve(target, rule).await?;
        let mut why = String::new();
        for address in addresses.into_iter().take(ADDRESSES) {
            let address = SocketAddr::new(address, target.port);
            match timeout(PATIENCE, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Small pieces are the rule; one that cannot be hurried is none the worse.
                    let _ = stream.set_nodelay(true);
                    let entry = self.book.made(via, &target.to_string(), address);
                    let (book, meter) = (self.book.clone(), self.meter.clone());
                    return Ok((Upstream { stream, entry, book, meter, _pass: pass, nap: None }, rule));
                }
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => why = format!("no answer within {PATIENCE:?}"),
            }
        }
        Err(Refusal::Connect { target: target.clone(), why })
    }

    /// The rule that allows it.
    pub(crate) fn rule_for<'r>(&self, target: &Target, rules: &'r [Rule]) -> Result<&'r Rule, Refusal> {
        let mut known = rules.iter().filter(|rule| rule.knows(&target.host)).peekable();
        let (host, tenant) = (target.host.to_string(), self.tenant.clone());
        if known.peek().is_none() {
            return Err(match target.host {
                Host::Name(_) => Refusal::Name { host, tenant },
                Host::Address(_) => Refusal::Literal { host, tenant },
            });
        }
        let rule = known.find(|rule| rule.ports.has(target.port));
        rule.ok_or_else(|| Refusal::Port { target: target.clone(), tenant })
    }
}

impl Upstream {
    pub(crate) fn entry(&self) -> Arc<Entry> {
        self.entry.clone()
    }

    /// Waits until the rate allows more.
    fn poll_rested(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(nap) = &mut self.nap {
            ready!(nap.as_mut().poll(cx));
            self.nap = None;
        }
        Poll::Ready(())
    }

    fn spend(&mut self, bytes: usize) -> io::Result<()> {
        match self.meter.spend(bytes) {
            Ok(free) => {
                self.nap = free.map(|free| Box::pin(sleep_until(free)));
                Ok(())
            }
            Err(refusal) => {
                self.entry.end(Ended::Refused, Some(&refusal));
                Err(io::Error::other(refusal))
            }
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_rested(cx));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        self.entry.received(read);
        Poll::Ready(self.spend(read))
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_rested(cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.entry.sent(written);
        Poll::Ready(self.spend(written).map(|()| written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.book.over(&self.entry);
    }
}

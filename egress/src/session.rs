//! One attempt's open door.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    connect::Way,
    fixed::{Fixed, Kind},
    forward::job_is_over,
    limits::Meter,
    plan::Plan,
    proxy::{Injector, Proxy, tunnel},
    record::{Asker, Book, Egress},
    resolve::Names,
    secret::{Place, SecretError, SecretRule},
};

/// Where the forward proxy listens in a sandbox: where squid does.
pub const PROXY_PORT: u16 = 3128;

/// How long what a job wrote last may take to go out.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// The door cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A secret cannot be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// A secret that is to lie in a file.
pub struct SecretFile {
    /// Where.
    pub path: String,
    /// What.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What one attempt of a job may reach, while it runs.
pub struct Session {
    ways: BTreeMap<u16, WayOut>,
    environment: BTreeMap<String, String>,
    files: Vec<SecretFile>,
    book: Arc<Book>,
    tasks: Tasks,
    over: watch::Sender<bool>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("ports", &self.ports()).finish_non_exhaustive()
    }
}

/// What stands behind a port.
#[derive(Debug)]
enum WayOut {
    Proxy(Arc<Proxy>),
    Tcp(Arc<Way>, Arc<Fixed>),
    Http(Arc<Injector>),
}

/// What serves connections, until the job is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn take(&self) -> JoinSet<()> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Session {
    /// Opens the door for an attempt of a job: from now on its secrets are known here.
    pub async fn open(plan: &Plan, tenant: &str, job: &str) -> Result<Self, OpenError> {
        let asker = Asker { tenant: tenant.to_owned(), job: job.to_owned() };
        let book = Arc::new(Book::new(asker));
        let way = Arc::new(Way {
            tenant: tenant.to_owned(),
            meter: Arc::new(Meter::new(plan.limits, plan.share.clone(), plan.spent.clone())),
            book: book.clone(),
            names: Names {
                hosts: plan.hosts.clone(),
                resolver: plan.resolver.clone(),
                share: plan.share.clone(),
            },
        });
        let (over, job_over) = watch::channel(false);
        let tasks = Tasks::default();
        let mut session = Self {
            ways: BTreeMap::new(),
            environment: BTreeMap::new(),
            files: Vec::new(),
            book,
            tasks,
            over,
        };
        if !plan.allow.is_empty() {
            let rules = plan.allow.clone();
            let proxy = Proxy { way: way.clone(), rules, tasks: session.tasks.clone(), over: job_over };
            session.ways.insert(PROXY_PORT, WayOut::Proxy(Arc::new(proxy)));
            session.point_to_proxy();
        }
        for fixed in &plan.tunnels {
            let way_out = session.tunnel(&way, fixed).await?;
            session.ways.insert(fixed.port, way_out);
            let place = format!("127.0.0.1:{}", fixed.port);
            session.environment.insert(Fixed::variable(&fixed.name), place);
        }
        for secret in &plan.secrets {
            session.hand_over(secret).await?;
        }
        Ok(session)
    }

    async fn tunnel(&self, way: &Arc<Way>, fixed: &Arc<Fixed>) -> Result<WayOut, OpenError> {
        let Kind::Http { tls, inject } = &fixed.kind else {
            return Ok(WayOut::Tcp(way.clone(), fixed.clone()));
        };
        let mut headers = Vec::with_capacity(inject.len());
        for inject in inject {
            headers.push(inject.header().await?);
        }
        let (way, fixed, tls) = (way.clone(), fixed.clone(), tls.clone());
        let (tasks, over) = (self.tasks.clone(), self.over.subscribe());
        Ok(WayOut::Http(Arc::new(Injector { way, fixed, tls, headers, tasks, over })))
    }

    fn point_to_proxy(&mut self) {
        let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
        for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
            // Some programs know the one spelling, some the other.
            self.environment.insert(name.to_owned(), proxy.clone());
            self.environment.insert(name.to_lowercase(), proxy.clone());
        }
        for name in ["NO_PROXY", "no_proxy"] {
            self.environment.insert(name.to_owned(), "localhost,127.0.0.1,::1".to_owned());
        }
    }

    async fn hand_over(&mut self, secret: &SecretRule) -> Result<(), OpenError> {
        let value = secret.read().await?;
        match &secret.to {
            Some(Place::Env(name)) => {
                let text = String::from_utf8(value.into_bytes());
                let text = text.ok().filter(|text| !text.contains('\0'));
                let text = text.ok_or_else(|| secret.problem("no variable can hold it: it is no text"))?;
                self.environment.insert(name.clone(), text);
            }
            Some(Place::File(path)) => {
                self.files.push(SecretFile { path: path.clone(), bytes: value.into_bytes() });
            }
            None => {}
        }
        Ok(())
    }

    /// Ports of the sandbox's loopback on which the job is to be heard.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.ways.keys().copied().collect()
    }

    /// Variables that the job is to have, secrets among them.
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Secrets that are to lie in files.
    #[must_use]
    pub fn files(&self) -> &[SecretFile] {
        &self.files
    }

    /// Serves a connection that the job made to one of the ports.
    pub fn serve(&self, port: u16, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        match self.ways.get(&port) {
            Some(WayOut::Proxy(proxy)) => self.until_over(proxy.clone().serve(stream)),
            Some(WayOut::Http(injector)) => self.until_over(injector.clone().serve(stream)),
            Some(WayOut::Tcp(way, fixed)) => {
                let (way, fixed, over) = (way.clone(), fixed.clone(), self.over.subscribe());
                self.tasks.spawn(async move {
                    if let Ok((upstream, _)) = way.reach(&fixed.name, &fixed.to, &[fixed.rule()]).await {
                        tunnel(stream, upstream, None, over).await;
                    }
                });
            }
            // The agent says that the job connected to a port on which nobody was to listen.
            None => drop(stream),
        }
    }

    /// Requests end with the job; bytes that it wrote go out.
    fn until_over(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut over = self.over.subscribe();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = job_is_over(&mut over) => {}
            }
        });
    }

    /// The job is over: what it wrote last goes out, everything else ends. Says what it reached and what it was refused.
    pub async fn close(self) -> Egress {
        self.over.send_replace(true);
        let mut tasks = self.tasks.take();
        let _ = timeout(LAST_WORDS, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        // A task may have begun another while it ended.
        self.tasks.take().shutdown().await;
        self.book.close()
    }
}

#[cfg(test)]
mod tests;

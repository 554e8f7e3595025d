//! The servers of the service form, and hosts that serve: everything real, on loopback.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use scheduler::broker::{Answered, Credential, Producer, ReplyBy, Settings, Submission, Submitted};
use serde_json::{Value, json};
use servers::{RabbitMq, Redis, Version};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinHandle};
use worker::JobResult;

use super::{Mayfly, Node, Running, wait::eventually};

/// How long a result may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker's virtual host and a store, both for one test, and a runtime to speak to them.
pub(crate) struct Cluster {
    pub(crate) broker: &'static RabbitMq,
    pub(crate) store: Redis,
    /// Whose jobs they are: nobody else's on this host, where tests share the folder of control sockets.
    pub(crate) tenant: String,
    /// Where hosts find the broker and the store: at a hop before them, if a test has put one there.
    pub(crate) ports: (u16, u16),
    /// How many jobs each host runs at once.
    pub(crate) slots: usize,
    /// The tiers that hosts offer, as TOML.
    pub(crate) tiers: &'static str,
    pub(super) vhost: String,
    pub(super) runtime: Runtime,
    tenants: String,
    artifacts: TempDir,
}

/// A host that serves.
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(super) running: Option<Running>,
}

impl Cluster {
    /// Servers that are set up for one tenant, with these settings of its own and what else follows them (TOML). `None`: a server is not installed, which is said.
    pub(crate) fn new(test: &str, version: Version, tenants: &str) -> Option<Self> {
        match RabbitMq::shared(version) {
            Ok(broker) => Self::on(test, broker, tenants),
            Err(why) => {
                servers::skipped(test, why);
                None
            }
        }
    }

    /// The same on a given broker.
    pub(crate) fn on(test: &str, broker: &'static RabbitMq, tenants: &str) -> Option<Self> {
        if !Redis::is_installed() {
            servers::skipped(test, "redis-server is not installed");
            return None;
        }
        Some(Self::over(broker, Redis::start().unwrap(), tenants))
    }

    /// The same on a given broker and store.
    pub(crate) fn over(broker: &'static RabbitMq, store: Redis, tenants: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (vhost, tenant) = (format!("it-{number}"), format!("acme-{number}"));
        broker.add_vhost(&vhost).unwrap();
        let runtime = Runtime::new().unwrap();
        let tenants = format!("[tenants.{tenant}]\n{tenants}");
        let artifacts = tempfile::tempdir().unwrap();
        let cluster = Self {
            ports: (broker.port(), store.port()),
            slots: 4,
            tiers: "['chroot']",
            artifacts,
            broker,
            store,
            tenant,
            vhost,
            runtime,
            tenants,
        };
        let node = Node::new();
        cluster.mayfly(&node, ["setup"]).finish().code(0);
        cluster
    }

    /// A mayfly of this node that knows these servers.
    pub(crate) fn mayfly<W: Into<String>>(&self, node: &Node, words: impl IntoIterator<Item = W>) -> Mayfly {
        let (user, password) = self.broker.admin();
        let config = format!(
            "[serve]\nslots = {}\ntiers = {}\n\
             [broker]\nurl = 'amqp://{user}@127.0.0.1:{}/{}'\n\
             [store]\nurl = 'redis://127.0.0.1:{}'\nlease = '3s'\n\
             [artifacts]\nfolder = '{}'\n\
             [metrics]\nlisten = '127.0.0.1:0'\n\
             [defaults]\nfloor = 'chroot'\n{}",
            self.slots,
            self.tiers,
            self.ports.0,
            self.vhost,
            self.ports.1,
            self.artifacts.path().display(),
            self.tenants,
        );
        node.mayfly(words)
            .env("MAYFLY_CONFIG", node.write("mayfly.toml", config))
            .env("MAYFLY_BROKER_PASSWORD", password)
    }

    /// A host that serves from now on.
    pub(crate) fn host(&self) -> Host {
        let mut host = Host::idle();
        self.serve(&mut host, |mayfly| mayfly);
        host
    }

    /// A host that does not serve yet.
    pub(crate) fn idle_host() -> Host {
        Host { node: Node::new(), running: None }
    }

    /// Lets a host serve that does not, with its configuration changed.
    pub(crate) fn serve_changed(
        &self,
        host: &mut Host,
        change: impl FnOnce(&str) -> String,
        more: impl FnOnce(Mayfly) -> Mayfly,
    ) {
        drop(self.mayfly(&host.node, ["serve"]));
        let text = std::fs::read_to_string(host.node.file("mayfly.toml")).unwrap();
        let path = host.node.write("changed.toml", change(&text));
        self.serve(host, |mayfly| more(mayfly.env("MAYFLY_CONFIG", path)));
    }

    /// Lets a host serve that does not.
    pub(crate) fn serve(&self, host: &mut Host, change: impl FnOnce(Mayfly) -> Mayfly) {
        host.running = Some(change(self.mayfly(&host.node, ["serve"])).start());
    }

    /// The broker, for any client.
    pub(crate) fn url(&self) -> String {
        let (user, password) = self.broker.admin();
        format!("amqp://{user}:{password}@127.0.0.1:{}/{}", self.broker.port(), self.vhost)
    }

    /// A producer's connection, as the tenant.
    pub(crate) fn producer(&self, replies: ReplyBy) -> Producer {
        self.producer_of(&self.tenant, replies)
    }

    /// The same as another tenant.
    pub(crate) fn producer_of(&self, tenant: &str, replies: ReplyBy) -> Producer {
        self.runtime.block_on(Producer::connect(&self.settings(), tenant, replies)).unwrap()
    }

    /// The broker, for mayfly's client.
    pub(super) fn settings(&self) -> Settings {
        let (user, password) = self.broker.admin();
        let url = format!("amqp://{user}@127.0.0.1:{}/{}", self.broker.port(), self.vhost);
        Settings::new(&url, &Credential::new(password)).unwrap()
    }

    /// Sends anything, by any way.
    pub(crate) fn submit(&self, producer: &Producer, submission: Submission) -> Submitted {
        self.runtime.block_on(producer.submit(submission)).unwrap()
    }

    /// Sends anything.
    pub(crate) fn send(&self, producer: &Producer, id: &str, body: impl Into<Vec<u8>>) -> Submitted {
        self.submit(producer, submission(id, body))
    }

    /// The same, without waiting for the broker.
    pub(crate) fn sending(
        &self,
        producer: Producer,
        id: &str,
        body: impl Into<Vec<u8>>,
    ) -> JoinHandle<Submitted> {
        let submission = submission(id, body);
        self.runtime.spawn(async move { producer.submit(submission).await.unwrap() })
    }

    /// Waits for something that happens on the cluster's runtime.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
    }

    /// Waits for what a producer is answered.
    pub(crate) fn answer(&self, sent: Submitted) -> JobResult {
        let answered = async { tokio::time::timeout(PATIENCE, sent.result()).await };
        let Answered { result, .. } = self.runtime.block_on(answered).expect("an answer in time").unwrap();
        result.unwrap()
    }

    /// What a job of the tenant is called everywhere.
    pub(crate) fn key(&self, id: &str) -> String {
        format!("{}/{id}", self.tenant)
    }

    /// The result that the store has of a job, as soon as there is one.
    pub(crate) fn result(&self, node: &Node, id: &str) -> Value {
        eventually("the job has its result", || {
            let asked = self.mayfly(node, ["result", &self.key(id)]).finish();
            asked.succeeded().then(|| asked.json())
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.broker.delete_vhost(&self.vhost) {
            assert!(std::thread::panicking(), "the virtual host stays: {error}");
        }
    }
}

impl Host {
    /// One that does not serve yet.
    pub(crate) fn idle() -> Self {
        Self { node: Node::new(), running: None }
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.running.as_mut().expect("it serves").has_ended()
    }

    /// How it ended by itself.
    pub(crate) fn ended(&mut self) -> super::Finished {
        self.running.take().expect("it served").finish()
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().expect("it serves")
    }

    /// Waits until it has ended by itself.
    pub(crate) fn end(&mut self) -> super::Finished {
        self.running.take().expect("it serves").finish()
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        drop(self.running.take());
    }

    /// Tells it to drain, and waits until it has.
    pub(crate) fn stop(&mut self) -> super::Finished {
        let mut running = self.running.take().expect("it serves");
        running.signal(rustix::process::Signal::TERM);
        running.end_soon();
        running.finish()
    }

    /// Everything that the ledger holds is in order, and nothing is left.
    pub(crate) fn check(&self) {
        self.node.mayfly(["audit", "verify"]).finish().code(0);
        assert_eq!(self.node.leftovers(), [""; 0]);
    }
}

/// A job of the tenant's, as it is sent.
pub(crate) fn submission(id: &str, body: impl Into<Vec<u8>>) -> Submission {
    Submission {
        body: body.into(),
        key: "trusted".to_owned(),
        id: Some(id.to_owned()),
        expires: None,
        traceparent: None,
    }
}

/// A job that runs a shell script.
pub(crate) fn script(text: &str, more: &Value) -> String {
    let mut job =
        json!({ "schema_version": 1, "image": "minimal", "tier": "chroot", "command": ["sh", "-c", text] });
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    job.to_string()
}

//! A Redis for one test, and hosts on it.

use std::time::{Duration, Instant};

use servers::{Proxy, Redis};
use tokio::time::sleep;

use crate::{
    contract::{
        StoreBed,
        shared::{Comeback, SharedBed},
    },
    key::JobKey,
    store::redis::{HostFacts, RedisAddress, RedisSettings, RedisStore},
};

/// A server, and what is needed to begin anew on it.
pub(super) struct Bed {
    pub(super) server: Redis,
    proxy: Option<Proxy>,
    beds: u32,
    hosts: u32,
    lease: Duration,
    mark: Option<u64>,
    how: Comeback,
}

impl Bed {
    /// `None`: there is no Redis here, which has been said.
    pub(super) fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[])
    }

    pub(super) fn start_with(test: &str, settings: &[(&str, &str)]) -> Option<Self> {
        if !Redis::is_installed() {
            servers::skipped(test, "there is no redis-server");
            return None;
        }
        let server = Redis::start_with(settings).unwrap();
        Some(Self {
            server,
            proxy: None,
            beds: 0,
            hosts: 0,
            lease: Duration::from_secs(600),
            mark: None,
            how: Comeback::Stopped,
        })
    }

    pub(super) fn settings(&self) -> RedisSettings {
        self.settings_by(self.server.port())
    }

    fn settings_by(&self, port: u16) -> RedisSettings {
        RedisSettings {
            prefix: format!("bed-{}", self.beds),
            lease: self.lease,
            ..RedisSettings::new(RedisAddress::new(format!("redis://127.0.0.1:{port}")))
        }
    }

    /// Hosts whose leases last so long, from now on, on a store of their own.
    pub(super) fn begin_anew(&mut self, lease: Duration) {
        self.beds += 1;
        self.lease = lease;
        self.proxy = None;
    }

    pub(super) fn one_more(&mut self) -> RedisStore {
        self.one_more_by(self.server.port())
    }

    fn one_more_by(&mut self, port: u16) -> RedisStore {
        self.hosts += 1;
        let instance = format!("instance-{}", self.hosts);
        let facts = HostFacts { host: format!("host-{}", self.hosts), slots: 4, ..HostFacts::default() };
        RedisStore::open(self.settings_by(port), &instance, facts).unwrap()
    }

    /// Nothing of it says another word. Clones of it still can.
    pub(super) async fn silence(store: RedisStore) -> String {
        let instance = store.shared.instance.clone().unwrap();
        let tasks = std::mem::take(&mut *store.shared.tasks.lock().unwrap());
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        // What it sent last is behind it, too.
        let _ = store.shared.pulse.try_once::<String>(&redis::cmd("PING")).await;
        instance
    }
}

/// Waits until something holds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came true: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

impl StoreBed for Bed {
    type Store = RedisStore;

    async fn with(&mut self, ids: &[&str]) -> RedisStore {
        self.begin_anew(Duration::from_secs(600));
        let store = self.one_more();
        for id in ids {
            assert!(store.submitted(&JobKey::new("local", *id), None).await.unwrap());
        }
        store
    }

    async fn reopen(&mut self, store: RedisStore) -> RedisStore {
        self.restart(store).await
    }
}

impl SharedBed for Bed {
    type Store = RedisStore;

    async fn fresh(&mut self, lease: Duration) {
        self.begin_anew(lease);
    }

    async fn host(&mut self) -> RedisStore {
        self.one_more()
    }

    async fn wired_host(&mut self) -> RedisStore {
        let proxy = Proxy::start(self.server.port()).unwrap();
        let store = self.one_more_by(proxy.port());
        self.proxy = Some(proxy);
        store
    }

    fn lose_answers(&mut self, losing: bool) -> usize {
        let proxy = self.proxy.as_ref().expect("a wired host");
        proxy.lose_answers(losing);
        proxy.lost()
    }

    async fn die(&mut self, store: RedisStore) {
        Self::silence(store).await;
    }

    async fn restart(&mut self, store: RedisStore) -> RedisStore {
        let former = Self::silence(store).await;
        let store = self.one_more();
        store.bury(&former).await.unwrap();
        store
    }

    fn mark(&mut self) {
        self.mark = Some(self.server.written().unwrap());
    }

    fn server_ends(&mut self, how: Comeback) {
        self.how = how;
        match how {
            Comeback::Stopped => self.server.stop().unwrap(),
            Comeback::Killed | Comeback::Forgetful => self.server.kill().unwrap(),
        }
    }

    fn server_returns(&mut self) {
        if self.how == Comeback::Forgetful {
            self.server.forget_after(self.mark.unwrap()).unwrap();
        }
        self.server.start_again().unwrap();
    }
}

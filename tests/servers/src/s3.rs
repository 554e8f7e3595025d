//! A server that speaks S3: `s3s-fs`, of crates.io, inside this process. It checks signatures and keeps objects on disk;
//! what it does not have (versions, rules) is not asked for here.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, TcpListener},
    process::Child,
    thread::{self, JoinHandle},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3Service, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::sync::oneshot;

use crate::Scratch;

/// An S3 server with one bucket, its data in a scratch directory. Both go when this is dropped.
pub struct S3 {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
    /// In the order in which they end: who waits for our end to remove the directory finds none.
    _scratch: Scratch,
    keeper: Child,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3 at {}", self.url())
    }
}

impl S3 {
    /// The name of the one key.
    pub const KEY_ID: &str = "mayfly";
    /// The one key.
    pub const KEY: &str = "mayfly-secret";

    /// Starts it with a bucket of this name.
    pub fn start(bucket: &str) -> io::Result<Self> {
        let (scratch, keeper) = Scratch::of_this_process("s3")?;
        let root = scratch.path().join("objects");
        fs::create_dir_all(root.join(bucket))?;
        let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(Self::KEY_ID, Self::KEY));
        let service = service.build();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let server = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, service) => {}
                    // Or the sender is gone.
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { port, stop: Some(stop), server: Some(server), _scratch: scratch, keeper })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            // It panics only if its test did.
            let _ = server.join();
        }
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let server = Builder::new(TokioExecutor::new());
    while let Ok((stream, _)) = listener.accept().await {
        let connection = server.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
        tokio::spawn(async move {
            // Whoever called sees it.
            let _ = connection.await;
        });
    }
}

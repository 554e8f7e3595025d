//! A server that speaks S3: `s3s-fs`, of crates.io. It checks signatures and keeps objects on disk; what it does not
//! have (versions, rules) is not asked for here.

use std::{
    env,
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{Process, free_port};

const PATIENCE: Duration = Duration::from_secs(30);
const PORTS_TRIED: usize = 5;

/// An S3 server with one bucket, its data in a scratch directory. Both go when this is dropped.
#[derive(Debug)]
pub struct S3 {
    _process: Process,
    port: u16,
    _folder: TempDir,
}

impl S3 {
    /// The name of the one key.
    pub const KEY_ID: &str = "mayfly";
    /// The one key.
    pub const KEY: &str = "mayfly-secret";

    /// Whether there is such a server here: `s3s-fs`, or what `MAYFLY_S3S_FS` names.
    #[must_use]
    pub fn is_installed() -> bool {
        let mut version = Command::new(program());
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    /// Starts it with a bucket of this name.
    pub fn start(bucket: &str) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let root = folder.path().join("objects");
        fs::create_dir_all(root.join(bucket))?;
        for _ in 0..PORTS_TRIED {
            let port = free_port()?;
            let mut command = Command::new(program());
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--access-key", Self::KEY_ID, "--secret-key", Self::KEY]).arg(&root);
            let process = Process::start(&command, &log)?;
            if listens(&process, port) {
                return Ok(Self { _process: process, port, _folder: folder });
            }
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        Err(io::Error::other(format!("s3s-fs does not start: {said}")))
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn program() -> OsString {
    env::var_os("MAYFLY_S3S_FS").unwrap_or_else(|| "s3s-fs".into())
}

/// Waits until somebody listens; `false`: the process ended, as when the port is taken.
fn listens(process: &Process, port: u16) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{}", process.pid())).exists() && Instant::now() < deadline {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

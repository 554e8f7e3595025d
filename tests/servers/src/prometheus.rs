//! A Prometheus server, alone on a loopback port, and its own checker of rules.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Process, Scratch, free_port};

/// Long enough for a start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Prometheus with its data in a scratch directory. Both go when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    _process: Process,
    port: u16,
    _scratch: Scratch,
}

impl Prometheus {
    /// Whether there is a Prometheus to start on this machine, and its checker.
    #[must_use]
    pub fn is_installed() -> bool {
        ["prometheus", "promtool"].iter().all(|program| {
            let mut version = Command::new(program);
            version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            version.status().is_ok_and(|status| status.success())
        })
    }

    /// One that runs with the configuration `config`, in a folder that holds all of `files` as well.
    pub fn start(config: &str, files: &[(&str, &str)]) -> io::Result<Self> {
        let scratch = Scratch::new("prometheus")?;
        let folder = scratch.path();
        for (name, text) in files.iter().copied().chain([("prometheus.yml", config)]) {
            fs::write(folder.join(name), text)?;
        }
        let (port, log) = (free_port()?, folder.join("log"));
        let mut command = Command::new("prometheus");
        command.current_dir(folder).arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::start_in(&command, &log, &scratch)?;
        let deadline = Instant::now() + PATIENCE;
        let server = Self { _process: process, port, _scratch: scratch };
        while !server.get("/-/ready").is_ok_and(|(status, _)| status == 200) {
            if Instant::now() > deadline {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(io::Error::other(format!("prometheus does not answer; its log: {log}")));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Asks by HTTP: the status and what follows the head.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        get(self.port, path, "")
    }

    /// Runs the checker. `Err`: what it says.
    pub fn check<'a>(words: impl IntoIterator<Item = &'a str>, folder: &Path) -> Result<(), String> {
        let checked = Command::new("promtool").args(words).current_dir(folder).output();
        let checked = checked.map_err(|error| error.to_string())?;
        let said = [checked.stdout, checked.stderr].concat();
        if checked.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
    }
}

/// Asks a server on loopback by HTTP, with these lines in the question's head: the status and what follows the head.
pub fn get(port: u16, path: &str, head: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In the old version the answer ends where the connection does.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{head}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || io::Error::other(format!("no answer that is HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

//! A Redis server, alone on a loopback port, that can be stopped, killed and made to forget its last writes.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Process, Scratch, free_port};

/// Long enough for a start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Another process may take a free port before the server does.
const PORTS_TRIED: usize = 5;

/// What every server gets unless a test says otherwise: each answered write is on disk, nothing is evicted, and one
/// append-only file holds all, so that it can be cut.
const DEFAULTS: &[(&str, &str)] = &[
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("maxmemory", "512mb"),
    ("maxmemory-policy", "noeviction"),
    ("save", ""),
    ("auto-aof-rewrite-percentage", "0"),
];

/// A Redis server with its data in a scratch directory. Both go when this is dropped.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    port: u16,
    settings: Vec<(String, String)>,
    scratch: Scratch,
}

impl Redis {
    /// Whether there is a Redis to start on this machine.
    #[must_use]
    pub fn is_installed() -> bool {
        let mut version = Command::new("redis-server");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    /// A server on which each answered write is on disk.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// A server with other settings, named as in `redis.conf`.
    pub fn start_with(settings: &[(&str, &str)]) -> io::Result<Self> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let settings = DEFAULTS.iter().chain(settings).map(owned).collect();
        let mut server = Self { process: None, port: 0, settings, scratch: Scratch::new("redis")? };
        for _ in 1..PORTS_TRIED {
            server.port = free_port()?;
            if server.launch()? {
                return Ok(server);
            }
        }
        Err(server.failed("it does not start"))
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address as clients take it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The server's pid while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) -> io::Result<()> {
        self.process.take().map_or(Ok(()), Process::stop_and_keep)
    }

    /// Ends it by `kill -9`.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        process.signal("KILL")?;
        process.stop_and_keep()
    }

    /// Holds it still, as a machine that swaps or a network that swallows would.
    pub fn freeze(&self) -> io::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal("STOP"))
    }

    /// Lets it go on.
    pub fn thaw(&self) -> io::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal("CONT"))
    }

    /// Starts it on the same port with the data that is there, unless it runs.
    pub fn start_again(&mut self) -> io::Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.launch()? {
            if Instant::now() > deadline {
                return Err(self.failed("it does not start again"));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Changes a setting from its next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// How many bytes its append-only file has: a moment to cut back to.
    pub fn written(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.append_only_file()?)?.len())
    }

    /// Cuts the append-only file of a server that does not run back to what [`Redis::written`] said: everything
    /// after that moment was never on disk.
    pub fn forget_after(&mut self, written: u64) -> io::Result<()> {
        if self.process.is_some() {
            return Err(io::Error::other("the server still runs"));
        }
        File::options().write(true).open(self.append_only_file()?)?.set_len(written)
    }

    /// The directory of its data and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Starts the process and waits until it answers. `false`: it ended, as when the port is taken.
    fn launch(&mut self) -> io::Result<bool> {
        let mut command = Command::new("redis-server");
        command.current_dir(self.scratch.path());
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.arg("--dir").arg(self.scratch.path());
        for (name, value) in &self.settings {
            command.args([&format!("--{name}"), value]);
        }
        let process = Process::start_in(&command, &self.scratch.path().join("log"), &self.scratch)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            if !Path::new(&format!("/proc/{}", process.pid())).exists() {
                return process.stop_and_keep().map(|()| false);
            }
            if Instant::now() > deadline {
                return Err(self.failed("it does not answer"));
            }
            sleep(Duration::from_millis(10));
        }
        self.process = Some(process);
        Ok(true)
    }

    /// Whether it is past loading its data. An error that names what it wants (a password, say) is an answer too.
    fn answers(&self) -> bool {
        let ask = || -> io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = vec![0; 64];
            let length = stream.read(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with(b"+PONG") || answer.starts_with(b"-NO"))
    }

    fn append_only_file(&self) -> io::Result<PathBuf> {
        let folder = self.scratch.path().join("appendonlydir");
        let mut files = fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path()));
        let newest = files
            .by_ref()
            .filter_map(Result::ok)
            .filter(|path| path.to_string_lossy().ends_with(".incr.aof"));
        newest
            .max()
            .ok_or_else(|| io::Error::other(format!("{} holds no append-only file", folder.display())))
    }

    fn failed(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        io::Error::other(format!(
            "redis-server on port {}: {what}; its log ends (backwards): {tail:?}",
            self.port
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &Redis, command: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 256];
        let length = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    #[test]
    fn a_killed_server_keeps_what_it_answered_and_forgets_what_is_cut_off() {
        if !Redis::is_installed() {
            return crate::skipped("a_killed_server_keeps_what_it_answered", "there is no redis-server");
        }
        let mut server = Redis::start().unwrap();
        assert_eq!(ask(&server, "SET a 1"), "+OK\r\n");
        let written = server.written().unwrap();
        assert_eq!(ask(&server, "SET b 1"), "+OK\r\n");
        server.kill().unwrap();
        server.start_again().unwrap();
        assert_eq!(ask(&server, "EXISTS a b"), ":2\r\n");
        server.stop().unwrap();
        server.forget_after(written).unwrap();
        server.start_again().unwrap();
        assert_eq!(ask(&server, "EXISTS a b"), ":1\r\n");
    }
}

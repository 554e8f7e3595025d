//! A docker daemon, alone on a socket in a scratch directory, that can be stopped, killed and started again on its data.
//!
//! It has mounts of its own, so nothing of it is seen in the host's mount table, and no network: images are handed to it.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Process, Scratch};

/// Long enough for a start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `unshare` gives the daemon mounts of its own, and its shims with it: they end when the last of them does.
const START: [&str; 10] = [
    "--mount",
    "dockerd",
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--exec-opt=native.cgroupdriver=cgroupfs",
    "--userland-proxy=false",
    "--log-level=warn",
];

/// Asks the daemon at a socket: the status and the body of its answer.
pub fn ask_docker(socket: &Path, method: &str, path: &str) -> io::Result<(u16, String)> {
    tell_docker(socket, method, path, "")
}

fn tell_docker(socket: &Path, method: &str, path: &str, json: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = json.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other(format!("no answer: {head}")))?, body.to_owned()))
}

/// A docker daemon with its data in a scratch directory. Both go when this is dropped, with every container.
#[derive(Debug)]
pub struct Dockerd {
    process: Option<Process>,
    folder: Option<Scratch>,
    path: PathBuf,
    options: Vec<String>,
}

impl Dockerd {
    /// Whether there is a daemon to start on this machine.
    #[must_use]
    pub fn is_installed() -> bool {
        let mut version = Command::new("dockerd");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    }

    /// A daemon that answers.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[])
    }

    /// A daemon with more options, as on its command line.
    pub fn start_with(options: &[&str]) -> io::Result<Self> {
        let folder = Scratch::new("dockerd")?;
        let path = folder.path().to_owned();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut daemon = Self { process: None, folder: Some(folder), path, options };
        daemon.launch()?;
        Ok(daemon)
    }

    /// The address as docker's own programs take it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("docker.sock")
    }

    /// The directory of its data and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// Asks it something: the status and the body of its answer.
    pub fn ask(&self, method: &str, path: &str) -> io::Result<(u16, String)> {
        ask_docker(&self.socket(), method, path)
    }

    /// Has it do what a JSON document says: the status and the body of its answer.
    pub fn tell(&self, path: &str, json: &str) -> io::Result<(u16, String)> {
        tell_docker(&self.socket(), "POST", path, json)
    }

    /// Ends it in an orderly way; it ends its containers.
    pub fn stop(&mut self) -> io::Result<()> {
        self.process.take().map_or(Ok(()), Process::stop_and_keep)
    }

    /// Ends it by `kill -9`. Its containers stay, with a shim each.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        process.signal("KILL")?;
        process.stop_and_keep()
    }

    /// Holds it still.
    pub fn freeze(&self) -> io::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal("STOP"))
    }

    /// Lets it go on.
    pub fn thaw(&self) -> io::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal("CONT"))
    }

    /// Starts it with the data that is there.
    pub fn start_again(&mut self) -> io::Result<()> {
        // What a killed one left of itself, and what a new one would take for another daemon.
        for name in ["docker.pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        self.launch()
    }

    fn launch(&mut self) -> io::Result<()> {
        let mut command = Command::new("unshare");
        command.args(START).args(&self.options);
        command.arg("--host").arg(self.host());
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "docker.pid")]
        {
            command.arg(option).arg(self.path.join(name));
        }
        let log = self.path.join("log");
        let process = match &self.folder {
            Some(folder) => Process::start_in(&command, &log, folder)?,
            None => Process::start(&command, &log)?,
        };
        let deadline = Instant::now() + PATIENCE;
        while !self.ask("GET", "/_ping").is_ok_and(|(status, _)| status == 200) {
            let gone = !Path::new(&format!("/proc/{}", process.pid())).exists();
            if gone || Instant::now() > deadline {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(io::Error::other(format!(
                    "dockerd does not start; its log ends (backwards): {tail:?}"
                )));
            }
            sleep(Duration::from_millis(10));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Ends the shims of a killed daemon, and their containers with them: each names the scratch directory.
    fn end_shims(&self) {
        let folder = self.path.to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            let name = entry.file_name();
            if words.starts_with("/usr/bin/containerd-shim") && words.contains(&folder) {
                let _ = Command::new("kill").arg("-KILL").arg(name).stderr(Stdio::null()).status();
            }
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // One that runs ends its containers; one that was killed left them.
        drop(self.stop());
        self.end_shims();
        drop(self.folder.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_daemon_comes_back_with_its_data_and_nothing_of_it_stays() {
        if !Dockerd::is_installed() {
            return crate::skipped("a_killed_daemon_comes_back_with_its_data", "there is no dockerd");
        }
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains("mayfly-dockerd");
        let mut daemon = Dockerd::start().unwrap();
        let id = |daemon: &Dockerd| {
            daemon.ask("GET", "/info").unwrap().1.split("\"ID\":\"").nth(1).unwrap()[..20].to_owned()
        };
        let first = id(&daemon);
        daemon.kill().unwrap();
        assert!(daemon.ask("GET", "/_ping").is_err());
        daemon.start_again().unwrap();
        assert_eq!(id(&daemon), first);
        assert!(!mounts());
        let folder = daemon.folder().to_owned();
        drop(daemon);
        assert!(!folder.exists());
    }
}

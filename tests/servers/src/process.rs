//! One server process, and the keeper that ends it with us.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::scratch::Scratch;

/// Starts the server in a process group of its own, says its pid once there is that group (a signal to it would go nowhere
/// before), and waits for a line or the end of stdin. Then: TERM, five seconds, KILL. The scratch directory goes too, unless the line says otherwise.
const KEEPER: &str = r#"
scratch=$1; shift
setsid "$@" </dev/null >&2 &
server=$!
while kill -0 "$server" 2>/dev/null && ! kill -0 -- "-$server" 2>/dev/null; do :; done
echo "$server"
exec >/dev/null
read -r word
kill -TERM -- "-$server" 2>/dev/null
for _ in $(seq 50); do kill -0 -- "-$server" 2>/dev/null || break; sleep 0.1; done
kill -KILL -- "-$server" 2>/dev/null
if [ "$word" != keep ] && [ -n "$scratch" ]; then rm -rf -- "$scratch"; fi
"#;

/// A server that runs until this is dropped or the process ends.
#[derive(Debug)]
pub struct Process {
    keeper: Child,
    /// Its end is what the keeper waits for.
    alive: Option<ChildStdin>,
    pid: i32,
}

impl Process {
    /// Starts `command`; what it says goes to the file `log`.
    pub fn start(command: &Command, log: &Path) -> io::Result<Self> {
        Self::spawn(command, log, Path::new(""))
    }

    /// Starts `command`, which keeps its data in `scratch`: that is removed after the server's end, unless
    /// [`Self::stop_and_keep`] ends it.
    pub fn start_in(command: &Command, log: &Path, scratch: &Scratch) -> io::Result<Self> {
        Self::spawn(command, log, scratch.path())
    }

    fn spawn(command: &Command, log: &Path, scratch: &Path) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut keeper = Command::new("bash");
        keeper
            .args(["-c", KEEPER, "keeper"])
            .arg(scratch)
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => keeper.env(name, value),
                None => keeper.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            keeper.current_dir(folder);
        }
        // Ctrl-C at a terminal ends the tests first, and then the pipe.
        let mut keeper =
            keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let alive = keeper.stdin.take();
        let mut said = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        let pid =
            said.trim().parse().map_err(|_| io::Error::other("the server's keeper did not start it"))?;
        Ok(Self { keeper, alive, pid })
    }

    /// The server's pid, which is its process group's too.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal, named as `kill` names it, to all of the server's processes.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        let group = format!("-{}", self.pid);
        let sent =
            Command::new("kill").args([&format!("-{name}"), "--", &group]).stderr(Stdio::null()).status()?;
        if sent.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("no process of {} is left", self.pid)))
        }
    }

    /// Ends it, by TERM and after five seconds by KILL, and waits until it is gone.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    /// Ends it likewise; its scratch directory stays.
    pub fn stop_and_keep(mut self) -> io::Result<()> {
        if let Some(alive) = &mut self.alive {
            alive.write_all(b"keep\n")?;
        }
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        drop(self.alive.take());
        self.keeper.wait().map(|_| ())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a keeper that is gone.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn is_alive(pid: i32) -> bool {
        // A zombie is dead; who reaps it is not our affair.
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
    }

    #[test]
    fn a_server_ends_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let mut sleeper = Command::new("sleep");
        sleeper.arg("1000");
        let server = Process::start(&sleeper, &folder.path().join("log")).unwrap();
        let pid = server.pid();
        assert!(is_alive(pid));
        drop(server);
        assert!(!is_alive(pid));
    }

    #[test]
    fn what_a_server_says_is_in_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut speaker = Command::new("sh");
        speaker.args(["-c", "echo out; echo err >&2"]);
        let server = Process::start(&speaker, &log).unwrap();
        let pid = server.pid();
        while is_alive(pid) {
            std::thread::yield_now();
        }
        server.stop().unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "out\nerr\n");
    }
}

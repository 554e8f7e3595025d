//! A libvirt daemon, alone on a socket in a scratch directory, that can be stopped, killed and started again while its machines
//! run.
//!
//! It has mounts and a network of its own: what libvirt keeps in fixed places of the host is in the scratch directory, and
//! nothing of it is seen outside. `tini` is the parent of what it starts: where nobody reaps the dead at once, libvirt waits.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Process, Scratch};

/// Long enough for a start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mounts the scratch directory over libvirt's places. `/dev/kvm` must be as udev makes it, or libvirt takes what it
/// knows of QEMU for outdated at every call.
const START: &str = r#"
set -e
for place in etc/libvirt run/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
  mkdir -p "/$place"
  mount --bind "$1/$place" "/$place"
done
if [ -e /dev/kvm ]; then mount --bind "$1/kvm" /dev/kvm; fi
exec tini -s -- libvirtd --config "$1/libvirtd.conf" --pid-file "$1/pid"
"#;

const QEMU: &str = r#"stdio_handler = "file"
security_driver = "none"
cgroup_controllers = [ ]
remember_owner = 0
max_core = 0
"#;

/// A daemon that runs until this is dropped or the process ends.
#[derive(Debug)]
pub struct Libvirtd {
    process: Option<Process>,
    folder: Option<Scratch>,
    path: PathBuf,
}

impl Libvirtd {
    /// Whether it can be started here.
    #[must_use]
    pub fn is_installed() -> bool {
        ["/usr/sbin/libvirtd", "/usr/bin/virsh", "/usr/bin/tini", "/usr/bin/qemu-img"]
            .iter()
            .all(|path| Path::new(path).exists())
    }

    /// Starts one.
    pub fn start() -> io::Result<Self> {
        let folder = Scratch::new("libvirtd")?;
        let path = folder.path().to_owned();
        for place in ["run", "var/lib", "var/cache", "var/log"] {
            fs::create_dir_all(path.join(place).join("libvirt"))?;
        }
        fs::create_dir_all(path.join("etc"))?;
        fs::create_dir(path.join("sockets"))?;
        run(Command::new("cp").args(["-a", "/etc/libvirt"]).arg(path.join("etc")))?;
        // Networks that a host may have.
        let _ = fs::remove_dir_all(path.join("etc/libvirt/qemu"));
        fs::write(path.join("etc/libvirt/qemu.conf"), QEMU)?;
        let sockets = path.join("sockets").display().to_string();
        let log = path.join("messages").display().to_string();
        let config = format!(
            "unix_sock_dir = \"{sockets}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nlog_outputs = \"3:file:{log}\"\n"
        );
        fs::write(path.join("libvirtd.conf"), config)?;
        let kvm = path.join("kvm");
        run(Command::new("mknod").args(["-m", "0660"]).arg(&kvm).args(["c", "10", "232"]))?;
        run(Command::new("chown").arg("root:kvm").arg(&kvm))?;
        let mut daemon = Self { process: None, folder: Some(folder), path };
        daemon.launch()?;
        Ok(daemon)
    }

    /// The address as libvirt's own programs take it.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.path.join("sockets/libvirt-sock").display())
    }

    /// The directory of its data and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// What `virsh` says to these words.
    pub fn virsh(&self, words: &[&str]) -> io::Result<String> {
        virsh(&self.uri(), words)
    }

    /// Ends it in an orderly way. Its machines go on.
    pub fn stop(&mut self) -> io::Result<()> {
        self.process.take().map_or(Ok(()), Process::stop_and_keep)
    }

    /// Ends it by `kill -9`. Its machines go on.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        self.signal("KILL")?;
        process.stop_and_keep()
    }

    /// Holds it still.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal("STOP")
    }

    /// Lets it go on.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal("CONT")
    }

    /// To the daemon by its id: `tini` has it in a process group of its own.
    fn signal(&self, name: &str) -> io::Result<()> {
        let pid = fs::read_to_string(self.path.join("pid"))?;
        run(Command::new("kill").arg(format!("-{name}")).arg(pid.trim()))
    }

    /// Starts it with the machines that are there.
    pub fn start_again(&mut self) -> io::Result<()> {
        let _ = fs::remove_file(self.path.join("pid"));
        self.launch()
    }

    fn launch(&mut self) -> io::Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "sh", "-c", START, "libvirtd"]).arg(&self.path);
        let log = self.path.join("log");
        let process = match &self.folder {
            Some(folder) => Process::start_in(&command, &log, folder)?,
            None => Process::start(&command, &log)?,
        };
        let deadline = Instant::now() + PATIENCE;
        while self.virsh(&["version"]).is_err() {
            let gone = !Path::new(&format!("/proc/{}", process.pid())).exists();
            if gone || Instant::now() > deadline {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(io::Error::other(format!("libvirtd does not start; its log: {log}")));
            }
            sleep(Duration::from_millis(10));
        }
        self.process = Some(process);
        Ok(())
    }
}

/// What `virsh` says of the daemon at an address.
pub fn virsh(uri: &str, words: &[&str]) -> io::Result<String> {
    let output = Command::new("timeout")
        .args(["30", "virsh", "-q", "-c", uri])
        .args(words)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // A machine outlives its daemon: whoever leaves one has it ended here.
        for name in self.virsh(&["list", "--name"]).unwrap_or_default().split_whitespace() {
            let _ = self.virsh(&["destroy", name]);
        }
        drop(self.stop());
        drop(self.folder.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_daemon_comes_back_and_nothing_of_it_stays() {
        if !Libvirtd::is_installed() {
            return crate::skipped("a_killed_daemon_comes_back", "there is no libvirtd");
        }
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains("mayfly-libvirtd");
        let mut daemon = Libvirtd::start().unwrap();
        assert_eq!(daemon.virsh(&["list", "--all", "--name"]).unwrap().trim(), "");
        daemon.kill().unwrap();
        assert!(daemon.virsh(&["version"]).is_err());
        daemon.start_again().unwrap();
        daemon.virsh(&["version"]).unwrap();
        assert!(!mounts());
        let folder = daemon.folder().to_owned();
        drop(daemon);
        assert!(!folder.exists());
    }
}

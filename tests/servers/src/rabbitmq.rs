//! RabbitMQ, as two versions of Debian have it: 3.10 from the host's own package, 4.0 from a root of trixie that is
//! made once.
//!
//! Each broker has its own node name, cookie, data, port mapper and ports, all on loopback. It can be stopped,
//! killed and started again on the same data.

use std::{
    fs, io,
    io::Write,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{free_port, process::Process, scratch::Scratch, trixie};

/// Much longer than a start takes, even on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);
/// Where both versions keep their programs.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// The user that every broker has, with all rights.
const ADMIN: &str = "admin";
/// How often a call is tried.
const CALLS: u32 = 40;
/// How often another set of ports is tried.
const TRIES: u32 = 3;

/// Which RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.10, the package of Debian 12, which the host must have.
    Debian12,
    /// 4.0, from a root of trixie that is made when it is first asked for.
    V4,
}

impl Version {
    /// All that are tested.
    pub const ALL: [Self; 2] = [Self::Debian12, Self::V4];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "rabbitmq 3.10",
            Self::V4 => "rabbitmq 4.0",
        }
    }
}

/// One broker. It ends when this is dropped or when the process ends, and its data with it.
#[derive(Debug)]
pub struct RabbitMq {
    version: Version,
    /// The root in which its programs are; none: the host's.
    root: Option<PathBuf>,
    scratch: Scratch,
    ports: Ports,
    running: Mutex<Option<Nodes>>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    amqps: u16,
    epmd: u16,
    dist: u16,
}

/// The broker, and the port mapper that it needs. In the order in which they end.
#[derive(Debug)]
struct Nodes {
    broker: Process,
    mapper: Process,
}

impl RabbitMq {
    /// Starts a broker of its own.
    pub fn start(version: Version) -> io::Result<Self> {
        let root = match version {
            Version::Debian12 => host_programs()?,
            Version::V4 => Some(trixie::root_with_rabbitmq()?),
        };
        let mut tried = 1;
        loop {
            let broker = Self {
                version,
                root: root.clone(),
                scratch: Scratch::new("rabbitmq")?,
                ports: Ports {
                    amqp: free_port()?,
                    amqps: free_port()?,
                    epmd: free_port()?,
                    dist: free_port()?,
                },
                running: Mutex::new(None),
            };
            broker.prepare()?;
            match broker.up() {
                Ok(()) => return Ok(broker),
                // Somebody may have taken one of the ports.
                Err(_) if tried < TRIES => tried += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The broker of this version that all tests of this process share; each has a virtual host of its own. `Err` says
    /// why there is none.
    pub fn shared(version: Version) -> Result<&'static Self, &'static str> {
        static SHARED: [OnceLock<Result<RabbitMq, String>>; 2] = [OnceLock::new(), OnceLock::new()];
        let shared = SHARED[version as usize].get_or_init(|| {
            Self::start(version).map_err(|error| format!("{} cannot be had: {error}", version.name()))
        });
        shared.as_ref().map_err(String::as_str)
    }

    /// Which version it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it keeps its messages and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The port on 127.0.0.1 on which it speaks AMQP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// The port on 127.0.0.1 on which it speaks AMQP over TLS, and the certificate of its authority, which is for the name
    /// `localhost`.
    #[must_use]
    pub fn tls(&self) -> (u16, PathBuf) {
        (self.ports.amqps, self.path("certificate.pem"))
    }

    /// The user with all rights, and its password.
    #[must_use]
    pub fn admin(&self) -> (&'static str, &'static str) {
        (ADMIN, ADMIN)
    }

    /// Makes a virtual host in which the user with all rights has all rights.
    pub fn add_vhost(&self, name: &str) -> io::Result<()> {
        self.eval(&format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"{ADMIN}\">>, <<\"{name}\">>, \
             <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>)."
        ))
        .map(|_| ())
    }

    /// Removes a virtual host and all that is in it.
    pub fn delete_vhost(&self, name: &str) -> io::Result<()> {
        self.eval(&format!("rabbit_vhost:delete(<<\"{name}\">>, <<\"test\">>).")).map(|_| ())
    }

    /// Has the broker evaluate Erlang, which is a hundred times faster than [`Self::ctl`].
    pub fn eval(&self, expressions: &str) -> io::Result<String> {
        let mut tries = 0;
        let answer = loop {
            let mut call = Command::new("erl_call");
            // Two calls at once must not have one name.
            call.args(["-r", "-c", &self.cookie(), "-n", &self.node(), "-e"]);
            call.env("ERL_EPMD_PORT", self.ports.epmd.to_string()).env("HOME", self.scratch.path());
            tries += 1;
            match output(call, &format!("{expressions}\n")) {
                // Nothing was evaluated. With several calls at once it happens to a node that is well.
                Err(error) if tries < CALLS && error.to_string().contains("failed to connect") => {
                    sleep(PAUSE);
                }
                answered => break answered?,
            }
        };
        match answer.strip_prefix("{ok, ") {
            Some(rest) if !rest.starts_with("{error") => Ok(rest.trim_end_matches('}').to_owned()),
            _ => Err(io::Error::other(format!("`{expressions}` was answered by {answer}"))),
        }
    }

    /// Runs `rabbitmqctl` with these arguments and gives what it says.
    pub fn ctl(&self, args: &[&str]) -> io::Result<String> {
        let mut command = self.program("rabbitmqctl");
        command.arg("--quiet").args(args);
        output(command, "")
    }

    /// Sets or clears the alarm that the memory is used up, which blocks all who publish.
    pub fn alarm(&self, on: bool) -> io::Result<()> {
        let watermark = if on { "0.00001" } else { "0.6" };
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({watermark}).")).map(|_| ())
    }

    /// Stops the broker in good order; it can be started again.
    pub fn stop(&self) -> io::Result<()> {
        match self.running().take() {
            Some(nodes) => nodes.broker.stop_and_keep().and(nodes.mapper.stop()),
            None => Ok(()),
        }
    }

    /// Ends the broker as a crash would; it can be started again.
    pub fn kill(&self) -> io::Result<()> {
        if let Some(nodes) = &*self.running() {
            nodes.broker.signal("KILL")?;
        }
        self.stop()
    }

    /// Starts a broker again that was stopped or killed, on the same data and the same ports.
    pub fn start_again(&self) -> io::Result<()> {
        self.up()
    }

    /// What the broker wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.path("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn running(&self) -> MutexGuard<'_, Option<Nodes>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn node(&self) -> String {
        // The host part is fixed: it must be the same for the programs inside the root.
        format!("mayfly-{}@localhost", self.ports.amqp)
    }

    fn cookie(&self) -> String {
        fs::read_to_string(self.path(".erlang.cookie")).unwrap_or_default()
    }

    fn prepare(&self) -> io::Result<()> {
        let secret = fs::read("/proc/sys/kernel/random/uuid")?;
        let mut cookie =
            fs::File::options().write(true).create_new(true).mode(0o400).open(self.path(".erlang.cookie"))?;
        cookie.write_all(secret.trim_ascii())?;
        fs::set_permissions(self.scratch.path(), fs::Permissions::from_mode(0o700))?;
        fs::write(self.path("plugins"), "[].\n")?;
        // How often a channel looks for deliveries that are held too long; a minute otherwise.
        fs::write(self.path("advanced.config"), "[{rabbit, [{channel_tick_interval, 1000}]}].\n")?;
        self.make_certificate()?;
        fs::write(
            self.path("rabbitmq.conf"),
            format!(
                "listeners.tcp.default = 127.0.0.1:{}\n\
                 default_user = {ADMIN}\n\
                 default_pass = {ADMIN}\n\
                 loopback_users = none\n\
                 vm_memory_high_watermark.relative = 0.6\n\
                 disk_free_limit.absolute = 1MB\n\
                 log.console = true\n\
                 log.console.level = warning\n\
                 log.file = false\n\
                 listeners.ssl.default = 127.0.0.1:{}\n\
                 ssl_options.certfile = {certificate}\n\
                 ssl_options.keyfile = {key}\n",
                self.ports.amqp,
                self.ports.amqps,
                certificate = self.path("certificate.pem").display(),
                key = self.path("key.pem").display(),
            ),
        )
    }

    /// One that vouches for itself, so it is its own authority.
    fn make_certificate(&self) -> io::Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        command.args(["-days", "2", "-subj", "/CN=localhost"]);
        command.args(["-addext", "subjectAltName=DNS:localhost"]);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.arg("-keyout").arg(self.path("key.pem")).arg("-out").arg(self.path("certificate.pem"));
        output(command, "").map(|_| ())
    }

    /// One of RabbitMQ's programs, for this node.
    fn program(&self, name: &str) -> Command {
        let program = format!("{PROGRAMS}/{name}");
        let mut command = match &self.root {
            None => Command::new(program),
            Some(root) => trixie::inside(root, self.scratch.path(), &program),
        };
        let threads = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none";
        command
            .env("HOME", self.scratch.path())
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_DIST_PORT", self.ports.dist.to_string())
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.path("advanced.config"))
            .env("ERL_CRASH_DUMP", self.path("crash.dump"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("plugins"))
            .env("RABBITMQ_MNESIA_BASE", self.path("data"))
            .env("RABBITMQ_LOG_BASE", self.path("logs"))
            .env("RABBITMQ_PID_FILE", self.path("pid"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!("-kernel inet_dist_use_interface {{127,0,0,1}} {threads}"),
            );
        command
    }

    fn up(&self) -> io::Result<()> {
        let mut running = self.running();
        if running.is_some() {
            return Ok(());
        }
        // Started by hand: one that the broker starts would be a daemon, and stay.
        let mut mapper = Command::new("epmd");
        mapper.args(["-address", "127.0.0.1", "-port", &self.ports.epmd.to_string()]);
        let mapper = Process::start(&mapper, &self.path("mapper.log"))?;
        until(|| TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.epmd)).is_ok().then_some(Ok(())))?;
        let broker = Process::start_in(&self.program("rabbitmq-server"), &self.path("log"), &self.scratch)?;
        let pid = broker.pid();
        *running = Some(Nodes { broker, mapper });
        drop(running);
        let up = until(|| {
            if !Path::new(&format!("/proc/{pid}")).exists() {
                return Some(Err(io::Error::other("it ended at once")));
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.amqp)).ok()?;
            (self.eval("rabbit:is_running().").ok()? == "true").then_some(Ok(()))
        });
        up.map_err(|error| {
            let log = self.log();
            let _ = self.kill();
            io::Error::other(format!("{} does not start: {error}; its log:\n{log}", self.version.name()))
        })
    }
}

/// Whether the host has the package.
fn host_programs() -> io::Result<Option<PathBuf>> {
    if Path::new(PROGRAMS).join("rabbitmq-server").exists() {
        Ok(None)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the package rabbitmq-server is not installed"))
    }
}

fn until<T>(mut look: impl FnMut() -> Option<io::Result<T>>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        if started.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not within {PATIENCE:?}")));
        }
        sleep(PAUSE);
    }
}

fn output(mut command: Command, input: &str) -> io::Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It has ended already: how it did says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    if done.status.success() {
        return Ok(said);
    }
    let program = command.get_program().to_string_lossy();
    let complaint = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("{program} failed ({}): {said} {complaint}", done.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_keeps_its_data_over_a_crash_and_leaves_nothing_behind() {
        for version in Version::ALL {
            let broker = match RabbitMq::start(version) {
                Ok(broker) => broker,
                Err(error) => {
                    crate::skipped("a_broker_keeps_its_data_over_a_crash", &error.to_string());
                    continue;
                }
            };
            broker.add_vhost("kept").unwrap();
            broker.kill().unwrap();
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, broker.port())).is_err());
            broker.start_again().unwrap();
            assert!(broker.ctl(&["list_vhosts"]).unwrap().contains("kept"), "{}", version.name());
            let scratch = broker.scratch.path().to_owned();
            drop(broker);
            assert!(!scratch.exists());
        }
    }
}

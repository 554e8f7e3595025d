//! The control's own process: sets the scene, lets the prober look, and tells what it saw.

#![expect(unsafe_code, reason = "a terminal is made the child's own between fork and exec")]

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::openpty,
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::{Order, network, scene};
use crate::{
    catalogue::Way,
    ground::{CANARY, OUTPUT, PROBER},
    looks::{Look, Looks},
    verdict::Seen,
};

/// How long a process has to end at SIGTERM until it is said that it does not.
const GRACE: Duration = Duration::from_millis(300);

/// Reads an order, carries it out, writes what was seen. Never returns to the host's namespaces.
#[must_use]
pub fn main() -> ExitCode {
    let written = carry_out()
        .and_then(|looks| serde_json::to_writer(io::stdout().lock(), &looks).map_err(io::Error::from));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out() -> io::Result<Looks> {
    let step = |what: &'static str| move |error: io::Error| io::Error::other(format!("{what}: {error}"));
    let order: Order = serde_json::from_reader(io::stdin().lock())?;
    set_pdeathsig(Signal::SIGKILL)?;
    // If memory runs short for it, it is the one that goes.
    fs::write("/proc/self/oom_score_adj", "1000").map_err(step("oom_score_adj"))?;
    raise(Resource::RLIMIT_NOFILE, order.clues.limits.open_files + 64);
    raise(Resource::RLIMIT_CORE, libc::RLIM_INFINITY);
    scene::enter(&order.clues.folder).map_err(step("the scene"))?;

    let control = Control { args: order.clues.args() };
    let mut looks = Looks::default();
    // The network that it would see is the host's, so this one comes before the host's network is left.
    let (outside, look): (Vec<_>, Vec<_>) = order.by(&[Way::Look]).into_iter().partition(|id| id == "N01");
    if !outside.is_empty() {
        looks.extend(control.look(&outside)?);
        if looks.of("N01").is_some_and(|look| look.seen == Seen::Held) {
            looks = looks.without("N01");
            looks.add("N01", Look::unknown("the host itself has no interface but loopback"));
        }
    }
    let servers = network::enter(&order.clues.services).map_err(step("the network"))?;
    if !look.is_empty() {
        looks.extend(control.look(&look)?);
    }
    let used = order.by(&[Way::Use, Way::Cpu]);
    if !used.is_empty() {
        looks.extend(control.look(&used)?);
    }
    // Nothing limits it here. What it did not get, others got.
    if looks.of("R07").is_some_and(|look| look.seen == Seen::Held) {
        looks = looks.without("R07");
        looks.add("R07", Look::unknown("the host was too busy to give it more"));
    }
    let memory = order.by(&[Way::Memory]);
    if !memory.is_empty() {
        looks.extend(control.look(&memory)?);
    }
    let beside = order.by(&[Way::Beside]);
    if !beside.is_empty() {
        let left = control.leave(&[])?;
        looks.extend(control.look(&beside)?);
        left.end()?;
    }
    let after = order.by(&[Way::After]);
    if !after.is_empty() {
        control.leave(&["keep=1".to_owned()])?.end()?;
        looks.extend(control.look(&after)?);
    }
    if !order.by(&[Way::Flood]).is_empty() {
        looks.add("R08", control.flood()?);
    }
    if !order.by(&[Way::Deadline]).is_empty() {
        // The last: its processes go with their namespace, and no other can be started in it then.
        looks.add("R09", control.stay()?);
    }
    drop(servers);
    Ok(looks)
}

/// As far as this process may: a host can be within limits of its own, and then the probe is void.
fn raise(resource: Resource, to: u64) {
    if let Ok((_, hard)) = getrlimit(resource)
        && setrlimit(resource, to, hard.max(to)).is_err()
    {
        let _ = setrlimit(resource, hard.min(to), hard);
    }
}

struct Control {
    args: Vec<String>,
}

/// A prober that has left its marks.
struct Left(Child);

impl Left {
    fn end(mut self) -> io::Result<()> {
        drop(self.0.stdin.take());
        self.0.wait().map(drop)
    }
}

impl Control {
    fn prober(&self) -> Command {
        let mut command = Command::new(PROBER);
        command.args(&self.args).env(CANARY, std::env::var_os(CANARY).unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }

    /// On a terminal of its own, with a descriptor that is none of its business.
    fn look(&self, ids: &[String]) -> io::Result<Looks> {
        let mut command = self.prober();
        command.args(ids);
        // A host without terminals has none to give away.
        let terminal = openpty(None, None).ok();
        if let Some(terminal) = &terminal {
            command.stdin(terminal.slave.try_clone()?);
            // SAFETY: two system calls, which are safe between fork and exec.
            unsafe { command.pre_exec(take_terminal) };
        }
        let foreign: OwnedFd = fs::File::open("/etc")?.into();
        fcntl(foreign.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let output = command.output()?;
        drop((terminal, foreign));
        Ok(Looks::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn leave(&self, more: &[String]) -> io::Result<Left> {
        let mut child = self.prober().arg("role=leave").args(more).stdin(Stdio::piped()).spawn()?;
        wait_for_line(&mut child)?;
        Ok(Left(child))
    }

    fn flood(&self) -> io::Result<Look> {
        let bytes = OUTPUT * 4;
        let mut child = self.prober().arg("role=flood").arg(format!("bytes={bytes}")).spawn()?;
        let mut came = 0;
        if let Some(stdout) = child.stdout.take() {
            came = io::copy(&mut stdout.take(bytes * 2), &mut io::sink())?;
        }
        child.wait()?;
        Ok(Look::told(came < bytes, format!("{came} bytes came out, where {OUTPUT} would be allowed")))
    }

    fn stay(&self) -> io::Result<Look> {
        unshare(CloneFlags::CLONE_NEWPID)?;
        let mut child = self.prober().arg("role=stay").spawn()?;
        wait_for_line(&mut child)?;
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
        thread::sleep(GRACE);
        let ended = child.try_wait()?.is_some();
        child.kill()?;
        child.wait()?;
        Ok(Look::told(ended, if ended { "it ended at SIGTERM" } else { "it lives on after SIGTERM" }))
    }
}

fn wait_for_line(child: &mut Child) -> io::Result<()> {
    let Some(stdout) = child.stdout.as_mut() else { return Ok(()) };
    BufReader::new(stdout).read_line(&mut String::new()).map(drop)
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: neither touches memory. What is taken is the standard input, which is a terminal.
    let got = unsafe {
        libc::setsid();
        libc::ioctl(io::stdin().as_raw_fd(), libc::TIOCSCTTY, 0)
    };
    Ok(Errno::result(got).map(drop)?)
}

//! Where systemd is the first process, the tree of cgroups has one writer: systemd. What others may write is what it
//! delegated to them, see "Control Group APIs and Delegation" in its documentation.
//!
//! mayfly lives by that in one of two forms, each taken once for a process and never for a sandbox:
//!
//! - In a unit with `Delegate=yes` and alone there, it puts its sandboxes below the unit's own cgroup, and itself into a
//!   leaf beside them, because no process may stay in a cgroup that hands controllers down. The unit's limits hold for
//!   all of it, and systemd ends what a killed mayfly leaves.
//! - Anywhere else, as in a shell, it has systemd make a scope, in the caller's slice, and its sandboxes are below that
//!   one. A scope lives for as long as a process is in it: `cat`, which reads until mayfly is gone.
//!
//! The scope is asked for by `systemd-run`, which is there wherever systemd is and speaks to it without a bus daemon.
//! Version 1 of cgroups knows no safe delegation, and nothing here is about it.

use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::getxattr,
};

use super::{CgroupError, place::place_of_all, read_pids, write};

/// There exactly where systemd is the first process: `sd_booted(3)`.
pub(crate) const BOOTED: &str = "/run/systemd/system";

/// The leaf of whoever makes sandboxes, beside theirs. A unit may say `DelegateSubgroup=mayfly` (systemd 254).
const LEAF: &str = "mayfly";

/// Where distributions put programs. `PATH` is the caller's, and this runs as root.
const PLACES: [&str; 3] = ["/usr/bin", "/bin", "/run/current-system/sw/bin"];

/// How long systemd may take for a scope.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// By what sandboxes may have cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    /// systemd is not the first process here: the tree is anybody's.
    Top,
    /// Below the cgroup of this process's unit, relative to the top of the tree.
    Unit(PathBuf),
    /// In a scope that systemd is asked for.
    Scope,
}

/// The part of the tree that is this process's to write.
#[derive(Debug)]
pub(crate) struct Delegated {
    /// Relative to the top of the tree; empty where all of it is.
    base: PathBuf,
    /// Who keeps the scope, if it is one.
    _holder: Option<Holder>,
}

impl Form {
    /// Which form holds for this process. Changes nothing.
    pub(crate) fn of_this_process(root: &Path) -> Result<Self, CgroupError> {
        if !Path::new(BOOTED).exists() {
            return Ok(Self::Top);
        }
        let own = place_of_process("self")?;
        let alone = read_pids(&root.join(&own).join("cgroup.procs")) == [std::process::id().cast_signed()];
        Ok(Self::judge(own, alone, |place| is_delegated(&root.join(place))))
    }

    fn judge(own: PathBuf, alone: bool, delegated: impl Fn(&Path) -> bool) -> Self {
        if alone && delegated(&own) {
            return Self::Unit(own);
        }
        match own.parent() {
            // A former pool of this process put it there, or the unit says so.
            Some(unit) if own.ends_with(LEAF) && delegated(unit) => Self::Unit(unit.to_owned()),
            _ => Self::Scope,
        }
    }
}

impl Delegated {
    /// Where there is nothing to ask for.
    pub(crate) fn top() -> Self {
        Self { base: PathBuf::new(), _holder: None }
    }

    /// Takes the part of a version 2 tree that is this process's, by the form that holds here.
    pub(crate) fn take(root: &Path, scope: &str) -> Result<Self, CgroupError> {
        match Form::of_this_process(root)? {
            Form::Top => Ok(Self::top()),
            Form::Unit(base) => {
                settle(root, &base, std::process::id())?;
                Ok(Self { base, _holder: None })
            }
            Form::Scope => {
                let holder = Holder::start(scope)?;
                let pid = holder.process.id();
                let base = place_of_process(&pid.to_string())?;
                // Whatever it said: only a cgroup of that name is the one that was asked for.
                if !base.ends_with(scope) {
                    return Err(CgroupError::Scope { said: format!("{scope} became {}", base.display()) });
                }
                settle(root, &base, pid)?;
                Ok(Self { base, _holder: Some(holder) })
            }
        }
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }
}

/// Brings the only process of a cgroup into a leaf of it, so that others can be made beside.
fn settle(root: &Path, base: &Path, pid: u32) -> Result<(), CgroupError> {
    let leaf = root.join(base).join(LEAF);
    super::make_dir(&leaf)?;
    write(&leaf.join("cgroup.procs"), &pid.to_string())
}

fn place_of_process(pid: &str) -> Result<PathBuf, CgroupError> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let table = fs::read_to_string(&path).map_err(|error| CgroupError::Open { path: path.clone(), error })?;
    place_of_all(&table).ok_or_else(|| CgroupError::Open { path, error: io::ErrorKind::InvalidData.into() })
}

/// systemd marks what it delegates, since version 251 in sight of everybody.
fn is_delegated(cgroup: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].into_iter().any(|name| {
        let mut value = [0; 1];
        getxattr(cgroup, name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// The process for which a scope is there.
#[derive(Debug)]
struct Holder {
    process: Child,
}

impl Holder {
    /// Returns once the scope is there: only then is there somebody to answer.
    fn start(scope: &str) -> Result<Self, CgroupError> {
        let failed = |error: io::Error| CgroupError::Scope { said: error.to_string() };
        let [systemd_run, cat] = ["systemd-run", "cat"].map(program);
        let process = Command::new(systemd_run?)
            .args(["--scope", "--quiet", "--collect", "--no-ask-password"])
            // What the administrator allows whoever called is what the sandboxes have together.
            .arg("--slice-inherit")
            .args(["--property=Delegate=yes", "--property=TasksMax=infinity"])
            .args([&format!("--unit={scope}"), "--description=sandboxes of a mayfly", "--"])
            .arg(cat?)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C on the terminal is mayfly's to handle.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let mut holder = Self { process };
        if holder.answers().map_err(failed)? {
            return Ok(holder);
        }
        Err(CgroupError::Scope { said: holder.complaint() })
    }

    /// Says a byte and hears it again; it ends where systemd refuses.
    fn answers(&mut self) -> io::Result<bool> {
        let (Some(stdin), Some(stdout)) = (&mut self.process.stdin, &mut self.process.stdout) else {
            return Ok(false);
        };
        stdin.write_all(b"\n").or_else(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })?;
        if poll(&mut [PollFd::new(&stdout.as_fd(), PollFlags::IN)], Some(&PATIENCE))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "systemd does not answer"));
        }
        Ok(stdout.read(&mut [0])? == 1)
    }

    fn complaint(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            // What was read before an error is all there is to show.
            let _ = stderr.read_to_string(&mut said);
        }
        said.trim().to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // A zombie would keep the scope, and systemd-run may still wait for systemd.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program(name: &str) -> Result<PathBuf, CgroupError> {
    let mut places = PLACES.iter().map(|place| Path::new(place).join(name));
    places
        .find(|path| path.exists())
        .ok_or_else(|| CgroupError::Scope { said: format!("{name} is in none of {}", PLACES.join(", ")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(own: &str, alone: bool, delegated: &[&str]) -> Form {
        Form::judge(own.into(), alone, |place| delegated.iter().any(|known| place == Path::new(known)))
    }

    #[test]
    fn a_delegated_unit_is_used_by_whoever_is_alone_in_it() {
        let unit = "system.slice/mayfly.service";
        assert_eq!(judge(unit, true, &[unit]), Form::Unit(unit.into()));
        assert_eq!(judge(unit, false, &[unit]), Form::Scope, "a shell is there as well");
        assert_eq!(judge(unit, true, &[]), Form::Scope, "nobody delegated it");
        assert_eq!(judge("", true, &[]), Form::Scope, "the top of the tree is systemd's");
    }

    #[test]
    fn a_second_pool_finds_the_unit_above_the_leaf() {
        let unit = "system.slice/mayfly.service";
        assert_eq!(judge("system.slice/mayfly.service/mayfly", true, &[unit]), Form::Unit(unit.into()));
        assert_eq!(judge("system.slice/mayfly.service/mayfly", true, &[]), Form::Scope);
        let control = "system.slice/mayfly.service/.control";
        assert_eq!(judge(control, true, &[unit]), Form::Scope, "systemd's own, in which a reload runs");
        assert_eq!(
            judge("user.slice/user@0.service/mayfly.scope", true, &["user.slice/user@0.service"]),
            Form::Scope
        );
    }
}

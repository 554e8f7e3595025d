//! Does for real, in children that end at once, what the kernel could refuse when a sandbox is made.
//!
//! Settings alone do not tell: a container's seccomp filter, AppArmor, a masked `/proc` or a filesystem without
//! id-mapped mounts show only when the call is made. A *holder* child owns a user namespace, an *actor* enters it
//! and goes through the [`STEPS`] of a real sandbox. All that they make dies with them: the mounts are in their
//! own mount namespace, or attached nowhere.

#![expect(
    unsafe_code,
    reason = "a user namespace can be entered only by a process of one thread, so it forks"
)]

mod steps;

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, alarm, fork, pause};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::facts::Facts;
use super::{Finding, SANDBOX_IDS, State, syscalls};
use steps::STEPS;

/// Ids that the rehearsal maps, at the far end of the sandboxes' own.
const IDS: u64 = 0x1_0000;

/// A kernel that hangs in a step must not hang the doctor. In seconds.
const PATIENCE: u32 = 10;

const NOT_REACHED: &str = "not reached: an earlier step failed";

/// Goes through the making of a sandbox whose image lies below `data_dir`.
pub(super) fn rehearse(data_dir: &Path, facts: &Facts) -> Vec<Finding> {
    let holder = Holder::start();
    let mut findings = vec![user_namespace(holder.as_ref().map_err(|error| *error), facts)];
    let Ok(holder) = holder else {
        findings.push(Finding::new("idmapped-mounts", "id-mapped mounts", State::Unknown, NOT_REACHED));
        findings.extend(findings_of(&[]));
        return findings;
    };
    let layer = idmapped_layer(data_dir, holder.userns.as_fd());
    findings.push(idmapped_mounts(data_dir, layer.as_ref().map_err(|error| *error)));
    findings.extend(findings_of(&act(&holder, layer.ok().as_ref().map(OwnedFd::as_fd))));
    findings
}

fn user_namespace(made: Result<&Holder, Errno>, facts: &Facts) -> Finding {
    let finding = |state, detail: String| Finding::new("user-namespaces", "user namespaces", state, detail);
    let restricted = facts.line("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    let restricted = restricted.is_ok_and(|value| value == "1");
    match made {
        Ok(_) if restricted => {
            finding(State::Ok, "made and mapped (AppArmor keeps them from other users, not from root)".into())
        }
        Ok(_) => finding(State::Ok, "made and mapped".into()),
        Err(error) if restricted => {
            finding(State::Missing, format!("{}, and AppArmor restricts them", error.desc()))
                .mended_by("sudo mayfly, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
        }
        Err(error) => finding(State::Missing, error.desc().to_owned())
            .mended_by("run as root; sysctl -w user.max_user_namespaces=10000"),
    }
}

fn idmapped_layer(data_dir: &Path, userns: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let layer = open_tree(CWD, data_dir, flags).map_err(raw)?;
    syscalls::idmap(layer.as_fd(), userns)?;
    Ok(layer)
}

fn idmapped_mounts(data_dir: &Path, layer: Result<&OwnedFd, Errno>) -> Finding {
    let finding = |state, detail: String| Finding::new("idmapped-mounts", "id-mapped mounts", state, detail);
    let place = data_dir.display();
    match layer {
        Ok(_) => finding(State::Ok, format!("on the filesystem of {place}")),
        // Says nothing about the filesystem.
        Err(Errno::EPERM) => finding(State::Unknown, "may not be tried without CAP_SYS_ADMIN".into()),
        Err(error) => finding(State::Missing, format!("not on the filesystem of {place}: {}", error.desc()))
            .mended_by(
                "keep the data directory (MAYFLY_DATA_DIR) on ext4, xfs or btrfs; kernel 5.12 or later",
            ),
    }
}

/// Each step with its outcome; those behind a failed one have none.
fn findings_of(reports: &[Result<(), Errno>]) -> Vec<Finding> {
    STEPS.iter().enumerate().map(|(number, step)| step.finding(reports.get(number))).collect()
}

/// A child that lives in a new user namespace until this is dropped (or until it loses patience).
#[derive(Debug)]
struct Holder {
    userns: File,
    _child: Ended,
}

impl Holder {
    fn start() -> Result<Self, Errno> {
        let (mut told, tells) = pipe().map_err(|error| errno(&error))?;
        let pid = child(|| {
            report(&tells, unshare(CloneFlags::CLONE_NEWUSER));
            pause();
        })?;
        let holder = Ended(pid);
        drop(tells);
        next_report(&mut told)?;
        map_ids(pid)?;
        let userns = File::open(format!("/proc/{pid}/ns/user")).map_err(|error| errno(&error))?;
        Ok(Self { userns, _child: holder })
    }
}

/// Ends a child and waits for it.
#[derive(Debug)]
struct Ended(Pid);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

fn map_ids(pid: Pid) -> Result<(), Errno> {
    let first = SANDBOX_IDS.end() - IDS + 1;
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), format!("0 {first} {IDS}"))
            .map_err(|error| errno(&error))?;
    }
    Ok(())
}

/// Lets the actor go through [`STEPS`] and hears how each went.
fn act(holder: &Holder, layer: Option<BorrowedFd<'_>>) -> Vec<Result<(), Errno>> {
    let Ok((mut told, tells)) = pipe() else { return Vec::new() };
    let Ok(actor) = child(|| steps::perform(&tells, holder.userns.as_fd(), layer)) else { return Vec::new() };
    let actor = Ended(actor);
    drop(tells);
    let mut reports = Vec::new();
    // Counted, not read to the end: a child that another thread forked meanwhile also holds the pipe open.
    for step in &STEPS {
        let outcome = next_report(&mut told);
        reports.push(outcome);
        if outcome.is_err() && step.is_needed() {
            break;
        }
    }
    drop(actor);
    reports
}

/// Forks a child that runs `life` and ends.
fn child(life: impl FnOnce()) -> Result<Pid, Errno> {
    // SAFETY: other threads are gone in the child and may have held any lock, so `life` allocates nothing and
    // makes system calls only, and the child leaves by `_exit`, past every destructor and buffer.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            alarm::set(PATIENCE);
            life();
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(0) }
        }
    }
}

fn report(mut to: &PipeWriter, outcome: Result<(), Errno>) {
    let number = outcome.err().map_or(0, |error| error as i32);
    let _ = to.write_all(&number.to_ne_bytes());
}

/// The child's next word. A child that ended without one was killed in the middle of its step.
fn next_report(from: &mut PipeReader) -> Result<(), Errno> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).map_err(|_| Errno::ETIMEDOUT)?;
    match i32::from_ne_bytes(bytes) {
        0 => Ok(()),
        number => Err(Errno::from_raw(number)),
    }
}

fn raw(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the whole suite needs anyway: without it no other test of a sandbox could run either.
    #[test]
    fn every_step_works_on_a_host_that_can_run_sandboxes() {
        let findings = rehearse(Path::new(env!("CARGO_MANIFEST_DIR")), &Facts::of_this_host());
        assert_eq!(findings.len(), 2 + STEPS.len());
        for finding in findings {
            assert_eq!(finding.state, State::Ok, "{finding:?}");
        }
    }

    #[test]
    fn a_filesystem_that_cannot_be_idmapped_is_said_to_be_so() {
        let findings = rehearse(Path::new("/proc"), &Facts::of_this_host());
        let idmapped = findings.iter().find(|finding| finding.id == "idmapped-mounts").unwrap();
        assert_eq!(idmapped.state, State::Missing);
        assert!(idmapped.detail.contains("/proc") && idmapped.fix.is_some(), "{idmapped:?}");
    }

    #[test]
    fn what_only_writable_images_need_is_no_reason_to_run_nothing() {
        let holder = Holder::start().unwrap();
        // A layer that is no mount cannot be attached, so the overlay over it fails.
        let no_mount = File::open("/dev/null").unwrap();
        for finding in findings_of(&act(&holder, Some(no_mount.as_fd()))) {
            let expected = if finding.id == "overlayfs" { State::Degraded } else { State::Ok };
            assert_eq!(finding.state, expected, "{finding:?}");
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_ones_behind_it_unknown() {
        let findings = findings_of(&[Ok(()), Err(Errno::EPERM)]);
        let states: Vec<_> = findings.iter().map(|finding| finding.state).collect();
        assert_eq!(states[..2], [State::Ok, State::Missing]);
        assert!(states[2..].iter().all(|state| *state == State::Unknown));
    }
}

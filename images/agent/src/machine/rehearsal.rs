//! A program that runs in a machine before its job does.
//!
//! Where code is translated as it runs, the first time takes many times what the second does: so that it is not the job's,
//! each life runs one program from its orders to its last byte of output.

use std::os::fd::AsFd;

use agent::message::{AGENT_PATH, Rlimit, Run};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, read};

use super::NOTHING;
use super::bounds::JobCgroup;
use crate::arm::ArmedProcess;
use crate::channel::waiting_for;
use crate::failure::{At, Failure};
use crate::job::Job;
use crate::sys;

/// What may be run. First a program of the image, for the job's will begin like it: the same loader, the same library. An
/// image need not have it; then one that does nothing.
const PROGRAMS: [&[&str]; 2] = [&["echo"], &[AGENT_PATH, NOTHING]];

/// A process that is armed as the job's is, and what it is to run.
#[derive(Debug)]
pub(super) struct Rehearsal {
    process: ArmedProcess,
    program: &'static [&'static str],
}

impl Rehearsal {
    /// Finds what can be run by running it: what its start reads from the disk is then in the memory that all lives begin
    /// in. Then arms the process of the lives to come.
    pub(super) fn prepare(
        arm: impl Fn() -> Result<ArmedProcess, Failure>,
        job: &JobCgroup,
    ) -> Result<Self, Failure> {
        for program in PROGRAMS {
            if Self::of(arm()?, program)?.ends_well(job, None)? {
                return Self::of(arm()?, program);
            }
        }
        Err(Failure::Unproved("no program can be run to its end".into()))
    }

    fn of(process: ArmedProcess, program: &'static [&'static str]) -> Result<Self, Failure> {
        process.wait_armed()?;
        Ok(Self { process, program })
    }

    /// Runs the program, and leaves nothing of it but what is translated.
    pub(super) fn run(self, job: &JobCgroup, spared: Pid) -> Result<(), Failure> {
        if self.ends_well(job, Some(spared))? {
            Ok(())
        } else {
            Err(Failure::Unproved("the program that runs before a job did not end well".into()))
        }
    }

    fn ends_well(self, job: &JobCgroup, spared: Option<Pid>) -> Result<bool, Failure> {
        let run = Run {
            argv: self.program.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: Vec::new(),
            cwd: b"/".to_vec(),
            rlimits: vec![(Rlimit::Core, 0)],
            stdin: false,
            listen: Vec::new(),
        };
        let (pid, output) = Job::rehearse(self.process, run)?;
        let mut buffer = [0; 64];
        loop {
            let mut slots = [waiting_for(Some(output.as_fd()), libc::POLLIN)];
            sys::poll(&mut slots, -1).at("wait for a rehearsal")?;
            match read(&output, &mut buffer) {
                Ok(0) => break,
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno).at("read from a rehearsal"),
            }
        }
        let status = waitpid(pid, None).at("wait for a rehearsal's end")?;
        job.end_all_but(spared)?;
        Ok(matches!(status, WaitStatus::Exited(_, 0)))
    }
}

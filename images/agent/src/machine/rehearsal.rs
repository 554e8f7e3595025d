//! A program that runs in a machine before its job does.
//!
//! Where code is translated as it runs, the first time takes many times what the second does: so that it is not the job's,
//! each life runs one program the whole way that the job will go, from its orders to its last byte of output.

use agent::message::{AGENT_PATH, Rlimit, Run};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::NOTHING;
use super::bounds::JobCgroup;
use crate::arm::ArmedProcess;
use crate::exec::DEFAULT_PATH;
use crate::failure::{At, Failure};
use crate::job::Job;

/// What may be run. First a program of the image, for the job's will begin like it: the same loader, the same library. An
/// image need not have it; then one that does nothing.
const PROGRAMS: [&[&str]; 2] = [&["echo"], &[AGENT_PATH, NOTHING]];

/// How many times: a second run takes the ways that chance, and where memory lies, kept the first one from.
const TIMES: usize = 2;

/// A process that is armed as the job's is, and what it is to run.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    pub(crate) process: ArmedProcess,
    pub(crate) run: Run,
}

impl Rehearsal {
    /// Finds what can be run by running it: what its start reads from the disk is then in the memory that all lives begin
    /// in. Then arms the processes of the lives to come.
    pub(super) fn prepare(
        arm: impl Fn() -> Result<ArmedProcess, Failure>,
        job: &JobCgroup,
    ) -> Result<Vec<Self>, Failure> {
        for program in PROGRAMS {
            let Self { process, run } = Self::of(arm()?, program)?;
            let (first, streams) = Job::start(process, 1, run)?;
            let ended_well = ends_well(first.leader())?;
            drop(streams);
            job.end_all_but(&[])?;
            if ended_well {
                return (0..TIMES).map(|_| Self::of(arm()?, program)).collect();
            }
        }
        Err(Failure::Unproved("no program can be run to its end".into()))
    }

    fn of(process: ArmedProcess, program: &[&str]) -> Result<Self, Failure> {
        process.wait_armed()?;
        let run = Run {
            argv: program.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: vec![[b"PATH=", DEFAULT_PATH].concat(), b"HOME=/tmp".to_vec()],
            cwd: b"/tmp".to_vec(),
            // Those of every job.
            rlimits: vec![
                (Rlimit::Nofile, 1024),
                (Rlimit::Fsize, 1 << 30),
                (Rlimit::Nproc, 64),
                (Rlimit::Core, 0),
            ],
            stdin: false,
            listen: Vec::new(),
        };
        Ok(Self { process, run })
    }
}

/// Leaves nothing of a program that was run but what is translated.
pub(super) fn end(rehearsed: &Job, job: &JobCgroup, spared: &[Pid]) -> Result<(), Failure> {
    if ends_well(rehearsed.leader())? {
        job.end_all_but(spared)
    } else {
        Err(Failure::Unproved("the program that runs before a job did not end well".into()))
    }
}

fn ends_well(leader: Pid) -> Result<bool, Failure> {
    let status = waitpid(leader, None).at("wait for a rehearsal's end")?;
    Ok(matches!(status, WaitStatus::Exited(_, 0)))
}

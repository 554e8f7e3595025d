//! What the job can use up. Each tries to get somewhat more than it is told that it may have, and stops there: a run
//! without protection uses that much and no more.

#![expect(unsafe_code, reason = "memory that is mapped by hand, and children that only wait")]

use std::{
    fs,
    io::Write,
    os::fd::OwnedFd,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit},
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pause},
};

use crate::{
    calls::{Answer, in_child},
    checks::Checks,
    clues::Clues,
};

const MIB: u64 = 1 << 20;

fn limit(clues: &Clues, key: &str, checks: &mut Checks) -> Option<u64> {
    let limit = clues.number(key);
    if limit.is_none() {
        checks.unknown(format!("no limit {key} was given"));
    }
    limit
}

pub(crate) fn processes(clues: &Clues, checks: &mut Checks) {
    let Some(most) = limit(clues, "pids", checks) else { return };
    let (mut children, mut refused) = (Vec::<Pid>::new(), None);
    while children.len() as u64 <= most {
        // SAFETY: the child waits and does nothing else.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => loop {
                pause();
            },
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(errno) => {
                refused = Some(errno);
                break;
            }
        }
    }
    let made = children.len();
    for child in &children {
        let _ = kill(*child, Signal::SIGKILL);
    }
    for child in children {
        let _ = waitpid(child, None);
    }
    checks.holds(
        refused.is_some(),
        match refused {
            Some(errno) => format!("after {made} of {most} processes: {errno:?}"),
            None => format!("{made} processes, more than {most}"),
        },
    );
}

pub(crate) fn memory(clues: &Clues, checks: &mut Checks) {
    let Some(most) = limit(clues, "memory", checks) else { return };
    let size = (most + 16 * MIB) as usize;
    let touched = in_child(|| {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping that nothing else uses.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::ENOMEM);
        }
        for page in (0..size).step_by(4096) {
            // SAFETY: it lies in the mapping.
            unsafe { start.cast::<u8>().add(page).write_volatile(1) };
        }
        Ok(())
    });
    match touched {
        Ok(Answer::Returned(Ok(()))) => {
            checks.holds(false, format!("{} MiB could be used", size as u64 / MIB));
        }
        Ok(Answer::Returned(Err(errno))) => {
            checks.holds(true, format!("{} MiB: {errno:?}", size as u64 / MIB));
        }
        Ok(Answer::Killed) => checks.holds(true, format!("{} MiB: killed", size as u64 / MIB)),
        Err(error) => checks.unknown(format!("no child to try it in: {error}")),
    }
}

pub(crate) fn scratch_space(clues: &Clues, checks: &mut Checks) {
    let Some(most) = limit(clues, "disk", checks) else { return };
    for place in ["/tmp", "/job", "/dev/shm"] {
        let path = PathBuf::from(place).join("mayfly-prober-fill");
        let Ok(mut file) = fs::File::create(&path) else { continue };
        let (block, mut written, mut refused) = (vec![0; MIB as usize], 0, None);
        while written <= most {
            if let Err(error) = file.write_all(&block) {
                refused = Some(error);
                break;
            }
            written += MIB;
        }
        drop(file);
        let _ = fs::remove_file(&path);
        let written = written / MIB;
        checks.holds(
            refused.is_some(),
            match refused {
                Some(error) => format!("{place}: {error} after {written} MiB"),
                None => format!("{place} took {written} MiB"),
            },
        );
    }
}

/// Everything that can be written, together.
pub(crate) fn disk(clues: &Clues, checks: &mut Checks) {
    let Some(most) = limit(clues, "disk", checks) else { return };
    let (block, mut written, mut files) = (vec![0; MIB as usize], 0, Vec::new());
    for place in ["/tmp", "/job", "/dev/shm"] {
        let path = PathBuf::from(place).join("mayfly-prober-disk");
        let Ok(mut file) = fs::File::create(&path) else { continue };
        files.push(path);
        while written <= most && file.write_all(&block).is_ok() {
            written += MIB;
        }
    }
    for file in files {
        let _ = fs::remove_file(file);
    }
    checks.holds(written <= most, format!("{} of {} MiB in all places together", written / MIB, most / MIB));
}

pub(crate) fn inodes(clues: &Clues, checks: &mut Checks) {
    let Some(most) = limit(clues, "inodes", checks) else { return };
    let directory = PathBuf::from("/tmp/mayfly-prober-inodes");
    if let Err(error) = fs::create_dir(&directory) {
        return checks.unknown(format!("no directory to fill: {error}"));
    }
    let (mut made, mut refused) = (0, None);
    while made <= most {
        if let Err(error) = fs::File::create(directory.join(made.to_string())) {
            refused = Some(error);
            break;
        }
        made += 1;
    }
    let _ = fs::remove_dir_all(&directory);
    checks.holds(
        refused.is_some(),
        match refused {
            Some(error) => format!("{error} after {made} files"),
            None => format!("{made} files"),
        },
    );
}

pub(crate) fn descriptors(clues: &Clues, checks: &mut Checks) {
    let Some(most) = limit(clues, "descriptors", checks) else { return };
    let (mut open, mut refused) = (Vec::<OwnedFd>::new(), None);
    while open.len() as u64 <= most {
        match fs::File::open("/dev/null") {
            Ok(file) => open.push(file.into()),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    checks.holds(
        refused.is_some(),
        match refused {
            Some(error) => format!("{error} after {} descriptors", open.len()),
            None => format!("{} descriptors", open.len()),
        },
    );
}

/// Burns on more threads than it has CPUs, and looks how much time it got.
pub(crate) fn cpu(clues: &Clues, checks: &mut Checks) {
    const BURNED: Duration = Duration::from_secs(2);
    /// A quota is given out in periods, so a burst may exceed it a little.
    const SLACK: f64 = 1.35;
    let Some(thousandths) = limit(clues, "cpu", checks) else { return };
    let allowed = thousandths as f64 / 1000.0;
    let available = thread::available_parallelism().map_or(1, usize::from) as f64;
    if allowed * SLACK >= available {
        return checks.unknown(format!("{available} CPUs are no more than it may have"));
    }
    let began = Instant::now();
    let threads: Vec<_> = (0..available as usize)
        .map(|_| {
            thread::spawn(move || {
                while began.elapsed() < BURNED {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    let got = used().as_secs_f64() / began.elapsed().as_secs_f64();
    checks.holds(
        got <= allowed * SLACK,
        format!("{got:.2} of {available} CPUs, where {allowed:.2} are allowed"),
    );
}

/// CPU time of this process.
fn used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

pub(crate) fn core_dumps(_: &Clues, checks: &mut Checks) {
    match getrlimit(Resource::RLIMIT_CORE) {
        Ok((soft, hard)) => {
            checks.holds(soft == 0 && hard == 0, format!("RLIMIT_CORE is {soft}, at most {hard}"));
        }
        Err(errno) => checks.unknown(format!("RLIMIT_CORE: {errno:?}")),
    }
}

/// No kind of namespace can be made, so none can be piled up.
pub(crate) fn namespaces(_: &Clues, checks: &mut Checks) {
    let kinds = [
        ("mount", libc::CLONE_NEWNS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("UTS", libc::CLONE_NEWUTS),
        ("IPC", libc::CLONE_NEWIPC),
        ("user", libc::CLONE_NEWUSER),
        ("PID", libc::CLONE_NEWPID),
        ("network", libc::CLONE_NEWNET),
    ];
    for (kind, flag) in kinds {
        // SAFETY: it changes the child, which then ends.
        match in_child(|| Errno::result(unsafe { libc::unshare(flag) }).map(drop)) {
            Ok(Answer::Returned(got)) => checks.refused(&format!("a new {kind} namespace"), got),
            Ok(Answer::Killed) => checks.holds(true, format!("a new {kind} namespace: killed")),
            Err(error) => checks.unknown(format!("no child to try it in: {error}")),
        }
    }
}

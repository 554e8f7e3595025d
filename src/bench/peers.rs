//! What the same work costs without mayfly: the floor, and what people use today where it is installed.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use pool::Tier;

use super::report::{Figure, Row};

/// Nothing but a process: `posix_spawn` and exec of the image's own program.
pub(super) fn floor(rootfs: &Path, times: usize, gap: Duration) -> Result<Row, String> {
    let program = rootfs.join("bin/echo");
    let mut all = Vec::new();
    for _ in 0..times {
        sleep(gap);
        all.push(first_byte(Command::new(&program).arg("hello"))?);
    }
    Ok(Row::latency(
        "floor",
        "posix_spawn of the same program with a pipe to its first byte: no isolation at all",
        all,
    ))
}

/// Every peer that this host has. One that does not start is left out: it is not what is measured.
pub(super) fn installed(tier: Tier, rootfs: &Path, times: usize, during: Duration) -> Vec<Row> {
    let root = rootfs.to_string_lossy().into_owned();
    let bwrap =
        ["--unshare-all", "--ro-bind", &root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/echo", "hello"]
            .map(ToOwned::to_owned);
    let nspawn = nspawn(&root, "peer", &["/bin/echo", "hello"]);
    let peers: [(&str, &str, &[String], usize); 2] =
        [("bwrap", "bwrap", &bwrap, times), ("systemd-nspawn", NSPAWN, &nspawn, times.min(30))];
    let mut rows = Vec::new();
    for (name, program, arguments, times) in peers {
        let measured: Result<Vec<_>, _> =
            (0..times).map(|_| first_byte(Command::new(program).args(arguments).envs(NSPAWN_ENV))).collect();
        if let Ok(all) = measured {
            rows.push(Row::latency(name, "cold, as a whole process: start to its first byte", all));
        }
    }
    if tier == Tier::Nspawn {
        rows.extend(nspawns_at_once(&root, during));
    }
    rows
}

const NSPAWN: &str = "systemd-nspawn";

/// An image need not say which system it is; and no end writes all dirty pages of the host to disk.
const NSPAWN_ENV: [(&str, &str); 2] =
    [("SYSTEMD_NSPAWN_CHECK_OS_RELEASE", "0"), ("SYSTEMD_SUPPRESS_SYNC", "1")];

/// As hardened as it can be from its command line: what the nspawn tier starts from.
fn nspawn(root: &str, machine: &str, command: &[&str]) -> Vec<String> {
    let machine = format!("--machine={machine}");
    let options = [
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=pipe",
        "--read-only",
        "--private-network",
        "--private-users=pick",
        "--private-users-ownership=map",
        "--drop-capability=all",
        "--no-new-privileges=yes",
        "--system-call-filter=~@keyring @debug @module @raw-io @reboot @swap @clock @obsolete @mount bpf \
         userfaultfd io_uring_setup io_uring_enter io_uring_register",
        &machine,
        "-D",
        root,
    ];
    options.iter().chain(command).map(|word| (*word).to_owned()).collect()
}

/// What `xargs -P4` makes of it.
fn nspawns_at_once(root: &str, during: Duration) -> Option<Row> {
    let began = Instant::now();
    let lane = |lane: usize| {
        let arguments = nspawn(root, &format!("peer-{lane}"), &["/bin/true"]);
        let mut done = 0;
        while began.elapsed() < during {
            let mut command = Command::new(NSPAWN);
            let status = command.args(&arguments).envs(NSPAWN_ENV).stdin(Stdio::null()).status();
            if !status.is_ok_and(|status| status.success()) {
                return None;
            }
            done += 1;
        }
        Some(done)
    };
    let lanes: Vec<Option<usize>> = scope(|threads| {
        let started: Vec<_> = (0..4).map(|number| threads.spawn(move || lane(number))).collect();
        started.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let n = lanes.into_iter().sum::<Option<usize>>()?;
    Some(Row {
        name: "nspawn, 4 at once".to_owned(),
        boundary: "systemd-nspawn of /bin/true, each from start to exit",
        figure: Figure::Rate { per_second: n as f64 / began.elapsed().as_secs_f64(), n },
    })
}

fn first_byte(command: &mut Command) -> Result<Duration, String> {
    let failed = |error: std::io::Error| error.to_string();
    let started = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
    let mut byte = [0];
    let read = child.stdout.take().map_or(Ok(0), |mut out| out.read(&mut byte)).map_err(failed);
    let took = started.elapsed();
    child.wait().map_err(failed)?;
    if read? == 0 { Err("it wrote nothing".to_owned()) } else { Ok(took) }
}

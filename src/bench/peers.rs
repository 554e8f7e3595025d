//! What the same work costs without mayfly: the floor, and what people use today where it is installed.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::report::Row;

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
pub(super) fn installed(rootfs: &Path, times: usize) -> Vec<Row> {
    let root = rootfs.to_string_lossy().into_owned();
    let bwrap =
        ["--unshare-all", "--ro-bind", &root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/echo", "hello"];
    let nspawn = [
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--read-only",
        "--private-network",
        "--private-users=pick",
        "--console=pipe",
        "-D",
        &root,
        "/bin/echo",
        "hello",
    ];
    let peers: [(&str, &str, &[&str], usize); 2] =
        [("bwrap", "bwrap", &bwrap, times), ("systemd-nspawn", "systemd-nspawn", &nspawn, times.min(30))];
    let mut rows = Vec::new();
    for (name, program, arguments, times) in peers {
        let measured: Result<Vec<_>, _> =
            (0..times).map(|_| first_byte(Command::new(program).args(arguments))).collect();
        if let Ok(all) = measured {
            rows.push(Row::latency(name, "cold, as a whole process: start to its first byte", all));
        }
    }
    rows
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

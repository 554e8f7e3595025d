//! What the same work costs without mayfly: the floor, and what people use today where it is installed.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
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
pub(super) fn installed(
    tier: Tier,
    rootfs: &Path,
    container: &(String, String),
    times: usize,
    during: Duration,
) -> Vec<Row> {
    let root = rootfs.to_string_lossy().into_owned();
    let bwrap =
        ["--unshare-all", "--ro-bind", &root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/echo", "hello"]
            .map(ToOwned::to_owned);
    let nspawn = alone("exec \"$@\"", nspawn(&root, &["/bin/echo", "hello"]));
    let docker = docker(container, &["/bin/echo", "hello"]);
    let peers: [(&str, &str, &[String], usize); 3] = [
        ("bwrap", "bwrap", &bwrap, times),
        ("systemd-nspawn", "unshare", &nspawn, times.min(30)),
        ("docker run --rm", "docker", &docker, times.min(30)),
    ];
    let found = made_by_nspawn();
    let mut rows = Vec::new();
    for (name, program, arguments, times) in peers {
        let measured: Result<Vec<_>, _> =
            (0..times).map(|_| first_byte(Command::new(program).args(arguments))).collect();
        if let Ok(all) = measured {
            rows.push(Row::latency(name, "cold, as a whole process: start to its first byte", all));
        }
    }
    if tier == Tier::Nspawn {
        rows.extend(nspawns_at_once(&root, during));
    }
    if tier == Tier::Docker {
        rows.extend(containers_at_once(container, during));
    }
    for cgroup in made_by_nspawn().into_iter().filter(|cgroup| !found.contains(cgroup)) {
        // Another's systemd-nspawn may be in it by now.
        let _ = std::fs::remove_dir(cgroup);
    }
    rows
}

/// It makes these at the top of the trees when it is started outside of any unit, and leaves them.
fn made_by_nspawn() -> Vec<PathBuf> {
    let trees = ["", "systemd", "unified"].map(|tree| Path::new("/sys/fs/cgroup").join(tree));
    let cgroups = trees.iter().flat_map(|tree| ["payload", "supervisor"].map(|name| tree.join(name)));
    cgroups.filter(|cgroup| cgroup.is_dir()).collect()
}

/// What to give to `unshare` so that nothing of systemd-nspawn stays on the host: it leaves directories and locks.
fn alone(script: &str, words: Vec<String>) -> Vec<String> {
    // An image need not say which system it is; and no end shall write all dirty pages of the host to disk.
    let script = format!(
        "mount -t tmpfs tmpfs /run && export SYSTEMD_NSPAWN_CHECK_OS_RELEASE=0 SYSTEMD_SUPPRESS_SYNC=1 && {script}"
    );
    let head = ["--mount", "sh", "-c", &script, "sh"].map(ToOwned::to_owned);
    head.into_iter().chain(words).collect()
}

/// As hardened as it can be from its command line: what the nspawn tier starts from.
fn nspawn(root: &str, command: &[&str]) -> Vec<String> {
    let options = [
        "systemd-nspawn",
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
        "--machine=peer-0",
        "-D",
        root,
    ];
    options.iter().chain(command).map(|word| (*word).to_owned()).collect()
}

/// As many as four at once can do, started one after the other.
fn nspawns_at_once(root: &str, during: Duration) -> Option<Row> {
    // At least as fast as any was seen, so that it lasts about as long as it should.
    let n = (during.as_secs_f64() * 25.0).max(40.0) as usize;
    let script = format!("seq {n} | xargs -P4 -I{{}} \"$@\"");
    let machine =
        |word: String| if word == "--machine=peer-0" { "--machine=peer-{}".to_owned() } else { word };
    let words = nspawn(root, &["/bin/true"]).into_iter().map(machine).collect();
    let mut command = Command::new("unshare");
    command.args(alone(&script, words)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    command.status().ok().filter(ExitStatus::success)?;
    let per_second = n as f64 / began.elapsed().as_secs_f64();
    Some(Row {
        name: "nspawn, 4 at once".to_owned(),
        boundary: "xargs -P4 systemd-nspawn of /bin/true, hardened as the tier has it: each from start to exit",
        figure: Figure::Rate { per_second, n },
    })
}

/// As hardened as it can be from its command line.
fn docker((host, image): &(String, String), command: &[&str]) -> Vec<String> {
    let options = [
        "--host",
        host,
        "run",
        "--rm",
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--log-driver=none",
        "--user=65534:65534",
        "--memory=512m",
        "--pids-limit=128",
        image,
    ];
    options.iter().chain(command).map(|word| (*word).to_owned()).collect()
}

/// As many as four at once can do, started one after the other.
fn containers_at_once(container: &(String, String), during: Duration) -> Option<Row> {
    let n = (during.as_secs_f64() * 10.0).max(20.0) as usize;
    let script = format!("seq {n} | xargs -P4 -I{{}} docker \"$@\"");
    let words = docker(container, &["/bin/true"]);
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    command.status().ok().filter(ExitStatus::success)?;
    let per_second = n as f64 / began.elapsed().as_secs_f64();
    Some(Row {
        name: "docker, 4 at once".to_owned(),
        boundary: "xargs -P4 docker run --rm of /bin/true, hardened as the tier has it: each from start to exit",
        figure: Figure::Rate { per_second, n },
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

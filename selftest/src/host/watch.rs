//! What the host sees of a sandbox while a job is in it: who is in its namespaces, what its machine was told, and whether a
//! secret of the job's can be read beside it.

use std::{
    fs, io,
    io::{BufRead, BufReader, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use pool::{Id, Tier};

use crate::{
    catalogue::Probe,
    ground::PROBER,
    inside::{Inside, LONG},
    looks::{Look, Looks},
};

const ASKED: [&str; 5] = ["C03", "I04", "A08", "C04", "P11"];
/// The first id that sandboxes have on the host.
const FIRST_ID: u32 = 0x7000_0000;
/// How a result says that its container's runtime is below the floor.
const OLD: &str = "old runtime:";
/// The longest file that is searched for a secret.
const LONGEST: u64 = 4 << 20;

/// What was seen, and what the controls saw.
pub(super) async fn ask(inside: &Inside<'_>, probes: &[&'static Probe], data_dir: &Path) -> (Looks, Looks) {
    let (mut looks, mut controls) = (Looks::default(), Looks::default());
    let asked = |id: &str| probes.iter().any(|probe| probe.id == id);
    if !ASKED.iter().any(|id| asked(id)) {
        return (looks, controls);
    }
    let secret = Id::random().to_string();
    let (seen, told) = match watch(inside, &secret, data_dir).await {
        Ok(seen) => seen,
        Err(why) => {
            ASKED.iter().filter(|id| asked(id)).for_each(|id| looks.add(id, Look::unknown(why.clone())));
            return (looks, controls);
        }
    };
    let mut add = |id: &str, look: Look, control: Look| {
        if asked(id) {
            looks.add(id, look);
            controls.add(id, control);
        }
    };
    let Seen { entered, readable, machine, label } = seen;
    match inside.tier {
        Tier::Vm => {
            add("A08", machine, disks("qemu-system-x86_64\0-drive\0file=/guest.img\0"));
            add("P11", label, Look::unknown("nothing is confined by a label here"));
        }
        _ => add("C03", entered, strangers(std::process::id())),
    }
    add("I04", readable, careless(&secret, &inside.clues.folder, data_dir));
    if inside.tier == Tier::Docker {
        let old = told.iter().find(|note| note.starts_with(OLD));
        add(
            "C04",
            match old {
                Some(note) => {
                    Look::unknown(format!("this host lacks it, and its operator allows that: {note}"))
                }
                None => Look::held("the runtime is at the floor"),
            },
            Look::unknown("a runtime below the floor is refused before there is a container"),
        );
    }
    (looks, controls)
}

struct Seen {
    entered: Look,
    readable: Look,
    machine: Look,
    label: Look,
}

/// Looks while a job is there that has the secret in its environment, and gives the notes of its result.
async fn watch(inside: &Inside<'_>, secret: &str, data_dir: &Path) -> Result<(Seen, Vec<String>), String> {
    let mut job = inside.job(["wait=1".to_owned()], LONG)?;
    job.env.insert("SECRET".to_owned(), secret.to_owned());
    let looking = async {
        let machine = descendants().into_iter().find(|pid| command_line(*pid).starts_with("qemu"));
        let job = processes().find(|pid| {
            let line = command_line(*pid);
            line.starts_with(PROBER) && line.contains(&inside.clues.token) && line.contains("wait=1")
        });
        Seen {
            entered: job
                .map_or_else(|| Look::unknown("the job's process is not seen from the host"), strangers),
            readable: found(secret, &inside.clues.folder, data_dir, job),
            machine: machine
                .map_or_else(|| Look::unknown("no machine is seen"), |pid| disks(&command_line(pid))),
            label: machine.map_or_else(|| Look::unknown("no machine is seen"), label),
        }
    };
    inside.with_neighbour(&job, "waiting", looking).await
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Arguments, each with a zero behind it; the program without its folders.
fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    match line.split_once('\0') {
        Some((program, rest)) if program != PROBER => {
            format!("{}\0{rest}", program.rsplit('/').next().unwrap_or_default())
        }
        _ => line,
    }
}

fn field(pid: u32, name: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// All processes below this one.
fn descendants() -> Vec<u32> {
    let parents: Vec<_> = processes().filter_map(|pid| Some((pid, field(pid, "PPid:")?))).collect();
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// C03: whoever is among the mounts of a process must be of a sandbox.
fn strangers(of: u32) -> Look {
    let mounts = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let Some(own) = mounts(of) else { return Look::unknown("its mounts are not seen") };
    let among: Vec<_> = processes().filter(|pid| mounts(*pid).as_ref() == Some(&own)).collect();
    let stranger = among.iter().find(|pid| field(**pid, "Uid:").is_some_and(|uid| uid < FIRST_ID));
    match stranger {
        Some(pid) => Look::open(format!("a process of the host's is among them, {pid}")),
        None => Look::held(format!("{} processes are among its mounts, none of the host's", among.len())),
    }
}

/// A08: each disk has a format that is said, and nobody writes to it.
fn disks(command_line: &str) -> Look {
    let words: Vec<_> = command_line.split('\0').collect();
    let values = words.windows(2).filter(|pair| matches!(pair[0], "-drive" | "-blockdev" | "-hda"));
    let mut count = 0;
    for pair in values {
        count += 1;
        let said = |word: &str| pair[1].split(',').any(|part| part == word);
        if pair[0] != "-blockdev" || !said("driver=raw") || !said("read-only=on") {
            return Look::open(format!(
                "{} {} has no format of its own, or can be written",
                pair[0], pair[1]
            ));
        }
    }
    Look::told(count > 0, format!("{count} disks, raw and read-only by the machine's command line"))
}

fn label(pid: u32) -> Look {
    match fs::read_to_string(format!("/proc/{pid}/attr/current")) {
        Ok(label) => {
            let label = label.trim_end_matches(['\0', '\n']);
            Look::told(!label.starts_with("unconfined"), format!("QEMU's label is {label:?}"))
        }
        Err(error) => Look::unknown(format!("no security module labels processes: {error}")),
    }
}

/// I04: where whoever is on the host, or asks its daemons, could read a job's secret.
fn found(secret: &str, folder: &Path, data_dir: &Path, job: Option<u32>) -> Look {
    for pid in processes() {
        if command_line(pid).contains(secret) {
            return Look::open(format!("it is in the arguments of process {pid}"));
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if Some(pid) != job
            && contains(&environment, secret)
            && field(pid, "Uid:").is_some_and(|uid| uid < FIRST_ID)
        {
            return Look::open(format!("it is in the environment of process {pid}"));
        }
    }
    let folders = [folder.parent().unwrap_or(folder).to_owned(), data_dir.join("ledger")];
    if let Some(file) = folders.iter().find_map(|folder| file_with(folder, secret, 4)) {
        return Look::open(format!("it is in {}", file.display()));
    }
    match inspected(secret) {
        Ok(false) | Err(_) => Look::held("in no argument, no file of mayfly's and no daemon's record"),
        Ok(true) => Look::open("docker tells it of a container"),
    }
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

fn file_with(folder: &Path, word: &str, depth: usize) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        if meta.is_dir() && depth > 0 {
            if let Some(found) = file_with(&path, word, depth - 1) {
                return Some(found);
            }
        } else if meta.is_file()
            && meta.len() < LONGEST
            && contains(&fs::read(&path).unwrap_or_default(), word)
        {
            return Some(path);
        }
    }
    None
}

/// Whether the daemon tells the secret to whoever asks for its containers.
fn inspected(secret: &str) -> io::Result<bool> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = host.strip_prefix("unix://").unwrap_or("/run/docker.sock").to_owned();
    let list: Vec<serde_json::Value> = serde_json::from_str(&get(&socket, "/containers/json?all=true")?)?;
    for container in list {
        let id = container["Id"].as_str().unwrap_or_default();
        if get(&socket, &format!("/containers/{id}/json"))?.contains(secret) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn get(socket: &str, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    io::Write::write_all(&mut stream, format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(body.to_owned())
}

/// A program that is handed its secret as an argument.
fn careless(secret: &str, folder: &Path, data_dir: &Path) -> Look {
    let program = folder.join("prober");
    let started = || -> io::Result<Child> {
        fs::write(&program, images::PROBER)?;
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut command = Command::new(&program);
        command.args(["wait=1", &format!("secret={secret}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        // Its arguments can be read only some time after it was started; when it speaks, they can.
        if let Some(stdout) = child.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut String::new())?;
        }
        Ok(child)
    };
    let look = match started() {
        Ok(mut child) => {
            let look = found(secret, folder, data_dir, None);
            drop(child.stdin.take());
            let _ = child.wait();
            look
        }
        Err(error) => Look::unknown(format!("nothing could be started with a secret: {error}")),
    };
    let _ = fs::remove_file(&program);
    look
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict;

    #[test]
    fn a_disk_whose_format_is_not_said_or_that_can_be_written_is_open() {
        let seen = |line: &str| disks(line).seen;
        assert_eq!(seen("qemu\0-blockdev\0driver=raw,node-name=disk,read-only=on\0"), verdict::Seen::Held);
        for line in [
            "qemu\0-blockdev\0driver=raw,node-name=disk\0",
            "qemu\0-blockdev\0driver=qcow2,read-only=on\0",
            "qemu\0-drive\0file=x,format=raw\0",
            "qemu\0",
        ] {
            assert_eq!(seen(line), verdict::Seen::Open, "{line}");
        }
    }

    #[test]
    fn whoever_is_among_the_hosts_mounts_is_a_stranger_to_a_sandbox() {
        // This test is root's, and so is its process.
        assert_eq!(strangers(std::process::id()).seen, verdict::Seen::Open);
    }

    #[test]
    fn a_secret_in_an_argument_or_a_file_is_found() {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join("selftest");
        fs::create_dir(&folder).unwrap();
        let secret = Id::random().to_string();
        assert_eq!(found(&secret, &folder, run.path(), None).seen, verdict::Seen::Held);
        assert_eq!(careless(&secret, &folder, run.path()).seen, verdict::Seen::Open);
        fs::write(folder.join("note"), &secret).unwrap();
        assert_eq!(found(&secret, &folder, run.path(), None).seen, verdict::Seen::Open);
    }
}

//! What the host sees of a sandbox while a job is in it: who is in its namespaces, what its machine was told, and whether a
//! secret of the job's can be read beside it (`secret`).

use std::{fs, path::Path};

use pool::Tier;

use super::secret::Secret;
use crate::{
    catalogue::Probe,
    ground::PROBER,
    inside::{Inside, LONG},
    looks::{Look, Looks},
};

const ASKED: [&str; 5] = ["C03", "I04", "A08", "C04", "P11"];
/// The first id that sandboxes have on the host.
pub(super) const FIRST_ID: u32 = 0x7000_0000;
/// How a result says that its container's runtime is below the floor.
const OLD: &str = "old runtime:";

/// What was seen, and what the controls saw.
pub(super) async fn ask(inside: &Inside<'_>, probes: &[&'static Probe], data_dir: &Path) -> (Looks, Looks) {
    let (mut looks, mut controls) = (Looks::default(), Looks::default());
    let asked = |id: &str| probes.iter().any(|probe| probe.id == id);
    if !ASKED.iter().any(|id| asked(id)) {
        return (looks, controls);
    }
    let watched = match Secret::keep(&inside.clues.folder, data_dir) {
        Ok(secret) => watch(inside, &secret).await.map(|seen| (seen, secret)),
        Err(error) => Err(format!("no secret can be kept on this host: {error}")),
    };
    let ((seen, told), secret) = match watched {
        Ok(watched) => watched,
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
    add("I04", readable, secret.careless(inside.tier));
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

/// Looks while a job is there that was given the secret, and gives the notes of its result.
async fn watch(inside: &Inside<'_>, secret: &Secret) -> Result<(Seen, Vec<String>), String> {
    let mut job = inside.job(["wait=1".to_owned()], LONG)?;
    job.egress = Some(secret.plan().ok_or("no such secret can be had")?);
    let looking = async {
        let machine = descendants().into_iter().find(|pid| command_line(*pid).starts_with("qemu"));
        let job = processes().find(|pid| {
            let line = command_line(*pid);
            line.starts_with(PROBER) && line.contains(&inside.clues.token) && line.contains("wait=1")
        });
        Seen {
            entered: job
                .map_or_else(|| Look::unknown("the job's process is not seen from the host"), strangers),
            readable: secret.found(inside.tier, job),
            machine: machine
                .map_or_else(|| Look::unknown("no machine is seen"), |pid| disks(&command_line(pid))),
            label: machine.map_or_else(|| Look::unknown("no machine is seen"), label),
        }
    };
    inside.with_neighbour(&job, "waiting", looking).await
}

pub(super) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Arguments, each with a zero behind it; the program without its folders.
pub(super) fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    match line.split_once('\0') {
        Some((program, rest)) if program != PROBER => {
            format!("{}\0{rest}", program.rsplit('/').next().unwrap_or_default())
        }
        _ => line,
    }
}

pub(super) fn field(pid: u32, name: &str) -> Option<u32> {
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
}

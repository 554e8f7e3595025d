//! What the job can read and write.

#![expect(unsafe_code, reason = "calls that the crates have no safe form for")]

use std::{
    env, fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{chdir, chroot},
};

use crate::{
    calls::{Answer, in_child},
    checks::Checks,
    clues::Clues,
};

/// What a job may write to, and nothing beside it.
const SCRATCH: [&str; 3] = ["/job", "/tmp", "/dev/shm"];

/// Devices that every container has.
const DEVICES: [&str; 14] = [
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin",
    "stdout", "stderr",
];

/// As Docker masks them by default.
const MASKED: [&str; 9] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/latency_stats",
    "/proc/acpi",
    "/proc/scsi",
    "/proc/asound",
    "/sys/firmware",
];

/// Opened for writing and never written.
const SETTINGS: [&str; 9] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/bus/pci/devices",
    "/proc/fs/ext4",
    "/sys/kernel/uevent_helper",
];

/// File systems that no disk is behind.
const OF_THE_KERNEL: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs"];

/// Where servers listen that would do anything for whoever reaches them.
const SOCKETS: [&str; 7] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/libvirt/libvirt-sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/crio/crio.sock",
];

/// Directories below the root that are walked for what lies in them, so deep.
const DEPTH: usize = 5;
/// And so many entries in all.
const ENTRIES: usize = 50_000;

/// One mount, as `/proc/self/mountinfo` tells it.
pub(crate) struct Mount {
    /// What of its file system is shown.
    root: String,
    point: String,
    options: Vec<String>,
    kind: String,
    /// What holds it: a device, or a word.
    device: String,
    /// Options of the file system, which can forbid writing by themselves.
    all_options: Vec<String>,
}

pub(crate) fn mounts() -> Option<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let words = |list: &str| list.split(',').map(str::to_owned).collect();
    text.lines()
        .map(|line| {
            let (own, file_system) = line.split_once(" - ")?;
            let own: Vec<_> = own.split(' ').collect();
            let file_system: Vec<_> = file_system.split(' ').collect();
            Some(Mount {
                root: (*own.get(3)?).to_owned(),
                point: (*own.get(4)?).to_owned(),
                options: words(own.get(5)?),
                kind: (*file_system.first()?).to_owned(),
                device: (*file_system.get(1)?).to_owned(),
                all_options: words(file_system.get(2)?),
            })
        })
        .collect()
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.point, self.root)
    }
}

impl Mount {
    fn is_writable(&self) -> bool {
        !self.options.iter().chain(&self.all_options).any(|option| option == "ro")
    }

    /// Whether it shows a piece of something whose names are somebody else's.
    pub(crate) fn is_part_of_a_disk(&self) -> bool {
        self.root != "/" && self.device.starts_with("/dev/")
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|has| has == option)
    }
}

/// A file of the host with a word in it that nobody else knows.
pub(crate) fn canary_is_out_of_reach(clues: &Clues, checks: &mut Checks) {
    let (Some(canary), Some(token)) = (clues.get("canary"), clues.get("token")) else {
        return checks.unknown("no canary was given");
    };
    let up = "/..".repeat(20);
    let ways = [
        canary.to_owned(),
        format!("{up}{canary}"),
        format!("/proc/1/root{canary}"),
        format!("/proc/self/root{up}{canary}"),
        format!("/proc/1/cwd{up}{canary}"),
        format!("/proc/self/cwd{up}{canary}"),
        format!("/proc/self/fd/0{up}{canary}"),
    ];
    let read = |way: &String| fs::read_to_string(way).is_ok_and(|text| text.contains(token));
    let open: Vec<_> = ways.iter().filter(|way| read(way)).cloned().collect();
    checks.holds(
        open.is_empty(),
        match open.first() {
            None => format!("{} ways lead to no canary", ways.len()),
            Some(way) => format!("{way} is the host's file"),
        },
    );
}

/// A root within the root is what an old way out begins with.
pub(crate) fn no_second_chroot(clues: &Clues, checks: &mut Checks) {
    let canary = clues.get("canary").unwrap_or_default().to_owned();
    let tried = in_child(|| {
        let inner = env::temp_dir().join("second-root");
        fs::create_dir_all(&inner).map_err(|_| Errno::EIO)?;
        chroot(&inner)?;
        for _ in 0..20 {
            chdir("..")?;
        }
        chroot(".")?;
        // It got out of the inner root at least; whether further is the canary's to say.
        if Path::new(&canary).exists() { Ok(()) } else { Err(Errno::ENOENT) }
    });
    let _ = fs::remove_dir(env::temp_dir().join("second-root"));
    match tried {
        Ok(Answer::Returned(got)) => checks.refused("chroot", got),
        Ok(Answer::Killed) => checks.holds(true, "chroot: killed"),
        Err(error) => checks.unknown(format!("no child to try it in: {error}")),
    }
}

/// The standard three, and the one by which this is read.
pub(crate) fn no_foreign_descriptor(_: &Clues, checks: &mut Checks) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return checks.unknown("/proc/self/fd cannot be listed");
    };
    let entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    for path in entries {
        let Ok(target) = fs::read_link(&path) else { continue };
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
        let own = number.is_some_and(|number| number < 3) || target.ends_with("fd");
        let shown = format!("{} is {}", path.display(), target.display());
        checks.holds(own, shown);
    }
}

pub(crate) fn working_directory_is_inside(_: &Clues, checks: &mut Checks) {
    match env::current_dir() {
        // The kernel says so of a directory that no path from the root leads to.
        Ok(path) => checks.holds(!path.starts_with("(unreachable)"), format!("it is {}", path.display())),
        Err(error) => checks.holds(false, format!("it has no path: {error}")),
    }
}

pub(crate) fn only_scratch_is_writable(_: &Clues, checks: &mut Checks) {
    let Ok(entries) = fs::read_dir("/") else { return checks.unknown("the root cannot be listed") };
    let mut places: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    places.extend(["/", "/usr/bin", "/usr/lib", "/etc", "/var/lib", "/var/tmp", "/run"].map(PathBuf::from));
    places.sort();
    places.dedup();
    for place in places {
        // A link to scratch is scratch.
        let place = fs::canonicalize(&place).unwrap_or(place);
        if SCRATCH.iter().any(|scratch| place == Path::new(scratch)) || place == Path::new("/proc") {
            continue;
        }
        let file = place.join(".mayfly-prober");
        let made = fs::File::create_new(&file);
        if made.is_ok() {
            let _ = fs::remove_file(&file);
            checks.holds(false, format!("{} is writable", place.display()));
        }
    }
    let held = SCRATCH.iter().filter(|scratch| Path::new(scratch).exists()).count();
    checks.holds(true, format!("nothing but {held} directories for scratch"));
}

/// Nothing that the job writes makes it anybody else.
pub(crate) fn scratch_gives_no_rights(_: &Clues, checks: &mut Checks) {
    let Some(mounts) = mounts() else { return checks.unknown("/proc/self/mountinfo cannot be read") };
    for mount in mounts.iter().filter(|mount| mount.is_writable() && mount.kind != "proc") {
        let both =
            mount.has("nosuid") && (mount.has("nodev") || mount.kind == "devpts" || mount.point == "/dev");
        checks.holds(both, format!("{} is {}", mount.point, mount.options.join(",")));
    }
}

pub(crate) fn kernel_files_are_masked(_: &Clues, checks: &mut Checks) {
    for path in MASKED {
        let seen = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()),
            Ok(meta) if meta.file_type().is_char_device() => false,
            Ok(_) => readable(path),
            Err(_) => false,
        };
        checks.holds(!seen, format!("{path} {}", if seen { "is readable" } else { "is not" }));
    }
}

/// Whether there is a first byte.
fn readable(path: &str) -> bool {
    use std::io::Read;
    fs::File::open(path).is_ok_and(|mut file| file.read(&mut [0; 1]).is_ok_and(|read| read == 1))
}

pub(crate) fn kernel_settings_are_closed(_: &Clues, checks: &mut Checks) {
    for path in SETTINGS {
        let opened = fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path);
        checks.holds(
            opened.is_err(),
            match opened {
                Ok(_) => format!("{path} opens for writing"),
                Err(error) => format!("{path}: {error}"),
            },
        );
    }
}

/// No file of a cgroup's can be written.
pub(crate) fn cgroups_are_closed(_: &Clues, checks: &mut Checks) {
    let Some(mounts) = mounts() else { return checks.unknown("/proc/self/mountinfo cannot be read") };
    let cgroups: Vec<_> = mounts.iter().filter(|mount| mount.kind.starts_with("cgroup")).collect();
    for mount in &cgroups {
        for name in ["cgroup.procs", "release_agent", "notify_on_release", "cgroup.subtree_control"] {
            let path = format!("{}/{name}", mount.point);
            let opened = fs::File::options().write(true).open(&path);
            checks.holds(
                opened.is_err(),
                match opened {
                    Ok(_) => format!("{path} opens for writing"),
                    Err(error) => format!("{path}: {error}"),
                },
            );
        }
    }
    checks.holds(true, format!("{} mounts of cgroups", cgroups.len()));
}

pub(crate) fn few_devices(_: &Clues, checks: &mut Checks) {
    let Ok(entries) = fs::read_dir("/dev") else { return checks.unknown("/dev cannot be listed") };
    let names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    for name in &names {
        if !DEVICES.contains(&name.as_str()) {
            checks.holds(false, format!("/dev/{name} is there"));
        }
    }
    checks.holds(true, format!("{} entries in /dev", names.len()));
    let made = in_child(|| {
        let path = c"/tmp/mayfly-prober-node";
        // SAFETY: the path is static. The node would be that of /dev/null.
        Errno::result(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)) })?;
        let opened = fs::File::open("/tmp/mayfly-prober-node");
        let _ = fs::remove_file("/tmp/mayfly-prober-node");
        opened.map(drop).map_err(|_| Errno::EPERM)
    });
    match made {
        Ok(Answer::Returned(got)) => checks.refused("a node of its own", got),
        Ok(Answer::Killed) => checks.holds(true, "mknod: killed"),
        Err(error) => checks.unknown(format!("no child to try mknod in: {error}")),
    }
}

/// No socket that a server of the host listens on is a file here.
pub(crate) fn no_socket_of_the_host(clues: &Clues, checks: &mut Checks) {
    let (mut found, mut seen) = (Vec::new(), 0);
    // First where one is known to be: a host has more files than there is time for.
    let beside = clues.get("canary").and_then(|canary| Path::new(canary).parent());
    for path in SOCKETS.iter().map(PathBuf::from).chain(beside.map(|folder| folder.join("socket"))) {
        if fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket()) {
            found.push(path);
        }
    }
    walk(Path::new("/"), DEPTH, &mut seen, &mut |path, meta| {
        if meta.file_type().is_socket() {
            found.push(path.to_owned());
        }
    });
    checks.holds(
        found.is_empty(),
        match found.first() {
            None => format!("no socket among {seen} files"),
            Some(first) => format!("{} sockets, such as {}", found.len(), first.display()),
        },
    );
}

fn walk(directory: &Path, depth: usize, seen: &mut usize, visit: &mut impl FnMut(&Path, &fs::Metadata)) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        *seen += 1;
        if *seen > ENTRIES {
            return;
        }
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        visit(&path, &meta);
        if meta.is_dir() && depth > 0 && path != Path::new("/proc") && path != Path::new("/sys") {
            walk(&path, depth - 1, seen, visit);
        }
    }
}

/// What of the host's disks is shown cannot be written.
pub(crate) fn no_bind_can_be_written(_: &Clues, checks: &mut Checks) {
    let Some(mounts) = mounts() else { return checks.unknown("/proc/self/mountinfo cannot be read") };
    let own_disk = fs::metadata("/tmp").map(|meta| meta.dev()).ok();
    for mount in mounts.iter().filter(|mount| !OF_THE_KERNEL.contains(&mount.kind.as_str())) {
        // An overlay writes to scratch of its own.
        let scratch = mount.kind == "overlay" && own_disk.is_some();
        let held = !mount.is_writable() || scratch && mount.has("nosuid");
        checks.holds(held, format!("{} is {} of a {}", mount.point, mount.root, mount.kind));
    }
    checks.holds(true, format!("{} mounts", mounts.len()));
}

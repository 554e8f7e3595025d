//! Probes that cannot say "open" prove nothing. Here a sandbox is made, the prober waits in it as a job, a mechanism is taken
//! away from outside as only the host's root can, and then the prober looks. Nothing in mayfly can be told to do that.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::PathBuf,
    process::Command,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use selftest::{Expected, Looks, Seen, Verdict, judge};

use crate::harness::{Place, Tier, eventually, on};

const TOKEN: &str = "a-word-that-nobody-else-knows";
const CANARY: &str = "/tmp/of-the-host/canary";
/// The limits of the job, as the prober is told them.
const LIMITS: [[&str; 2]; 4] =
    [["--memory", "96MiB"], ["--pids", "32"], ["--disk", "16MiB"], ["--cpus", "0.1"]];
const CLUES: [&str; 6] =
    ["memory=100663296", "pids=32", "disk=16777216", "cpu=100", "descriptors=1024", "inodes=65536"];

/// What the prober sees after something was done to its sandbox from outside.
fn look(place: &Place, probes: &[&str], more: &[&str], remove: impl FnOnce(u32)) -> Looks {
    let prober = place.node.write("mayfly-prober", images::PROBER);
    fs::set_permissions(&prober, fs::Permissions::from_mode(0o755)).unwrap();
    let token = format!("token={TOKEN}");
    let canary = format!("canary={CANARY}");
    let told = [
        &token,
        &canary,
        "own=/job/mayfly-prober",
        "services=10.99.0.1:4242",
        "resolvers=127.0.0.2",
        "wait=1",
    ];
    let (limits, clues): (Vec<&str>, Vec<&str>) = more.iter().partition(|word| !word.starts_with("inodes="));
    let command =
        ["/job/mayfly-prober"].iter().chain(&told).chain(&CLUES).chain(&clues).chain(probes).copied();
    // A limit that the prober does not know of is none to it.
    let usual = LIMITS.iter().filter(|[name, _]| !more.contains(name)).flatten().copied();
    let put = format!("{prober}:/job/mayfly-prober");
    let run = place.run(command).args(usual).args(["--stdin", "--put", put.as_str()]).args(limits);
    let mut running = run.start();
    assert_eq!(running.line(), "waiting");
    let sandbox = eventually("the prober is seen from the host", || {
        place.node.sandboxes().into_iter().find(|sandbox| !sandbox.job().is_empty())
    });
    remove(sandbox.job()[0]);
    running.say("\n");
    let finished = running.finish();
    Looks::parse(&String::from_utf8_lossy(&finished.stdout))
}

/// Each of these holds as mayfly makes a sandbox, and is exposed without its mechanism.
fn exposed_without(
    probes: &'static [&'static str],
    more: &'static [&'static str],
    remove: impl FnOnce(u32) + 'static,
) {
    on_chroot(move |place| {
        let whole = look(place, probes, &[], |_| {});
        let broken = look(place, probes, more, remove);
        for id in probes {
            let seen = |looks: &Looks| looks.of(id).unwrap_or_else(|| panic!("{id} said nothing")).clone();
            let (whole, broken) = (seen(&whole), seen(&broken));
            assert_eq!(whole.seen, Seen::Held, "{id}: {}", whole.evidence);
            let verdict = judge(Expected::Blocked, broken.seen, Seen::Open);
            assert_eq!(verdict, Verdict::Exposed, "{id}: {}", broken.evidence);
        }
    });
}

/// `on` takes a plain function, so what it is to look at goes by the thread.
fn on_chroot(behaviour: impl FnOnce(&Place) + 'static) {
    type Behaviour = Box<dyn FnOnce(&Place)>;
    thread_local!(static NEXT: std::cell::Cell<Option<Behaviour>> = const { std::cell::Cell::new(None) });
    NEXT.set(Some(Box::new(behaviour)));
    on(Tier::Chroot, |place| NEXT.take().unwrap()(place));
}

fn host(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A command of the image's own, by the host's root, among the sandbox's mounts.
fn among_its_mounts(pid: u32, script: &str) {
    host("nsenter", &["--target", &pid.to_string(), "--mount", "sh", "-ec", script]);
}

/// The same by the job's own user, who is the only one that its scratch space knows.
fn as_the_job(pid: u32, script: &str) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let (user, group) = (id("Uid:"), id("Gid:"));
    let words =
        ["--target", &pid.to_string(), "--mount", "--setuid", &user, "--setgid", &group, "sh", "-ec", script];
    host("nsenter", &words);
}

/// Does something in the sandbox's network and keeps what it gives until the test ends.
fn in_its_network<T: Send + 'static>(pid: u32, act: impl FnOnce() -> T + Send + 'static) {
    let network = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let (ready, done) = std::sync::mpsc::channel();
    thread::spawn(move || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let kept = act();
        ready.send(()).unwrap();
        // Gone with the process of the tests: the network goes with its sandbox.
        thread::park();
        drop(kept);
    });
    done.recv().unwrap();
}

fn address(pid: u32, address: &str) {
    host("nsenter", &["--target", &pid.to_string(), "--net", "ip", "address", "add", address, "dev", "lo"]);
}

// That the root cannot be written (F05) and that no other's name answers (X03) is kept by Landlock, too, where the kernel has
// it: without the one mechanism the other holds.
#[test]
fn mounts_that_give_rights_are_exposed() {
    exposed_without(&["F06"], &[], |pid| among_its_mounts(pid, "mount -t tmpfs none /etc"));
}

#[test]
fn processes_of_the_hosts_are_exposed() {
    exposed_without(&["I02"], &[], |pid| among_its_mounts(pid, "mount -t proc proc /proc"));
}

#[test]
fn devices_of_the_hosts_are_exposed() {
    exposed_without(&["F10"], &[], |pid| among_its_mounts(pid, "mount -t devtmpfs none /dev"));
}

#[test]
fn a_canary_and_a_socket_within_reach_are_exposed() {
    exposed_without(&["F01", "F11"], &[], |pid| {
        as_the_job(pid, &format!("mkdir /tmp/of-the-host; printf {TOKEN} >{CANARY}"));
        among_its_mounts(pid, "mount -t tmpfs none /etc");
        // The file stays when nobody listens any more.
        drop(UnixListener::bind(format!("/proc/{pid}/root/etc/socket")).unwrap());
    });
}

#[test]
fn a_file_system_of_the_hosts_that_can_be_written_is_exposed() {
    exposed_without(&["F12"], &[], |pid| {
        let overlay = "lowerdir=/etc,upperdir=/etc/u,workdir=/etc/w";
        let script =
            format!("mount -t tmpfs none /etc; mkdir /etc/u /etc/w; mount -t overlay -o {overlay} none /usr");
        among_its_mounts(pid, &script);
    });
}

#[test]
fn a_variable_of_mayflys_own_is_exposed() {
    exposed_without(&["I03"], &["--env", "LEAKED=a-word-that-nobody-else-knows"], |_| {});
}

#[test]
fn what_another_job_left_is_exposed() {
    exposed_without(&["X01", "X04", "X08"], &[], |pid| {
        as_the_job(pid, &format!("printf x >/tmp/mayfly-mark-{TOKEN}"));
    });
}

#[test]
fn an_interface_to_the_outside_is_exposed() {
    exposed_without(&["N01", "N06"], &[], interface);
}

#[test]
fn an_interface_to_the_outside_is_exposed_to_a_job_with_a_way_out() {
    exposed_without(&["N01", "N06"], &["--allow", "listed.test"], interface);
}

/// Gives a sandbox an interface besides its loopback.
fn interface(pid: u32) {
    let words = ["--net", "ip", "tuntap", "add", "mode", "tun", "name", "outside0"];
    host("nsenter", &[&["--target", &pid.to_string()], &words[..]].concat());
}

// What N08 and X05 rest on is decided in mayfly's own process, where nothing can be taken away from outside. Their controls do it
// in each selftest: rules that name all that is asked for, and a cache between the jobs and whom they ask. Both must be open there.

#[test]
fn servers_and_addresses_within_reach_are_exposed() {
    exposed_without(&REACHED, &[], within_reach);
}

#[test]
fn servers_and_addresses_within_reach_are_exposed_to_a_job_with_a_way_out() {
    exposed_without(&REACHED, &["--allow", "listed.test"], within_reach);
}

const REACHED: [&str; 5] = ["N02", "N03", "N04", "N07", "N09"];

/// Puts into a sandbox's network what is outside of it.
fn within_reach(pid: u32) {
    for reachable in ["169.254.169.254/32", "10.99.0.1/32", "192.0.2.1/32"] {
        address(pid, reachable);
    }
    in_its_network(pid, || {
        let resolver = UdpSocket::bind("127.0.0.2:53").unwrap();
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((bytes, from)) = resolver.recv_from(&mut question) {
                resolver.send_to(&question[..bytes], from).unwrap();
            }
        });
        let add = |sum: u16, byte: u8| sum.wrapping_mul(31).wrapping_add(u16::from(byte));
        let neighbour = 20_000 + TOKEN.bytes().fold(7_u16, add) % 10_000;
        ["169.254.169.254:80".to_owned(), "10.99.0.1:4242".to_owned(), format!("127.0.0.1:{neighbour}")]
            .map(|place| TcpListener::bind(place).unwrap())
    });
}

/// Controller, file, and what is no limit.
type Limit = (&'static str, &'static str, &'static str);

const MEMORY: [Limit; 3] = [
    ("memory", "memory.max", "max"),
    ("memory", "memory.memsw.limit_in_bytes", "-1"),
    ("memory", "memory.limit_in_bytes", "-1"),
];

/// Lifts a limit for the job and for all that it is in, up to what is not mayfly's.
fn lift(pid: u32, limits: &[Limit]) {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut lifted = false;
    for (controller, file, value) in limits {
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap());
            let v2 = controllers.is_empty();
            if !v2 && !controllers.split(',').any(|name| name == *controller) {
                continue;
            }
            let Some(root) = mount_of(&mounts, if v2 { None } else { Some(controller) }) else { continue };
            let mut place = root.join(path.trim_start_matches('/'));
            while place.to_string_lossy().contains("mayfly-") {
                lifted |= fs::write(place.join(file), value).is_ok();
                place.pop();
            }
        }
    }
    assert!(lifted, "no limit was there: {text}");
}

/// Where a hierarchy is mounted; `None`: the one of version 2.
fn mount_of(mounts: &str, controller: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (own, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1)?);
        let is_it = match controller {
            None => kind == "cgroup2",
            Some(name) => kind == "cgroup" && options.split(',').any(|option| option == name),
        };
        is_it.then(|| PathBuf::from(own.split(' ').nth(4).unwrap()))
    })
}

#[test]
fn memory_and_cpus_without_a_limit_are_exposed() {
    exposed_without(&["R02", "R07"], &[], |pid| {
        lift(pid, &MEMORY);
        lift(pid, &[("cpu", "cpu.max", "max"), ("cpu", "cpu.cfs_quota_us", "-1")]);
    });
}

#[test]
fn processes_and_files_beyond_what_was_said_are_exposed() {
    exposed_without(&["R01", "R03", "R04"], &["--pids", "64", "--disk", "64MiB"], |_| {});
    exposed_without(&["R05"], &["inodes=1000"], |_| {});
}

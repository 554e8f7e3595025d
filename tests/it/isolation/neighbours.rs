//! Other sandboxes, now and before: nothing of one is seen by another.

use std::{collections::HashSet, fs, ops::Range};

use serde_json::{Value, json};

use crate::harness::{Place, Sandbox, Tier, by_libvirt_too, in_guest, on_every_tier};

on_every_tier! {
    two_live_sandboxes_share_no_user_id_and_none_with_the_host
    nothing_of_a_live_neighbour_is_seen
    nothing_of_a_former_job_is_seen_by_the_next
    however_a_job_ends_the_next_life_in_its_place_is_clean
}

by_libvirt_too! {
    two_live_sandboxes_share_no_user_id_and_none_with_the_host
    however_a_job_ends_the_next_life_in_its_place_is_clean
}

/// Leaves something wherever a job can, and says `ready`.
const TRACES: &str = "import os, socket, subprocess\n\
    for at in '/tmp', '/job', '/dev/shm': open(at + '/trace', 'w').write('trace')\n\
    listener = socket.socket(socket.AF_UNIX); listener.bind('\\0trace'); listener.listen()\n\
    tcp = socket.create_server(('127.0.0.1', 4321))\n\
    import ctypes; libc = ctypes.CDLL(None)\n\
    libc.shmget(4321, 4096, 0o1666); libc.semget(4321, 1, 0o1666); libc.msgget(4321, 0o1666)\n";

/// Prints whatever of the traces it finds.
const LOOK: &str = "import os, socket, ctypes\n\
    for at in '/tmp', '/job', '/dev/shm': print(*os.listdir(at), sep='', end='')\n\
    def reached(family, at):\n  with socket.socket(family) as s:\n    if s.connect_ex(at) == 0: print('reached', at)\n\
    reached(socket.AF_UNIX, '\\0trace'); reached(socket.AF_INET, ('127.0.0.1', 4321))\n\
    libc = ctypes.CDLL(None)\n\
    for name, got in ('shm', libc.shmget(4321, 0, 0)), ('sem', libc.semget(4321, 0, 0)), ('msg', libc.msgget(4321, 0)):\n  if got >= 0: print(name)\n\
    for pid in filter(str.isdigit, os.listdir('/proc')):\n  if int(pid) != os.getpid(): print('process', pid)\n";

fn two_live_sandboxes_share_no_user_id_and_none_with_the_host(place: &Place) {
    let script = || place.shell("echo ready; read end").args(["--stdin"]);
    let (mut running, mut ranges) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (one, _) = place.start(script());
        running.push(one);
    }
    for sandbox in place.node.sandboxes() {
        ranges.push(ids(place, &sandbox));
    }
    let [one, two] = ranges.as_slice() else { panic!("{ranges:?}") };
    assert!(one.end <= two.start || two.end <= one.start, "{one:?} and {two:?} overlap");
    assert!(one.start >= 100_000 && two.start >= 100_000, "{one:?}, {two:?}");
    for one in running {
        one.finish().code(1);
    }
}

/// The host's ids of everything in a sandbox: those that run, and the whole range that its user namespace maps.
fn ids(place: &Place, sandbox: &Sandbox) -> Range<u32> {
    let mut range: Option<Range<u32>> = None;
    for pid in sandbox.job().into_iter().chain(sandbox.agent()) {
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
        let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
        let [0, start, count] = fields.as_slice() else { panic!("more than one mapping: {map}") };
        let mapped = match place.tier {
            Tier::Chroot | Tier::Nspawn => *start..start + count,
            // No user namespace: the ids are the host's, out of a range that is the sandbox's alone.
            Tier::Docker | Tier::Vm => own_range(pid),
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for name in ["Uid:", "Gid:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            assert!(
                line.split_whitespace().all(|id| mapped.contains(&id.parse().unwrap())),
                "{line} and {mapped:?}"
            );
        }
        assert!(range.is_none_or(|range| range == mapped));
        range = Some(mapped);
    }
    range.expect("a sandbox that runs")
}

/// The range that a process's owner is in, if mayfly has given it.
fn own_range(pid: u32) -> Range<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let owner: u32 = line.split_whitespace().next().unwrap().parse().unwrap();
    let start = owner & !0xffff;
    assert!(start >= 0x7000_0000, "process {pid} is {start} and more on the host");
    start..start + 0x1_0000
}

fn nothing_of_a_live_neighbour_is_seen(place: &Place) {
    let program = format!("{TRACES}print('ready', flush=True); input()");
    let (running, _) = place.start(place.python(&program).args(["--stdin"]));
    assert_eq!(place.python(LOOK).finish().code(0).text(), "");
    running.finish().code(1);
}

fn nothing_of_a_former_job_is_seen_by_the_next(place: &Place) {
    let program = format!("{TRACES}subprocess.Popen(['sleep', '1000'], start_new_session=True)");
    place.python(&program).finish().code(0);
    assert_eq!(place.python(LOOK).finish().code(0).text(), "");
    // Who looks can see: the same look, from inside of the same sandbox.
    let both = format!("{TRACES}{LOOK}");
    let seen = place.python(&both).finish().code(0);
    for what in ["trace", "reached \0trace", "reached ('127.0.0.1', 4321)", "shm", "sem", "msg"] {
        assert!(seen.text().contains(what), "the look is blind to {what:?}: {}", seen.text());
    }
}

/// One process, one place: each job that leaves something is followed by one that looks.
fn however_a_job_ends_the_next_life_in_its_place_is_clean(place: &Place) {
    let forever = "\nimport time; time.sleep(1000)";
    let endings = [
        ("failed", format!("{TRACES}raise SystemExit(9)")),
        (
            "timed_out",
            format!("{TRACES}subprocess.Popen(['sleep', '1000'], start_new_session=True){forever}"),
        ),
        ("out_of_memory", format!("{TRACES}held = bytearray(1 << 30)")),
        ("failed", format!("{TRACES}os.kill(os.getpid(), 9)")),
        (
            "succeeded",
            format!("{TRACES}\ntry: open('/tmp/full', 'wb').write(bytes(200 << 20))\nexcept OSError: pass"),
        ),
    ];
    // An emulated interpreter takes seconds until it runs.
    let (soon, late) = if place.tier == Tier::Vm || in_guest() { ("8s", "20s") } else { ("2s", "2s") };
    let job = |id: String, outcome: &str, program: &str| {
        let timeout = if outcome == "timed_out" { soon } else { late };
        let limits = json!({ "memory": "128MiB", "disk": "64MiB" });
        json!({ "schema_version": 1, "id": id, "image": "base", "tier": place.tier.name(), "limits": limits,
                "timeout": timeout, "command": ["python3", "-I", "-B", "-c", program] })
        .to_string()
    };
    let mut lines = Vec::new();
    for (number, (outcome, program)) in endings.iter().enumerate() {
        lines.push(job(format!("leaves-{number}"), outcome, program));
        lines.push(job(format!("looks-{number}"), "succeeded", LOOK));
    }
    let jobs = place.node.write("jobs", lines.join("\n"));
    let results = place.node.file("results");
    let words = ["batch", &jobs, "--jobs", "1", "-o", results.to_str().unwrap()];
    place.node.mayfly(words).finish().code(0);

    let results = fs::read_to_string(results).unwrap();
    let results: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |id: String| results.iter().find(|result| result["id"] == *id).unwrap();
    for (number, (outcome, _)) in endings.iter().enumerate() {
        let left = find(format!("leaves-{number}"));
        assert_eq!(left["outcome"], *outcome, "{left}");
        let looked = find(format!("looks-{number}"));
        assert_eq!(
            (&looked["outcome"], &looked["stdout"]["text"]),
            (&json!("succeeded"), &json!("")),
            "{looked}"
        );
    }
    let lives: HashSet<_> = results.iter().map(|result| result["generation"].as_str().unwrap()).collect();
    assert_eq!(lives.len(), 2 * endings.len());
    assert_eq!(place.node.leftovers(), [""; 0]);
}

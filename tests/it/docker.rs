//! What only the docker tier has: a daemon that stops, is killed and comes back, and containers that go by other hands.
//!
//! Each of these has a daemon of its own, so that no other test suffers from it.

use std::{fs, process::Command, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};
use servers::Dockerd;

use crate::harness::{Node, Place, Running, Sandbox, Tier, eventually, on, result_of, use_by};

/// A daemon that the test may do with as it likes, where the tier can be run at all.
fn with_own_daemon(behaviour: fn(&Place, &mut Dockerd)) {
    // A function pointer takes nothing along.
    fn ready(_: &Place) {
        READY.with(|ready| ready.set(true));
    }
    thread_local!(static READY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    on(Tier::Docker, ready);
    if READY.with(std::cell::Cell::get) {
        let mut daemon = Dockerd::start().unwrap();
        let place = Place { tier: Tier::Docker, node: use_by(Node::new(), &daemon) };
        behaviour(&place, &mut daemon);
    }
}

fn in_long_job(place: &Place) -> (Running, Sandbox) {
    place.start(place.shell("echo ready; sleep 1000"))
}

fn containers(daemon: &Dockerd) -> Vec<Value> {
    let (status, body) = daemon.ask("GET", "/containers/json?all=true").unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn only_container(daemon: &Dockerd) -> String {
    let [container] = &containers(daemon)[..] else { panic!("one container") };
    container["Id"].as_str().unwrap().to_owned()
}

/// The pool of the next mayfly finds what the last could not remove.
fn is_well_again(place: &Place, daemon: &Dockerd) {
    place.run(["true"]).finish().code(0);
    eventually("nothing is left", || {
        (place.node.leftovers().is_empty() && containers(daemon).is_empty()).then_some(())
    });
    place.node.mayfly(["audit", "verify"]).finish().code(0);
}

#[test]
fn a_daemon_that_is_killed_or_stopped_loses_the_sandbox_and_leaves_no_process() {
    with_own_daemon(|place, daemon| {
        for end in [Dockerd::kill, Dockerd::stop] {
            let (running, sandbox) = in_long_job(place);
            end(daemon).unwrap();
            running.finish().code(125).says(&["the sandbox was lost", "not its failure"]);
            assert_eq!((sandbox.job(), sandbox.agent()), (vec![], vec![]));
            place.run(["true"]).finish().code(125).says(&["no docker daemon answers at", "docker.sock"]);
            daemon.start_again().unwrap();
            is_well_again(place, daemon);
        }
    });
}

#[test]
fn a_batch_goes_on_when_the_daemon_comes_back() {
    with_own_daemon(|place, daemon| {
        let job = |number: usize| {
            format!(
                r#"{{"schema_version":1,"id":"job-{number}","image":"minimal","tier":"docker","idempotent":true,"command":["sleep","0.3"]}}"#
            )
        };
        let jobs = place.node.write("jobs", (0..12).map(job).collect::<Vec<_>>().join("\n"));
        let results = place.node.file("results");
        let words = ["batch", &jobs, "--jobs", "2", "-o", results.to_str().unwrap()];
        let running = place.node.mayfly(words).start();
        let done = || fs::read_to_string(&results).unwrap_or_default().lines().count();
        eventually("some jobs are done", || (done() >= 3).then_some(()));
        // Sandboxes wait, run, are made and are removed at this moment.
        daemon.kill().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        daemon.start_again().unwrap();
        running.finish().code(0);
        let results = fs::read_to_string(&results).unwrap();
        let outcomes: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(outcomes.len(), 12);
        assert!(outcomes.iter().all(|result| result["outcome"] == "succeeded"), "{results}");
        is_well_again(place, daemon);
    });
}

#[test]
fn a_container_that_is_removed_by_another_hand_is_a_lost_sandbox() {
    with_own_daemon(|place, daemon| {
        let (running, _) = in_long_job(place);
        let (status, body) =
            daemon.ask("DELETE", &format!("/containers/{}?force=true", only_container(daemon))).unwrap();
        assert_eq!(status, 204, "{body}");
        running.finish().code(125).says(&["the sandbox was lost"]);
        assert_eq!(place.node.leftovers(), [""; 0]);
        is_well_again(place, daemon);
    });
}

#[test]
fn a_container_that_somebody_pauses_is_lost_at_its_jobs_timeout_and_the_job_is_not_blamed() {
    with_own_daemon(|place, daemon| {
        let (running, _) =
            place.start(place.shell("echo ready; sleep 1000").args(["--timeout", "2s", "--grace", "100ms"]));
        let (status, body) =
            daemon.ask("POST", &format!("/containers/{}/pause", only_container(daemon))).unwrap();
        assert_eq!(status, 204, "{body}");
        running.finish().code(125).says(&["the sandbox was lost", "not its failure"]);
        assert_eq!(place.node.leftovers(), [""; 0]);
        is_well_again(place, daemon);
    });
}

#[test]
fn a_daemon_that_hangs_holds_up_nobody_for_ever() {
    with_own_daemon(|place, daemon| {
        let (running, sandbox) = in_long_job(place);
        daemon.freeze().unwrap();
        running.signal(Signal::INT);
        running.signal(Signal::INT);
        running.finish();
        assert_eq!((sandbox.job(), sandbox.agent()), (vec![], vec![]));
        daemon.thaw().unwrap();
        is_well_again(place, daemon);
    });
}

/// A file that nobody may remove, among those that the daemon keeps of the container.
#[test]
fn a_container_that_cannot_be_removed_is_quarantined_and_the_job_has_its_result() {
    with_own_daemon(|place, daemon| {
        let mut running = place.shell("echo ready; read end; exit 7").args(["--stdin", "--json"]).start();
        // Not before the job has its sandbox: the daemon itself writes to the file until the container has started.
        eventually("the job has its sandbox", || {
            place.node.sandboxes().into_iter().find(|sandbox| !sandbox.job().is_empty())
        });
        let file = daemon.folder().join("data/containers").join(only_container(daemon)).join("hostname");
        let set = |flag: &str| Command::new("chattr").arg(flag).arg(&file).status().unwrap().success();
        eventually("the file is there", || set("+i").then_some(()));
        running.say("now\n");
        let result = running.finish().code(7).json();
        let notes = result["notes"].as_array().unwrap();
        assert!(notes.iter().any(|note| note.as_str().unwrap().contains("could not be ended")), "{notes:?}");
        let ledger = place.node.ledger();
        let ended = ledger.iter().find(|record| record["event"] == "ended").unwrap();
        assert_eq!(ended["how"], "quarantined", "{ended}");
        assert!(set("-i"));
        is_well_again(place, daemon);
    });
}

/// The same of one that waits, whose process somebody has killed: no job has seen it, and it has its place all the same.
#[test]
fn a_container_that_waits_and_cannot_be_removed_is_quarantined() {
    with_own_daemon(|place, daemon| {
        let job = |id: &str, command: &[&str]| json!({ "schema_version": 1, "id": id, "image": "minimal", "tier": "docker", "command": command });
        let jobs = [job("long", &["sleep", "1000"]), job("next", &["true"])];
        let jobs = place.node.write("jobs", jobs.map(|job| job.to_string()).join("\n"));
        let results = place.node.file("results");
        let words = ["batch", &jobs, "--jobs", "1", "-o", results.to_str().unwrap()];
        let running = place.node.mayfly(words).start();
        let kinds = || {
            let kinds = place.node.mayfly(["pool", "status", "--json"]).finish().code(0).json();
            kinds.as_array().unwrap().iter().find(|kind| kind["tier"] == "docker").cloned()
        };
        let stands = |state: &str, count: u64| {
            eventually(state, || kinds().filter(|kind| kind[state] == count).map(drop));
        };
        stands("leased", 1);
        stands("ready", 1);
        let named = |event: &str| {
            let ledger = place.node.ledger().into_iter().filter(|record| record["event"] == event);
            ledger.map(|record| record["generation"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let consumed = named("consumed");
        let waits = named("clean").into_iter().find(|generation| !consumed.contains(generation)).unwrap();
        let container = containers(daemon).into_iter().find(|it| it["Names"].to_string().contains(&waits));
        let container = container.unwrap()["Id"].as_str().unwrap().to_owned();
        let file = daemon.folder().join("data/containers").join(&container).join("hostname");
        let set = |flag: &str| Command::new("chattr").arg(flag).arg(&file).status().unwrap().success();
        assert!(set("+i"));
        let (status, body) = daemon.ask("POST", &format!("/containers/{container}/kill")).unwrap();
        assert_eq!(status, 204, "{body}");
        stands("quarantined", 1);
        assert!(set("-i"));
        place.node.mayfly(["cancel", "long"]).finish().code(0);
        running.finish().code(0);
        let results = fs::read_to_string(results).unwrap();
        assert!(results.contains("succeeded"), "the next job has another sandbox: {results}");
        is_well_again(place, daemon);
    });
}

#[test]
fn a_container_is_as_confined_as_docker_can_make_it_before_mayfly_adds_its_own() {
    with_own_daemon(|place, daemon| {
        let (running, sandbox) = in_long_job(place);
        let (_, body) = daemon.ask("GET", &format!("/containers/{}/json", only_container(daemon))).unwrap();
        let container: Value = serde_json::from_str(&body).unwrap();
        let host = &container["HostConfig"];
        for (field, expected) in [
            ("Privileged", Value::from(false)),
            ("CapDrop", Value::from(vec!["ALL"])),
            ("CapAdd", Value::Null),
            ("SecurityOpt", Value::from(vec!["no-new-privileges:true"])),
            ("ReadonlyRootfs", Value::from(true)),
            ("NetworkMode", Value::from("none")),
            ("IpcMode", Value::from("private")),
            ("CgroupnsMode", Value::from("private")),
            ("AutoRemove", Value::from(true)),
            ("MemorySwap", host["Memory"].clone()),
        ] {
            assert_eq!(host[field], expected, "{field}");
        }
        assert_eq!(host["LogConfig"]["Type"], "none");
        assert!(
            !host["MaskedPaths"].as_array().unwrap().is_empty()
                && !host["ReadonlyPaths"].as_array().unwrap().is_empty()
        );
        assert_eq!(container["Mounts"], Value::from(Vec::<Value>::new()), "nothing of the host's");
        let labels = &container["Config"]["Labels"];
        assert_eq!(labels["mayfly.generation"], sandbox.generation());
        assert_eq!(labels["mayfly.instance"], place.node.instances()[0]);
        assert!(container["Name"].as_str().unwrap().ends_with(sandbox.generation()));
        for pid in sandbox.agent().into_iter().chain(sandbox.job()) {
            for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
                let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
                assert_ne!(link(&pid.to_string()), link("self"), "{name} of {pid}");
            }
        }
        running.signal(Signal::INT);
        running.signal(Signal::INT);
        running.finish();
    });
}

#[test]
fn an_image_is_handed_over_once_and_bears_its_digest() {
    with_own_daemon(|place, daemon| {
        let images =
            || -> Vec<Value> { serde_json::from_str(&daemon.ask("GET", "/images/json").unwrap().1).unwrap() };
        place.run(["true"]).finish().code(0);
        let first = images();
        place.run(["true"]).finish().code(0);
        let [image] = &images()[..] else { panic!("one image") };
        assert_eq!(image["Id"], first[0]["Id"]);
        let digest =
            place.node.mayfly(["image", "inspect", "minimal", "--json"]).finish().json()["digest"].clone();
        assert_eq!(image["Labels"]["mayfly.digest"], digest);
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        assert_eq!(image["RepoTags"], Value::from(vec![format!("mayfly:{}", &hex[..12])]));
        // Somebody removes it: it is handed over again.
        let (status, body) =
            daemon.ask("DELETE", &format!("/images/mayfly:{}?force=true", &hex[..12])).unwrap();
        assert_eq!(status, 200, "{body}");
        place.run(["true"]).finish().code(0);
        assert_eq!(images().len(), 1);
    });
}

#[test]
fn an_image_that_left_the_store_leaves_the_daemon_when_the_next_one_comes() {
    with_own_daemon(|place, daemon| {
        // A store of its own, from which it may take things away.
        fs::remove_file(place.node.data_dir().join("images")).unwrap();
        let tags = || {
            let images: Vec<Value> =
                serde_json::from_str(&daemon.ask("GET", "/images/json").unwrap().1).unwrap();
            images.iter().map(|image| image["RepoTags"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let build = |name: &str| {
            let text =
                format!("name = '{name}'\nsource = {{ kind = 'busybox' }}\nfiles = {{ '/etc/{name}' = '' }}");
            let path = place.node.write("own.toml", text);
            place.node.mayfly(["image", "build", &path]).finish().code(0);
            place.run_in(name, ["true"]).finish().code(0);
        };
        build("first");
        let first = tags();
        assert_eq!(first.len(), 1);
        place.node.mayfly(["image", "rm", "first"]).finish().code(0);
        build("second");
        let second = tags();
        assert!(second.len() == 1 && second != first, "{first:?}, then {second:?}");
    });
}

/// An image of the daemon's gives one of the store's: the same on each tier, and a volume of it is a directory.
#[test]
fn a_local_docker_image_becomes_an_image_of_the_store() {
    with_own_daemon(|place, daemon| {
        // The daemon's own image, made of one that it has by now.
        place.run(["true"]).finish().code(0);
        let images: Vec<Value> = serde_json::from_str(&daemon.ask("GET", "/images/json").unwrap().1).unwrap();
        let order = format!("{{\"Image\": {}, \"Cmd\": [\"/\"]}}", images[0]["Id"]);
        let (_, made) = daemon.tell("/containers/create?name=origin", &order).unwrap();
        let made: Value = serde_json::from_str(&made).unwrap();
        let changes =
            "VOLUME%20/root&changes=USER%200&changes=ENV%20OF_DOCKER=1&changes=ENTRYPOINT%20/bin/false";
        let commit = format!("/commit?container=origin&repo=team/tool&tag=1&changes={changes}");
        let (status, body) = daemon.tell(&commit, "{}").unwrap();
        assert_eq!(status, 201, "{body} {made}");
        daemon.ask("DELETE", "/containers/origin?v=true").unwrap();

        let name = format!("from-docker-{}", std::process::id());
        let definition = format!("name = '{name}'\nsource = {{ kind = 'docker', image = 'team/tool:1' }}");
        let path = place.node.write("from-docker.toml", definition);
        place.node.mayfly(["image", "build", &path]).finish().code(0);
        for tier in ["chroot", "docker"] {
            let script =
                "ls /.dockerenv 2>/dev/null; echo $OF_DOCKER; touch /root/x 2>/dev/null || echo read-only";
            let words = ["run", "--tier", tier, "--image", &name, "--", "sh", "-c", script];
            assert_eq!(place.node.mayfly(words).finish().code(0).text(), "read-only", "{tier}");
        }
        assert_eq!(containers(daemon), [] as [Value; 0]);
        let (_, volumes) = daemon.ask("GET", "/volumes").unwrap();
        assert!(
            serde_json::from_str::<Value>(&volumes).unwrap()["Volumes"].as_array().is_none_or(Vec::is_empty)
        );

        let unknown = place
            .node
            .write("unknown.toml", "name = 'x'\nsource = { kind = 'docker', image = 'nobody/has:it' }");
        place
            .node
            .mayfly(["image", "build", &unknown])
            .finish()
            .code(125)
            .says(&["answers 404", "docker pull"]);
        place.node.mayfly(["image", "rm", &name]).finish();
    });
}

#[test]
fn a_daemon_that_cannot_be_used_is_refused_with_the_reason() {
    on(Tier::Docker, |place| {
        let run = |place: &Place| place.run(["true"]);
        let away = ["no docker daemon answers at /nowhere/docker.sock"];
        run(place).env("DOCKER_HOST", "unix:///nowhere/docker.sock").finish().code(125).says(&away);
        let remote = ["tcp://192.0.2.1:2375", "not reached by a socket of this host"];
        run(place).env("DOCKER_HOST", "tcp://192.0.2.1:2375").finish().code(125).says(&remote);
        let config = place.node.write("odd.toml", "[docker]\nruntime = 'nowhere'");
        run(place)
            .env("MAYFLY_CONFIG", &config)
            .finish()
            .code(125)
            .says(&["knows no runtime \"nowhere\"", "runc"]);
    });
}

/// Whether this host's runc is old is seen from what results say of it.
#[test]
fn an_old_runtime_is_used_only_where_that_is_allowed_and_each_result_says_so() {
    on(Tier::Docker, |place| {
        let result = result_of(place.run(["true"]), 0);
        let notes: Vec<_> =
            result["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
        let old = notes.iter().any(|note| note.starts_with("old runtime: runc "));
        let strict = place.node.write("strict.toml", "");
        let finished = place.run(["true"]).env("MAYFLY_CONFIG", &strict).finish();
        let doctor = place.node.mayfly(["doctor", "--json"]).env("MAYFLY_CONFIG", &strict).finish().json();
        let docker =
            doctor["tiers"].as_array().unwrap().iter().find(|tier| tier["tier"] == "docker").unwrap().clone();
        if old {
            finished.code(125).says(&["has known ways out of a container", "allow_old_runtime = true"]);
            assert_eq!(docker["ready"], false);
            assert!(docker["fix"].as_str().unwrap().contains("allow_old_runtime"), "{docker}");
        } else {
            finished.code(0);
            assert_eq!(docker["ready"], true);
        }
    });
}

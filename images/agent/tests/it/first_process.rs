//! The agent as the first process of a pid namespace.

use agent::message::{Ending, Hello, Rlimit, Signal, ToAgent, ToHost};

use crate::host::{Host, NOBODIES, STDIN, eventually, hello, run, sh};

fn ready() -> Host {
    let mut host = Host::spawn_first();
    host.greet(hello());
    host
}

#[test]
fn a_daemon_does_not_outlive_the_job() {
    let script = "for n in 1 2 3; do setsid sleep 300 & done
        until [ $(grep -als ^sleep /proc/[0-9]*/cmdline | wc -l) = 3 ]; do :; done; echo gone; exit 5";
    let outcome = ready().run(sh(script));
    assert_eq!((outcome.text().as_str(), outcome.code()), ("gone\n", 5));
    assert_eq!(outcome.exit.stragglers, 3, "{:?}", outcome.exit);
}

#[test]
fn a_fork_bomb_is_swept_away() {
    let mut host = Host::spawn_first();
    // The limit counts for a user that is not root. It keeps a broken agent from taking this machine along.
    host.greet(Hello { identity: Some(NOBODIES), ..hello() });
    let mut bomb = sh("f() { while :; do f & done; }; f 2>&- & echo up; exec sleep 300");
    bomb.rlimits = vec![(Rlimit::Nproc, 3000)];
    host.send(STDIN, ToAgent::Run(bomb));
    while !matches!(host.receive().message, ToHost::Data(_)) {}
    let agent = the_agent_of(&host);
    eventually("the bomb has grown", || others_with(agent) > 30);
    host.send(0, ToAgent::Signal(Signal::Kill));
    let exit = host.finish(&[]).exit;
    assert_eq!(exit.ending, Ending::Signal(9));
    assert_eq!(others_with(agent), 0);
}

/// The agent inside the `unshare` that the host started.
fn the_agent_of(host: &Host) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", host.agent.id());
    std::fs::read_to_string(children).expect("children").trim().parse().expect("one child")
}

/// How many other processes are in the agent's pid namespace.
fn others_with(agent: u32) -> usize {
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(agent).expect("the agent is there");
    let pids = std::fs::read_dir("/proc").expect("proc");
    pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != agent && namespace(*pid).as_ref() == Some(&own))
        .count()
}

#[test]
fn orphans_are_reaped_while_the_job_runs() {
    // Some ten processes live at any time; twenty orphans that nobody reaps would stay beside them.
    let script = "i=0; while [ $i -lt 20 ]; do (setsid true &); i=$((i+1)); done
        until [ $(ls -d /proc/[0-9]* | wc -l) -lt 10 ]; do :; done; echo clean";
    assert_eq!(ready().run(sh(script)).text(), "clean\n");
}

#[test]
fn the_job_cannot_harm_its_agent() {
    let mut host = ready();
    let outcome =
        host.run(sh("kill -9 1; kill -STOP 1; renice -n 19 -p 1; cat /proc/1/environ; echo still here"));
    assert_eq!(outcome.text(), "still here\n");
    // It answers, so it was neither ended nor stopped.
    assert_eq!(host.put("relative", 0o600, b""), Err(agent::message::FileError::BadPath));
    let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
    // `kill` is not even told: what a first process does not handle never reaches it.
    assert!(stderr.contains("environ: Permission denied"), "{stderr}");
    assert!(stderr.contains("renice"), "{stderr}");
}

#[test]
fn the_end_of_the_channel_ends_everything() {
    let mut host = ready();
    host.send(STDIN, ToAgent::Run(sh("setsid sleep 300 & echo up; trap '' TERM; sleep 300")));
    while !matches!(host.receive().message, ToHost::Data(_)) {}
    let agent = the_agent_of(&host);
    assert!(host.hang_up().success());
    eventually("the namespace is gone", || !std::path::Path::new(&format!("/proc/{agent}")).exists());
}

#[test]
fn a_job_without_daemons_ends_with_its_code() {
    let outcome = ready().run(run(&["sh", "-c", "exit 9"]));
    assert_eq!(outcome.exit.ending, Ending::Code(9));
}

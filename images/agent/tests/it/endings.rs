//! How jobs and agents end.

use agent::message::{Ending, Hello, Signal, ToAgent, ToHost};

use crate::host::{Host, NOBODIES, STDIN, STDOUT, eventually, hello, run, sh, status_of};

/// Starts a job and waits until it wrote a line.
fn start(host: &mut Host, script: &str) -> String {
    host.send(STDIN, ToAgent::Run(sh(script)));
    loop {
        let frame = host.receive();
        if let ToHost::Data(bytes) = frame.message {
            assert_eq!(frame.stream, STDOUT);
            return String::from_utf8(bytes).expect("text");
        }
    }
}

#[test]
fn a_signal_ends_a_job_that_heeds_it() {
    let mut host = Host::ready();
    start(&mut host, "echo up; exec sleep 60");
    host.send(0, ToAgent::Signal(Signal::Term));
    assert_eq!(host.finish(&[]).exit.ending, Ending::Signal(15));
}

#[test]
fn a_stubborn_job_is_killed() {
    let mut host = Host::ready();
    start(&mut host, "trap '' TERM; echo up; while :; do sleep 0.1; done");
    host.send(0, ToAgent::Signal(Signal::Term));
    host.send(0, ToAgent::Signal(Signal::Kill));
    assert_eq!(host.finish(&[]).exit.ending, Ending::Signal(9));
}

#[test]
fn a_job_may_handle_its_signal() {
    let mut host = Host::ready();
    start(&mut host, "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    host.send(0, ToAgent::Signal(Signal::Term));
    let outcome = host.finish(&[]);
    assert_eq!((outcome.text().as_str(), outcome.code()), ("bye\n", 7));
}

#[test]
fn children_of_the_job_end_with_it() {
    let mut host = Host::ready();
    let child = start(&mut host, "sleep 300 & echo $!; wait");
    host.send(0, ToAgent::Signal(Signal::Kill));
    assert_eq!(host.finish(&[]).exit.ending, Ending::Signal(9));
    let child: u32 = child.trim().parse().expect("a pid");
    eventually("the child is gone", || status_of(child, "State").is_none_or(|state| state.starts_with('Z')));
}

#[test]
fn what_a_job_leaves_behind_in_its_group_ends_with_it() {
    let mut host = Host::ready();
    // The child holds stdout open, so the end of the stream is its own end.
    let outcome = host.run(sh("sleep 300 & echo $!; exit 6"));
    assert_eq!(outcome.code(), 6);
    let child: u32 = outcome.text().trim().parse().expect("a pid");
    eventually("the child is gone", || status_of(child, "State").is_none_or(|state| state.starts_with('Z')));
}

#[test]
fn the_end_of_the_channel_is_the_end_of_the_job() {
    let mut host = Host::ready();
    let job: u32 = start(&mut host, "echo $$; exec sleep 300").trim().parse().expect("a pid");
    assert!(host.hang_up().success());
    eventually("the job is gone", || status_of(job, "State").is_none());
}

#[test]
fn an_agent_that_is_killed_takes_its_job_along() {
    let mut host = Host::ready();
    let job: u32 = start(&mut host, "echo $$; exec sleep 300").trim().parse().expect("a pid");
    host.agent.kill().expect("killed");
    eventually("the job is gone", || status_of(job, "State").is_none());
}

#[test]
fn an_agent_does_not_outlive_its_parent() {
    // A shell between host and agent, so that the parent can go while the channel stays.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "exec 9<&0; \"$0\" <&9 & wait", env!("CARGO_BIN_EXE_mayfly-agent")]);
    let mut host = Host::spawn_as(command);
    // With a change of user on the way, which forgets who the parent's death concerns.
    let ready = host.greet(Hello { identity: Some(NOBODIES), ..hello() });
    let agent: u32 = status_of(ready.job.pid, "PPid").expect("a parent").parse().expect("a pid");
    assert_ne!(agent, host.agent.id());
    host.agent.kill().expect("killed");
    for pid in [agent, ready.job.pid] {
        eventually("both are gone", || status_of(pid, "State").is_none_or(|state| state.starts_with('Z')));
    }
}

#[test]
fn garbage_ends_the_conversation() {
    let mut host = Host::ready();
    host.send_raw(&[0xff; 64]);
    assert!(host.fault().contains("above the limit"));
    assert!(!host.hang_up().success());
}

#[test]
fn garbage_before_the_hello_ends_it_too() {
    let mut host = Host::spawn();
    host.send_raw(&[0, 0, 0, 0, 0x77, 0, 0, 0]);
    assert!(host.fault().contains("unknown frame kind 0x77"));
}

#[test]
fn a_frame_for_the_host_is_garbage_to_the_agent() {
    let mut host = Host::ready();
    host.send_raw(&agent::codec::Frame { stream: 0, message: ToHost::End }.encode().expect("a frame"));
    assert_eq!(host.fault(), "the end of a stream that takes no data");
    drop(host);
    let mut host = Host::ready();
    let exit = agent::codec::Frame { stream: 0, message: ToHost::PutDone(Ok(1)) };
    host.send_raw(&exit.encode().expect("a frame"));
    assert!(host.fault().contains("unknown frame kind 0x32"));
}

#[test]
fn a_signal_without_a_job_reaches_nobody() {
    let mut host = Host::ready();
    host.send(0, ToAgent::Signal(Signal::Kill));
    assert_eq!(host.run(run(&["true"])).code(), 0);
    host.send(0, ToAgent::Signal(Signal::Kill));
    assert_eq!(host.put("/tmp/../x", 0o600, b""), Err(agent::message::FileError::BadPath));
}

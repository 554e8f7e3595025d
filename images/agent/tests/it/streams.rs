//! stdin, stdout and stderr under flow control.

use agent::flow::INITIAL_CREDIT;
use agent::message::{Ending, Run, ToAgent, ToHost};

use crate::host::{Host, STDERR, STDIN, STDOUT, eventually, run, sh};

#[test]
fn fifty_megabytes_of_stdin_come_back_unchanged() {
    let mut host = Host::ready();
    host.send(STDIN, ToAgent::Run(Run { stdin: true, ..run(&["cat"]) }));
    let sent: Vec<u8> = (0..50_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let outcome = host.finish(&sent);
    assert_eq!(outcome.code(), 0);
    assert!(outcome.stdout == sent, "{} bytes came back", outcome.stdout.len());
}

#[test]
fn a_job_without_stdin_reads_its_end_at_once() {
    assert_eq!(Host::ready().run(sh("cat; echo done")).text(), "done\n");
}

#[test]
fn more_stdin_than_the_credit_allows_is_a_fault() {
    let mut host = Host::ready();
    host.send(STDIN, ToAgent::Run(Run { stdin: true, ..run(&["sleep", "60"]) }));
    let piece = vec![0; INITIAL_CREDIT as usize];
    host.send(STDIN, ToAgent::Data(piece.clone()));
    host.send(STDIN, ToAgent::Data(piece));
    assert!(host.fault().starts_with("flow control: peer sent 262144 bytes"));
}

#[test]
fn a_flood_waits_in_the_sandbox_while_nobody_reads() {
    let mut host = Host::ready();
    host.send(STDIN, ToAgent::Run(sh("head -c 200000000 /dev/zero")));
    // Without credit the agent stops at a window. Nothing can be seen to happen then, so look for its sleep.
    let agent = host.agent.id();
    eventually("the agent sleeps", || {
        crate::host::status_of(agent, "State").is_some_and(|s| s.starts_with('S'))
    });
    let outcome = host.finish(&[]);
    assert_eq!(outcome.stdout.len(), 200_000_000);
    let peak: u64 = host.status("VmHWM").trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 16 * 1024, "the agent held {peak} KiB");
}

#[test]
fn a_job_that_closes_stdin_is_reported_and_not_waited_for() {
    let mut host = Host::ready();
    host.send(STDIN, ToAgent::Run(Run { stdin: true, ..sh("exec <&-; echo closed; sleep 0.2; echo end") }));
    let mut reset = false;
    while !reset {
        let frame = host.receive();
        reset = frame.stream == STDIN && frame.message == ToHost::Reset;
    }
    // What was under way is dropped, and it is no error.
    host.send(STDIN, ToAgent::Data(vec![1; 1000]));
    host.send(STDIN, ToAgent::End);
    assert_eq!(host.finish(&[]).code(), 0);
}

#[test]
fn a_job_that_closes_stdout_early_runs_on() {
    let outcome = Host::ready().run(sh("echo first; exec >&-; echo err >&2; exit 4"));
    assert_eq!((outcome.text().as_str(), outcome.code()), ("first\n", 4));
    assert_eq!(outcome.stderr, b"err\n");
}

#[test]
fn output_that_the_host_refuses_ends_the_writer() {
    let mut host = Host::ready();
    host.send(STDIN, ToAgent::Run(run(&["yes"])));
    host.send(STDOUT, ToAgent::Reset);
    loop {
        match host.receive().message {
            ToHost::Exit(exit) => break assert_eq!(exit.ending, Ending::Signal(libc::SIGPIPE as u8)),
            ToHost::Data(_) | ToHost::End => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn a_host_that_asks_and_never_listens_is_made_to_wait() {
    let mut host = Host::ready();
    let put = ToAgent::Put(agent::message::Put { path: b"relative".to_vec(), mode: 0 });
    let mut request = agent::codec::Frame { stream: 9, message: put }.encode().expect("a frame");
    agent::codec::Frame { stream: 9, message: ToAgent::End }.encode_into(&mut request).expect("a frame");
    let requests = request.repeat(1000);
    // Its answers would fill the agent's memory, if it went on reading.
    assert!((0..2000).any(|_| !host.takes(&requests)), "the agent took {} bytes", 2000 * requests.len());
}

#[test]
fn data_on_a_stream_that_takes_none_is_a_fault() {
    let mut host = Host::ready();
    host.send(STDERR, ToAgent::Data(vec![1]));
    assert_eq!(host.fault(), "data on a stream that takes none");
}

#[test]
fn two_pipes_serve_as_well_as_a_socket() {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    let mut agent = Command::new(env!("CARGO_BIN_EXE_mayfly-agent"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the agent starts");
    let frame = |stream, message| agent::codec::Frame { stream, message }.encode().expect("a frame");
    let mut input = agent.stdin.take().expect("piped");
    let mut output = agent.stdout.take().expect("piped");
    input.write_all(&frame(0, ToAgent::Hello(crate::host::hello()))).expect("taken");
    input.write_all(&frame(STDIN, ToAgent::Run(sh("head -c 3000000 /dev/zero")))).expect("taken");
    let mut decoder = agent::codec::Decoder::default();
    let (mut buffer, mut bytes, mut ends) = (vec![0; 65_536], 0, 0);
    while ends < 2 {
        let len = output.read(&mut buffer).expect("bytes");
        assert!(len > 0, "the agent ended");
        decoder.feed(&buffer[..len]);
        while let Some(received) = decoder.next_frame::<ToHost>().expect("a frame") {
            match received.message {
                ToHost::Data(data) => {
                    bytes += data.len();
                    let credit = ToAgent::Credit(data.len() as u32);
                    input.write_all(&frame(received.stream, credit)).expect("taken");
                }
                ToHost::End => ends += 1,
                _ => {}
            }
        }
    }
    assert_eq!(bytes, 3_000_000);
    drop(input);
    assert!(agent.wait().expect("it ends").success());
}

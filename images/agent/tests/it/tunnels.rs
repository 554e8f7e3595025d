//! The job's way out. The agents here share this machine's loopback, so the test itself plays the job's connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use agent::codec::{FIRST_AGENT_STREAM, Frame, StreamId};
use agent::flow::{MAX_TUNNELS, TUNNEL_CREDIT};
use agent::message::{Run, Signal, ToAgent, ToHost, Tunnel};

use crate::host::{Host, STDERR, STDIN, STDOUT, run, sh};

const FIRST: StreamId = FIRST_AGENT_STREAM;

/// A port that nobody has. Whoever takes it next may be another test, but the kernel hands them out in turns.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A job that runs until it is told to end, and the port that it may connect to.
fn waiting_job() -> (Host, u16) {
    let (mut host, port) = (Host::ready(), free_port());
    host.send(STDIN, ToAgent::Run(Run { listen: vec![port], ..sh("echo begun; sleep 600") }));
    assert_eq!(host.receive(), says(STDOUT, ToHost::Data(b"begun\n".to_vec())));
    (host, port)
}

fn says(stream: StreamId, message: ToHost) -> Frame<ToHost> {
    Frame { stream, message }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// The next frame that is no credit.
fn told(host: &mut Host) -> (StreamId, ToHost) {
    loop {
        match host.receive() {
            Frame { message: ToHost::Credit(_), .. } => {}
            Frame { stream, message } => return (stream, message),
        }
    }
}

fn is_opened(host: &mut Host, stream: StreamId, by: u16) {
    match told(host) {
        (at, ToHost::Tunnel(tunnel)) => assert_eq!((at, tunnel.port), (stream, by)),
        other => panic!("no tunnel: {other:?}"),
    }
}

/// A connection and its stream.
fn opened(host: &mut Host, stream: StreamId, port: u16) -> TcpStream {
    let connection = connect(port);
    is_opened(host, stream, port);
    connection
}

#[test]
fn a_connection_is_a_stream_in_both_directions_and_each_ends_by_itself() {
    let (mut host, port) = waiting_job();
    let mut connection = opened(&mut host, FIRST, port);
    connection.write_all(b"question").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    assert_eq!(told(&mut host), (FIRST, ToHost::Data(b"question".to_vec())));
    assert_eq!(told(&mut host), (FIRST, ToHost::End));
    host.send(FIRST, ToAgent::Data(b"answer".to_vec()));
    host.send(FIRST, ToAgent::End);
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");

    let mut other = opened(&mut host, FIRST + 1, port);
    host.send(FIRST + 1, ToAgent::End);
    assert_eq!(other.read(&mut [0]).unwrap(), 0, "the host ended first");
    other.write_all(b"and yet").unwrap();
    assert_eq!(told(&mut host), (FIRST + 1, ToHost::Data(b"and yet".to_vec())));
    drop(other);
    assert_eq!(told(&mut host), (FIRST + 1, ToHost::End));
}

#[test]
fn a_reset_of_either_end_is_a_reset_at_the_other() {
    let (mut host, port) = waiting_job();
    let mut connection = opened(&mut host, FIRST, port);
    host.send(FIRST, ToAgent::Reset);
    assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(told(&mut host), (FIRST, ToHost::Reset), "its last word");

    let connection = opened(&mut host, FIRST + 1, port);
    host.send(FIRST + 1, ToAgent::Data(b"unread".to_vec()));
    connection.peek(&mut [0]).unwrap();
    // The kernel resets a connection whose reader goes away from what it has not read.
    drop(connection);
    assert_eq!(told(&mut host), (FIRST + 1, ToHost::Reset));
    host.send(FIRST + 1, ToAgent::Data(b"was under way".to_vec()));
    host.send(FIRST + 1, ToAgent::Reset);
    opened(&mut host, FIRST + 2, port);
}

#[test]
fn nothing_is_sent_beyond_the_credit_and_the_jobs_own_output_goes_on() {
    let (mut host, port) = (Host::ready(), free_port());
    let run = Run { listen: vec![port], stdin: true, ..sh("read go; echo word; sleep 600") };
    host.send(STDIN, ToAgent::Run(run));
    let stream = loop {
        // The agent listens before the job begins, but who says that it has begun is the job.
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(_) => std::thread::yield_now(),
        }
    };
    is_opened(&mut host, FIRST, port);
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(len) = (&stream).write(&[b'x'; 4096]) {
        written += len;
    }
    assert!(written > TUNNEL_CREDIT as usize, "the kernel takes more than the credit is");
    let mut sent = 0;
    while sent < TUNNEL_CREDIT as usize {
        match told(&mut host) {
            (FIRST, ToHost::Data(bytes)) => sent += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, TUNNEL_CREDIT as usize);
    host.send(STDIN, ToAgent::Data(b"go\n".to_vec()));
    assert_eq!(told(&mut host), (STDOUT, ToHost::Data(b"word\n".to_vec())), "and no byte of the tunnel");
    host.send(FIRST, ToAgent::Credit(5));
    assert_eq!(told(&mut host), (FIRST, ToHost::Data(b"xxxxx".to_vec())));
}

#[test]
fn a_crowd_waits_until_one_goes() {
    let (mut host, port) = waiting_job();
    let mut crowd: Vec<_> =
        (0..MAX_TUNNELS).map(|number| opened(&mut host, FIRST + number as StreamId, port)).collect();
    let late = connect(port);
    crowd.swap_remove(7);
    assert_eq!(told(&mut host), (FIRST + 7, ToHost::End), "before the one that waits");
    host.send(FIRST + 7, ToAgent::End);
    is_opened(&mut host, FIRST + MAX_TUNNELS as StreamId, port);
    drop(late);
    assert_eq!(told(&mut host).1, ToHost::End);
}

#[test]
fn what_a_job_wrote_last_arrives_and_then_nothing_is_left() {
    let (mut host, port) = (Host::ready(), free_port());
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo last words >&3");
    host.send(STDIN, ToAgent::Run(Run { listen: vec![port], ..run(&["bash", "-c", &script]) }));
    // The ends of the job's own output come whenever they come.
    let mut said = Vec::new();
    loop {
        match told(&mut host) {
            (FIRST, message) => said.push(message),
            (0, ToHost::Exit(_)) => break,
            (STDOUT | STDERR, ToHost::End) => {}
            other => panic!("{other:?}"),
        }
    }
    // Behind the end of what it writes: that it reads no more.
    let words = ToHost::Data(b"last words\n".to_vec());
    let expected = [ToHost::Tunnel(Tunnel { port }), words, ToHost::End, ToHost::Reset];
    assert_eq!(said, expected, "all of it before the job's end");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "nobody listens any more");
}

#[test]
fn a_connection_that_is_open_when_the_job_ends_is_reset() {
    let (mut host, port) = waiting_job();
    let mut connection = opened(&mut host, FIRST, port);
    host.send(0, ToAgent::Signal(Signal::Kill));
    assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    loop {
        match told(&mut host) {
            (FIRST, ToHost::Reset) => break,
            (0, ToHost::Exit(_)) => panic!("the job's end came first"),
            _ => {}
        }
    }
}

#[test]
fn a_port_that_cannot_be_had_ends_the_conversation() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut host = Host::ready();
    let listen = vec![taken.local_addr().unwrap().port()];
    host.send(STDIN, ToAgent::Run(Run { listen, ..run(&["true"]) }));
    assert!(host.fault().contains("listen for the job"));
}

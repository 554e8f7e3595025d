//! Tunnels between scripted agents and real listeners on the loopback.

use std::{net::Ipv4Addr, sync::Arc};

use agent::{
    codec::FIRST_AGENT_STREAM,
    flow::MAX_TUNNELS,
    message::{self, Ending},
};
use egress::{Ask, Ended as HowEnded, Fixed, Kind, Rights};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    cancel::cancellation,
    output::Output,
    peer::{Peer, STDOUT, assignment, image_config, pair},
    run::{Ended, Orders, run},
};

const FIRST: StreamId = FIRST_AGENT_STREAM;
const PORT: u16 = 7000;

/// A way out that leads to this listener.
async fn door_to(outside: &TcpListener) -> Session {
    let fixed = Fixed {
        name: "outside".to_owned(),
        port: PORT,
        to: outside.local_addr().unwrap().to_string().parse().unwrap(),
        addresses: Vec::new(),
        kind: Kind::Tcp,
    };
    let rights = Rights { tunnels: [("outside".to_owned(), Arc::new(fixed))].into(), ..Rights::default() };
    let ask = Ask { allow: &[], tunnels: &["outside".to_owned()], secrets: &[] };
    let plan = rights.grant("tenant", &ask).unwrap().unwrap();
    Session::open(&plan, "tenant", "job").await.unwrap()
}

async fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// Runs a job with this way out against what `agent` plays.
async fn story<T>(door: Option<&Session>, agent: impl AsyncFnOnce(&mut Peer) -> T) -> (Ended, T) {
    let (mut channel, mut peer) = pair();
    let orders = Orders::new(&assignment(), &image_config(), false, door);
    let outputs = [Output::new(1024, None), Output::new(1024, None)];
    let host = async {
        let ended = run(&mut channel, orders, None, outputs, door, cancellation().1).await;
        drop(channel);
        ended
    };
    let agent = async {
        peer.is_started().await;
        let told = agent(&mut peer).await;
        peer.is_silent().await;
        told
    };
    tokio::join!(host, agent)
}

async fn opens(peer: &mut Peer, stream: StreamId) {
    peer.says(stream, ToHost::Tunnel(message::Tunnel { port: PORT })).await;
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let outside = listener().await;
    let door = door_to(&outside).await;
    let server = async {
        let (mut stream, _) = outside.accept().await.unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).await.unwrap();
        stream.write_all(format!("{question}? yes").as_bytes()).await.unwrap();
    };
    let agent = async |peer: &mut Peer| {
        opens(peer, FIRST).await;
        peer.says(FIRST, ToHost::Data(b"is it so".to_vec())).await;
        peer.says(FIRST, ToHost::End).await;
        assert_eq!(peer.is_told().await, ToAgent::Data(b"is it so? yes".to_vec()));
        assert_eq!(peer.is_told().await, ToAgent::End);
        peer.ends(Ending::Code(0)).await;
    };
    let ((ended, ()), ()) = tokio::join!(story(Some(&door), agent), server);
    assert!(ended.lost.is_none(), "{:?}", ended.lost);
    let egress = door.close().await;
    assert_eq!((egress.made, egress.sent, egress.received), (1, 8, 13));
    assert_eq!(egress.connections[0].ended, HowEnded::Closed);
}

#[tokio::test]
async fn a_reset_of_one_end_is_told_to_the_other() {
    let outside = listener().await;
    let door = door_to(&outside).await;
    let agent = async |peer: &mut Peer| {
        opens(peer, FIRST).await;
        let (stream, _) = outside.accept().await.unwrap();
        // The kernel resets a connection that goes away from what it has not read.
        peer.says(FIRST, ToHost::Data(b"unread".to_vec())).await;
        stream.peek(&mut [0]).await.unwrap();
        drop(stream);
        assert_eq!(peer.is_told().await, ToAgent::Reset);
        peer.says(FIRST, ToHost::Reset).await;

        opens(peer, FIRST + 1).await;
        let (mut stream, _) = outside.accept().await.unwrap();
        peer.says(FIRST + 1, ToHost::Reset).await;
        assert_eq!(peer.is_told().await, ToAgent::Reset, "the host's own last word");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        peer.ends(Ending::Code(0)).await;
    };
    let (ended, ()) = story(Some(&door), agent).await;
    assert!(ended.lost.is_none(), "{:?}", ended.lost);
    assert_eq!(door.close().await.made, 2);
}

#[tokio::test]
async fn a_flood_from_outside_waits_for_the_jobs_reader_and_the_jobs_output_does_not() {
    let outside = listener().await;
    let door = door_to(&outside).await;
    let server = async {
        let (mut stream, _) = outside.accept().await.unwrap();
        let _ = stream.write_all(&vec![b'x'; 32 * 1024 * 1024]).await;
    };
    let agent = async |peer: &mut Peer| {
        opens(peer, FIRST).await;
        let mut received = 0;
        while received < TUNNEL_CREDIT as usize {
            let ToAgent::Data(bytes) = peer.is_told().await else { panic!("no data") };
            received += bytes.len();
        }
        assert_eq!(received, TUNNEL_CREDIT as usize, "more than was granted");
        peer.says(STDOUT, ToHost::Data(b"word".to_vec())).await;
        peer.says(FIRST, ToHost::Credit(5)).await;
        assert_eq!(peer.is_told().await, ToAgent::Data(b"xxxxx".to_vec()));
        peer.says(FIRST, ToHost::Reset).await;
        assert_eq!(peer.is_told().await, ToAgent::Reset);
        peer.ends(Ending::Code(0)).await;
    };
    let ((ended, ()), ()) = tokio::join!(story(Some(&door), agent), server);
    assert!(ended.lost.is_none(), "{:?}", ended.lost);
    assert_eq!(ended.stdout.into_text().text, "word");
}

#[tokio::test]
async fn a_job_that_reads_slowly_outside_is_held_back_by_its_own_window() {
    let outside = listener().await;
    let door = door_to(&outside).await;
    let agent = async |peer: &mut Peer| {
        opens(peer, FIRST).await;
        let (mut stream, _) = outside.accept().await.unwrap();
        let ToAgent::Credit(more) = peer.hears().await.unwrap().message else { panic!("no wider window") };
        let mut credit = (TUNNEL_CREDIT + more) as usize;
        let (mut sent, mut read) = (0, 0);
        while sent < 8 * 1024 * 1024 {
            while credit >= 16 * 1024 {
                peer.says(FIRST, ToHost::Data(vec![7; 16 * 1024])).await;
                credit -= 16 * 1024;
                sent += 16 * 1024;
            }
            let mut piece = vec![0; 64 * 1024];
            read += stream.read(&mut piece).await.unwrap();
            while let Some(frame) = peer.hears_at_once() {
                let ToAgent::Credit(more) = frame.message else { panic!("{frame:?}") };
                credit += more as usize;
            }
        }
        peer.says(FIRST, ToHost::End).await;
        read += stream.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(read, sent);
        drop(stream);
        peer.ends(Ending::Code(0)).await;
        sent as u64
    };
    let (ended, sent) = story(Some(&door), agent).await;
    assert!(ended.lost.is_none(), "{:?}", ended.lost);
    assert_eq!(door.close().await.sent, sent);
}

#[tokio::test]
async fn what_an_agent_may_not_do_with_tunnels_loses_the_sandbox() {
    let outside = listener().await;
    let lost = async |door: Option<&Session>, frames: Vec<(StreamId, ToHost)>| {
        let agent = async |peer: &mut Peer| {
            for (stream, message) in frames {
                peer.says(stream, message).await;
            }
        };
        story(door, agent).await.0.lost.expect("a lost sandbox").to_string()
    };
    let tunnel = || ToHost::Tunnel(message::Tunnel { port: PORT });
    let door = door_to(&outside).await;
    assert!(lost(None, vec![(FIRST, tunnel())]).await.contains("not open"));
    assert!(lost(Some(&door), vec![(FIRST - 1, tunnel())]).await.contains("which it may not"));
    assert!(lost(Some(&door), vec![(FIRST, tunnel()), (FIRST, tunnel())]).await.contains("which it may not"));
    assert!(lost(Some(&door), vec![(FIRST, ToHost::Data(b"x".to_vec()))]).await.contains("not open"));
    let crowd = (0..=MAX_TUNNELS).map(|number| (FIRST + number as StreamId, tunnel()));
    assert!(lost(Some(&door), crowd.collect()).await.contains("which it may not"));
    // As much as its window may become, and one byte more than what it is.
    let flood = vec![(FIRST, tunnel()), (FIRST, ToHost::Data(vec![0; 1_000_000]))];
    assert!(lost(Some(&door), flood).await.contains("flow control"));
    let ended = vec![(FIRST, tunnel()), (FIRST, ToHost::End), (FIRST, ToHost::Data(b"x".to_vec()))];
    assert!(lost(Some(&door), ended).await.contains("not open"));
}

#[tokio::test]
async fn a_port_on_which_nobody_was_to_listen_leads_nowhere() {
    let outside = listener().await;
    let door = door_to(&outside).await;
    let agent = async |peer: &mut Peer| {
        peer.says(FIRST, ToHost::Tunnel(message::Tunnel { port: PORT + 1 })).await;
        assert_eq!(peer.is_told().await, ToAgent::Reset);
        peer.says(FIRST, ToHost::Reset).await;
        peer.ends(Ending::Code(0)).await;
    };
    let (ended, ()) = story(Some(&door), agent).await;
    assert!(ended.lost.is_none(), "{:?}", ended.lost);
    assert_eq!(door.close().await.made, 0);
}

#[tokio::test]
async fn a_connection_that_is_open_when_the_job_ends_is_closed_outside_and_what_was_written_arrives() {
    let outside = listener().await;
    let door = door_to(&outside).await;
    let (sender, receiver) = tokio::sync::oneshot::channel::<TcpStream>();
    let agent = async |peer: &mut Peer| {
        opens(peer, FIRST).await;
        let (stream, _) = outside.accept().await.unwrap();
        sender.send(stream).unwrap();
        peer.says(FIRST, ToHost::Data(b"last words".to_vec())).await;
        peer.says(FIRST, ToHost::End).await;
        peer.ends(Ending::Code(0)).await;
    };
    let (ended, ()) = story(Some(&door), agent).await;
    assert!(ended.lost.is_none(), "{:?}", ended.lost);
    let egress = door.close().await;
    assert_eq!((egress.sent, egress.connections[0].ended), (10, HowEnded::JobEnded));
    let mut words = String::new();
    receiver.await.unwrap().read_to_string(&mut words).await.unwrap();
    assert_eq!(words, "last words");
}

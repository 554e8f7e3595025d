//! What a way out costs: `scripts/bench-egress`. Each figure is taken beside the same without a sandbox.

#![expect(clippy::print_stdout, reason = "its figures")]

use std::{
    io::{Read, Write, copy},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::Command,
    thread,
};

use crate::harness::{Place, Tier, on, result_of};

/// First bytes of one look, and looks.
const TIMES: usize = 200;
const LOOKS: usize = 5;
const BULK: usize = 256 * 1024 * 1024;

/// How much longer a first byte may take through a tunnel, in milliseconds.
const LATER: f64 = 0.5;

/// How many times longer a warm job without a way out may take where others have one.
const PAYS: f64 = 1.1;

/// A server that answers `1` by one byte and `b` by many.
fn server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut word = [0];
                if stream.read_exact(&mut word).is_ok() {
                    let answer = if word == *b"b" { vec![7; BULK] } else { vec![7] };
                    let _ = stream.write_all(&answer);
                }
            });
        }
    });
    port
}

/// A plain proxy of bytes on the loopback, for the peer: two threads a connection, as the standard library copies.
fn plain_proxy(to: u16) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut here in listener.incoming().flatten() {
            let mut there = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
            let (mut out, mut into) = (here.try_clone().unwrap(), there.try_clone().unwrap());
            thread::spawn(move || {
                let _ = copy(&mut out, &mut into);
                let _ = into.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = copy(&mut there, &mut here);
                let _ = here.shutdown(Shutdown::Write);
            });
        }
    });
    port
}

/// Prints the median first byte in milliseconds and bulk in MiB a second.
const CLIENT: &str = "
import socket, sys, time
port, times, bulk = map(int, sys.argv[1:])
took = []
for _ in range(times):
    began = time.perf_counter()
    s = socket.create_connection(('127.0.0.1', port))
    s.sendall(b'1')
    s.recv(1)
    took.append(time.perf_counter() - began)
    s.close()
room = bytearray(1 << 20)
s = socket.create_connection(('127.0.0.1', port))
s.sendall(b'b')
began, got = time.perf_counter(), 0
while got < bulk:
    got += s.recv_into(room)
print(sorted(took)[times // 2] * 1000, bulk / 1048576 / (time.perf_counter() - began))
";

fn figures(said: &str) -> (f64, f64) {
    let mut words = said.split_whitespace().map(|word| word.parse().unwrap());
    (words.next().unwrap(), words.next().unwrap())
}

fn outside(port: u16) -> (f64, f64) {
    let args = [port.to_string(), TIMES.to_string(), BULK.to_string()];
    let done = Command::new("python3").args(["-I", "-c", CLIENT]).args(args).output().unwrap();
    figures(&String::from_utf8(done.stdout).unwrap())
}

fn inside(place: &Place, port: u16) -> (f64, f64) {
    let config = place.node.config(&format!("[tunnels.there]\nto = '127.0.0.1:{port}'\nport = 8100\n"));
    let (times, bulk) = (TIMES.to_string(), BULK.to_string());
    let job = ["python3", "-I", "-c", CLIENT, "8100", &times, &bulk];
    let words = ["--config", &config, "--tunnel", "there", "--timeout", "300s"];
    let result = result_of(place.run_in("base", job).args(words), 0);
    figures(result["stdout"]["text"].as_str().unwrap())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn what_a_tunnel_costs(place: &Place) {
    let port = server();
    let proxy = plain_proxy(port);
    let (mut later, mut ratio) = (Vec::new(), Vec::new());
    for look in 0..LOOKS {
        let (direct, proxied, through) = (outside(port), outside(proxy), inside(place, port));
        println!(
            "  {} {look}: first byte direct {:.3} ms, through a tunnel {:.3} ms; bulk by a plain proxy {:.0} MiB/s, \
             through a tunnel {:.0} MiB/s",
            place.tier.name(),
            direct.0,
            through.0,
            proxied.1,
            through.1
        );
        later.push(through.0 - direct.0);
        ratio.push(through.1 / proxied.1);
    }
    let (later, ratio) = (median(later), median(ratio));
    let bar = match place.tier {
        Tier::Chroot | Tier::Nspawn => 0.4,
        Tier::Docker => 0.1,
        Tier::Vm => 0.0,
    };
    println!(
        "{}: first byte {later:.3} ms later (bar {LATER} on chroot), bulk {ratio:.2} x a plain proxy (bar {bar})",
        place.tier.name()
    );
    assert!(place.tier != Tier::Chroot || later <= LATER, "the first byte is late");
    assert!(ratio >= bar, "bulk is slow");
}

#[test]
#[ignore = "it measures: scripts/bench-egress"]
fn on_every_tier() {
    for tier in Tier::ALL {
        on(tier, what_a_tunnel_costs);
    }
}

/// The median of a warm job, from its request to its first byte, in microseconds.
fn warm(place: &Place, config: &str) -> f64 {
    let times = TIMES.to_string();
    let bench = ["bench", "--tier", "chroot", "--latencies", "--json", "--times", &times, "--config", config];
    let measured = place.node.mayfly(bench).finish().code(0).json();
    let rows = measured["rows"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == "warm").unwrap()["p50_us"].as_f64().unwrap()
}

#[test]
#[ignore = "it measures: scripts/bench-egress"]
fn a_job_without_tunnels_pays_nothing_for_those_that_are_configured() {
    on(Tier::Chroot, |place| {
        let tunnels: Vec<_> = (0..100)
            .map(|n| format!("[tunnels.there-{n}]\nto = 'there-{n}.test:443'\nport = {}\n", 8100 + n))
            .collect();
        let door = format!(
            "[network]\nconnections = 256\n[network.hosts]\n'there-0.test' = '127.0.0.1'\n{}",
            tunnels.concat()
        );
        let (door, none) = (place.node.write("door.toml", door), place.node.write("none.toml", ""));
        let mut ratios = Vec::new();
        for look in 0..LOOKS {
            let (with, without) = (warm(place, &door), warm(place, &none));
            println!(
                "  chroot {look}: a warm job {without:.0} µs, where tunnels are configured {with:.0} µs"
            );
            ratios.push(with / without);
        }
        let ratio = median(ratios);
        println!(
            "chroot: a job without tunnels takes {ratio:.2} x as long where some are configured (bar {PAYS})"
        );
        assert!(ratio <= PAYS, "a job without tunnels pays for them");
    });
}

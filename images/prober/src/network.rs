//! What the job can reach.

#![expect(unsafe_code, reason = "sockets of families that the crates do not name")]

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use nix::errno::Errno;

use crate::{checks::Checks, clues::Clues};

/// Nothing that can be reached at all takes longer: the control's answers come from its own loopback.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where clouds tell machines their credentials.
const METADATA: [&str; 3] = ["169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80"];

/// Name, family, kind, protocol.
const ODD: [(&str, i32, i32, i32); 9] = [
    ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    ("raw IPv6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
    ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
    ("SCTP", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    ("Bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
    ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    ("ALG", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ("X.25", libc::AF_X25, libc::SOCK_SEQPACKET, 0),
    ("netlink of the audit", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
];

pub(crate) fn loopback_only(_: &Clues, checks: &mut Checks) {
    let Ok(text) = fs::read_to_string("/proc/net/dev") else {
        return checks.unknown("/proc/net/dev cannot be read");
    };
    // Two lines of headings; tunnels that a kernel puts into every namespace are down and lead nowhere.
    let names = text.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim);
    for name in names {
        let up = fs::read_to_string(format!("/sys/class/net/{name}/operstate"))
            .is_ok_and(|state| state.trim() == "up");
        let fallback =
            ["tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"];
        checks.holds(name == "lo" || fallback.contains(&name) && !up, format!("interface {name}"));
    }
}

pub(crate) fn no_metadata(_: &Clues, checks: &mut Checks) {
    for address in METADATA {
        unreachable(address, checks);
    }
}

/// Addresses that the host's own servers listen on.
pub(crate) fn no_host_service(clues: &Clues, checks: &mut Checks) {
    let mut any = false;
    for address in clues.list("services") {
        any = true;
        unreachable(address, checks);
    }
    if !any {
        checks.unknown("no address was given");
    }
}

fn unreachable(address: &str, checks: &mut Checks) {
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        return checks.unknown(format!("{address} is no address"));
    };
    let got = TcpStream::connect_timeout(&parsed, PATIENCE);
    checks.holds(
        got.is_err(),
        match got {
            Ok(_) => format!("{address} answers"),
            Err(error) => format!("{address}: {error}"),
        },
    );
}

pub(crate) fn no_odd_sockets(_: &Clues, checks: &mut Checks) {
    for (name, family, kind, protocol) in ODD {
        // SAFETY: it takes numbers and gives one.
        let fd = unsafe { libc::socket(family, kind, protocol) };
        let got = Errno::result(fd);
        if fd >= 0 {
            // SAFETY: it was just made and nobody else has it.
            unsafe { libc::close(fd) };
        }
        match got {
            // A kernel that has no such family cannot be asked for it.
            Err(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT) => {
                checks.holds(true, format!("{name}: the kernel has none"));
            }
            got => checks.refused(name, got),
        }
    }
}

/// A question for `example.` as a resolver reads it.
const QUESTION: &[u8] = b"\x6d\x66\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x00\x00\x01\x00\x01";

/// No server answers a question about a name.
pub(crate) fn no_names(clues: &Clues, checks: &mut Checks) {
    let configured = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let configured = configured.lines().filter_map(|line| line.strip_prefix("nameserver ")).map(str::trim);
    let mut any = false;
    // Docker's own resolver is there even where nothing names it.
    for server in clues.list("resolvers").chain(configured).chain(["127.0.0.11"]) {
        any = true;
        let asked = ask(server);
        checks.holds(
            asked.is_err(),
            match asked {
                Ok(bytes) => format!("{server} answers {bytes} bytes"),
                Err(error) => format!("{server}: {error}"),
            },
        );
    }
    if !any {
        checks.unknown("no server was given");
    }
}

fn ask(server: &str) -> io::Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((server, 53))?;
    socket.send(QUESTION)?;
    socket.recv(&mut [0; 512])
}

/// No frame of its own making leaves: it has no socket for that, and no interface.
pub(crate) fn no_frames(clues: &Clues, checks: &mut Checks) {
    // SAFETY: it takes numbers and gives one.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    if fd >= 0 {
        // SAFETY: it was just made and nobody else has it.
        unsafe { libc::close(fd) };
    }
    checks.refused("a socket for frames", Errno::result(fd));
    loopback_only(clues, checks);
}

/// Nothing can be flooded where not one datagram leaves. The addresses are nobody's, by RFC 5737.
pub(crate) fn no_flood(_: &Clues, checks: &mut Checks) {
    for address in ["192.0.2.1:9", "198.51.100.1:9"] {
        let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", address));
        checks.holds(
            sent.is_err(),
            match sent {
                Ok(_) => format!("a datagram for {address} leaves"),
                Err(error) => format!("{address}: {error}"),
            },
        );
    }
}

/// Listens where a neighbour could come by. The port is made of the token.
pub(crate) fn listen(clues: &Clues) -> io::Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port(clues)))
}

fn port(clues: &Clues) -> u16 {
    let sum = clues
        .get("token")
        .unwrap_or_default()
        .bytes()
        .fold(7_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte)));
    20_000 + sum % 10_000
}

pub(crate) fn no_neighbour(clues: &Clues, checks: &mut Checks) {
    unreachable(&format!("127.0.0.1:{}", port(clues)), checks);
}

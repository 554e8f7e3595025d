//! The control's network: loopback only, where everything answers that a sandbox must not reach.

#![expect(unsafe_code, reason = "interfaces are set up by ioctl(2)")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// The places where clouds tell machines their credentials, and two that are nobody's (RFC 5737).
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(100, 100, 100, 200)];
const METADATA_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const NOBODYS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1)];
/// Where docker's resolver is in its containers.
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

/// Servers that are there as long as this is.
pub(super) struct Servers {
    _listening: Vec<TcpListener>,
}

/// Leaves the host's network and opens what the probes ask for.
pub(super) fn enter(services: &[SocketAddr]) -> io::Result<Servers> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let v4 = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    up(&v4)?;
    let wanted = services.iter().filter_map(|service| match service.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let mut addresses: Vec<Ipv4Addr> = wanted.chain(METADATA).chain(NOBODYS).collect();
    addresses.retain(|address| !address.is_loopback());
    addresses.sort();
    addresses.dedup();
    for (number, address) in addresses.into_iter().enumerate() {
        add(&v4, number, address)?;
    }
    let mut listening = Vec::new();
    for service in services {
        listening.push(TcpListener::bind(service)?);
    }
    for address in METADATA {
        listening.push(TcpListener::bind((address, 80))?);
    }
    // A host without IPv6 has nothing there to reach.
    if add_6(METADATA_6).is_ok() {
        listening.extend(TcpListener::bind((METADATA_6, 80)));
    }
    let resolver = UdpSocket::bind(RESOLVER)?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((bytes, from)) = resolver.recv_from(&mut question) {
            let _ = resolver.send_to(&question[..bytes], from);
        }
    });
    Ok(Servers { _listening: listening })
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: a request is numbers and addresses, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn control(socket: &impl AsRawFd, code: libc::Ioctl, argument: *const libc::c_void) -> io::Result<()> {
    // SAFETY: whoever calls gives what the code takes.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), code, argument) };
    Ok(Errno::result(got).map(drop)?)
}

fn up(socket: &impl AsRawFd) -> io::Result<()> {
    let mut request = request("lo");
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    control(socket, libc::SIOCSIFFLAGS, (&raw const request).cast())
}

fn add(socket: &impl AsRawFd, number: usize, address: Ipv4Addr) -> io::Result<()> {
    let name = format!("lo:{number}");
    for (code, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::BROADCAST)] {
        let mut request = request(&name);
        let value = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(value.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: both are an address of the same size.
        request.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(value) };
        control(socket, code, (&raw const request).cast())?;
    }
    Ok(())
}

fn add_6(address: Ipv6Addr) -> io::Result<()> {
    let v6 = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 128,
        // Loopback is the first interface of every network.
        ifr6_ifindex: 1,
    };
    control(&v6, libc::SIOCSIFADDR, (&raw const request).cast())
}

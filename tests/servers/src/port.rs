//! Ports for servers that must be told theirs.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
};

/// A port on loopback that nobody listens on now. Another may take it before its server does; starting a server
/// fails then, and can be tried again with another port.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

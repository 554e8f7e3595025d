//! What a selftest stands on: a canary that only the host has, servers that only the host can reach, and how much a probe may
//! use.
//!
//! The canary is a word that nobody else knows. It is in a file, in the name of a socket beside it, and in the environment of
//! whoever makes the sandboxes. What a sandbox sees of it has left where it belongs.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use pool::{Id, Limits};
use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
/// The variable that holds the token in the environment of whoever runs the selftest.
pub const CANARY: &str = "MAYFLY_SELFTEST_CANARY";
/// Where a machine with a network card of QEMU's own would find its host.
const GATEWAYS: [Ipv4Addr; 1] = [Ipv4Addr::new(10, 0, 2, 2)];
/// Addresses of the host that are tried at most.
const ADDRESSES: usize = 6;
/// Where the prober lies, in a sandbox and in the control.
pub(crate) const PROBER: &str = "/job/mayfly-prober";

/// Limits that are small enough to be tried out.
pub(crate) fn limits() -> Limits {
    Limits { cpu_millis: 500, memory: 96 * MIB, pids: 32, disk: 16 * MIB, inodes: 2048, ..Limits::default() }
}

/// CPU time of the job that burns it: less than what a busy host still gives to whoever has no limit.
pub(crate) const BURN_MILLIS: u32 = 200;

/// Output that a job may write when it writes too much.
pub(crate) const OUTPUT: u64 = 256 * 1024;

/// What a prober is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Clues {
    pub(crate) token: String,
    /// The folder that is the host's alone.
    pub(crate) folder: PathBuf,
    pub(crate) canary: PathBuf,
    /// Servers of the host.
    pub(crate) services: Vec<SocketAddr>,
    pub(crate) limits: Limits,
}

impl Clues {
    /// The same as the prober's arguments.
    pub(crate) fn args(&self) -> Vec<String> {
        let services: Vec<_> = self.services.iter().map(ToString::to_string).collect();
        let Limits { memory, pids, disk, inodes, open_files, .. } = self.limits;
        vec![
            format!("token={}", self.token),
            format!("canary={}", self.canary.display()),
            format!("own={PROBER}"),
            format!("services={}", services.join(",")),
            format!("cpu={BURN_MILLIS}"),
            format!("memory={memory}"),
            format!("pids={pids}"),
            format!("disk={disk}"),
            format!("inodes={inodes}"),
            format!("descriptors={open_files}"),
        ]
    }
}

/// The host's side, as long as it lives.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) clues: Clues,
    _socket: UnixListener,
    _servers: Vec<TcpListener>,
}

impl Ground {
    /// Makes everything, below `run_dir`.
    pub(crate) fn lay(run_dir: &Path, token: String) -> io::Result<Self> {
        let folder = run_dir.join(format!("selftest-{}", Id::random().short()));
        fs::create_dir_all(&folder)?;
        let canary = folder.join("canary");
        fs::write(&canary, &token)?;
        let socket = UnixListener::bind(folder.join("socket"))?;
        let servers: Vec<_> = own_addresses()
            .into_iter()
            .filter_map(|address| TcpListener::bind(SocketAddr::new(address, 0)).ok())
            .collect();
        let mut services: Vec<_> = servers.iter().filter_map(|server| server.local_addr().ok()).collect();
        // What a gateway leads to is the host's loopback.
        let port = services.first().map_or(0, SocketAddr::port);
        services.extend(GATEWAYS.map(|address| SocketAddr::new(address.into(), port)));
        let clues = Clues { token, folder, canary, services, limits: limits() };
        Ok(Self { clues, _socket: socket, _servers: servers })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.clues.folder) {
            tracing::warn!(folder = %self.clues.folder.display(), %error, "a selftest's folder stays");
        }
    }
}

/// Loopback, and the other addresses of this host: a bridge's, where there is one.
fn own_addresses() -> Vec<IpAddr> {
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    for address in local_addresses(&table) {
        if !address.is_loopback() && !addresses.contains(&address) && addresses.len() < ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

/// The leaves of the kernel's table that are its own: an address, and below it `host LOCAL`.
fn local_addresses(table: &str) -> Vec<IpAddr> {
    let (mut leaf, mut found) = (None, Vec::new());
    for line in table.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            leaf = address.trim().parse::<IpAddr>().ok();
        } else if line.contains("host LOCAL") {
            found.extend(leaf);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_own_addresses_are_read_from_the_kernels_table() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /8 link UNICAST\nLocal:\n\
            \x20    |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.255.255.255\n        /32 link BROADCAST\n";
        assert_eq!(local_addresses(table), [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))]);
    }

    #[test]
    fn the_ground_is_gone_when_nobody_stands_on_it() {
        let run = tempfile::tempdir().unwrap();
        let ground = Ground::lay(run.path(), "token".to_owned()).unwrap();
        assert_eq!(fs::read_to_string(&ground.clues.canary).unwrap(), "token");
        assert!(ground.clues.services.iter().any(|address| address.ip().is_loopback()));
        drop(ground);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }
}

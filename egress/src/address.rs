//! Addresses that no name may lead to, unless somebody said so.
//!
//! The ranges are those of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and its updates up to
//! RFC 9780) that are not globally reachable, multicast, and addresses at which clouds tell machines their secrets. Of
//! IPv6, what is not in `2000::/3` is no global unicast and refused whole; so is `3fff::/16`, of which documentation has part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// What an address is, if it is no public one.
pub(crate) fn special(address: IpAddr) -> Option<&'static str> {
    let what = match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    };
    // A public address of this very host leads to what listens on it.
    what.or_else(|| is_ours(address).then_some("this host's own"))
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, d] = address.octets();
    Some(match (a, b, c) {
        (0, ..) => "an unspecified",
        (127, ..) => "a loopback",
        (169, 254, _) => "a link-local or metadata",
        // Azure's, the only one that lies among the public ones.
        (168, 63, 129) if d == 16 => "a metadata",
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => "a private",
        (100, 64..=127, _) => "a carrier's private",
        (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (198, 18..=19, _) | (192, 88, 99) => "a reserved",
        (224..=239, ..) => "a multicast",
        (240.., ..) => "a reserved or broadcast",
        _ => return None,
    })
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(inner) = inner_v4(address) {
        return Some(special_v4(inner).unwrap_or("a translated"));
    }
    let [first, second, ..] = address.segments();
    Some(match first {
        _ if address.is_loopback() => "a loopback",
        _ if address.is_unspecified() => "an unspecified",
        0xfc00..=0xfdff => "a private",
        0xfe80..=0xfebf => "a link-local or metadata",
        0xfec0..=0xfeff => "a site-local",
        0xff00.. => "a multicast",
        0x2001 if second < 0x0200 || second == 0x0db8 => "a reserved",
        // Global unicast is 2000::/3, and 3fff::/20 of it is for documentation.
        0x2000..=0x3ffe => return None,
        _ => "a reserved",
    })
}

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, translated (NAT64) or tunnelled (6to4).
fn inner_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    const MAPPED: u128 = 0xffff;
    const NAT64: u128 = 0x0064_ff9b << 64;
    const SIX_TO_FOUR: u128 = 0x2002;
    let bits = address.to_bits();
    match bits >> 32 {
        MAPPED | NAT64 => Some(Ipv4Addr::from_bits(bits as u32)),
        0 if bits > 1 => Some(Ipv4Addr::from_bits(bits as u32)),
        _ if bits >> 112 == SIX_TO_FOUR => Some(Ipv4Addr::from_bits((bits >> 80) as u32)),
        _ => None,
    }
}

/// The kernel lets nobody bind to an address that the host does not have.
fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_ours_if_this_host_has_it() {
        for (address, ours) in
            [("127.0.0.1", true), ("127.9.9.9", true), ("192.0.2.1", false), ("1.1.1.1", false)]
        {
            assert_eq!(is_ours(address.parse().unwrap()), ours, "{address}");
        }
    }

    #[test]
    fn no_special_address_is_taken_for_a_public_one() {
        for special_one in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "192.88.99.1",
            "240.0.0.1",
            "::ffff:168.63.129.16",
            "64:ff9b:1::1",
            "100:0:0:1::1",
            "2001:20::1",
            "3fff::1",
            "5f00::1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "::127.0.0.1",
            "fec0::1",
            "2001::1",
            "100::1",
        ] {
            assert!(special(special_one.parse().unwrap()).is_some(), "{special_one}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "168.63.129.17",
            "192.31.196.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert_eq!(special(public.parse().unwrap()), None, "{public}");
        }
    }
}

//! Addresses that a public name has no business to resolve to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether `address` is one of this machine, of a private network, or of no single host: an answer with it for a public
/// name is DNS rebinding (or a mistake). The documentation ranges are not private. IPv6 forms that carry an IPv4 address
/// (mapped, NAT64, 6to4, the old compatible one) count as what they carry.
#[must_use]
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    a == 0
        || address.is_private()
        // RFC 6598, shared address space. Alibaba's metadata server 100.100.100.200 is in it.
        || (a == 100 && (64..128).contains(&b))
        || address.is_loopback()
        // The metadata servers of most clouds, 169.254.169.254, are in it.
        || address.is_link_local()
        || address.is_multicast()
        // RFC 1112, class E, with the broadcast address: never public, and used inside some networks.
        || a >= 240
        // Azure's platform server: a public address that is only ever the host's own.
        || address == Ipv4Addr::new(168, 63, 129, 16)
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    if let Some(embedded) = embedded_v4(segments) {
        return is_private_v4(embedded);
    }
    address.is_unspecified()
        || address.is_loopback()
        || address.is_unique_local()
        || address.is_unicast_link_local()
        // RFC 3879: site-local, withdrawn, still private where it is used.
        || segments[0] & 0xffc0 == 0xfec0
        || address.is_multicast()
}

/// The IPv4 address in an address that stands for one.
fn embedded_v4(segments: [u16; 8]) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // RFC 4291 section 2.5.5.2, ::ffff:0:0/96; RFC 6052, 64:ff9b::/96.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        // RFC 8215, 64:ff9b:1::/48: local-use translation; where in it the address stands depends on the network. All of
        // it leads to hosts that only this network can reach.
        [0x64, 0xff9b, 1, ..] => Some(Ipv4Addr::UNSPECIFIED),
        // RFC 3056, 2002::/16.
        [0x2002, high, low, ..] => Some(v4(high, low)),
        // RFC 4291 section 2.5.5.1, ::a.b.c.d, but not :: and ::1 themselves (both in 0/8 by this reading, so private too).
        [0, 0, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_private_range_is_private_to_its_edges_and_not_beyond() {
        let private = [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.0",
            "192.168.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "fc00::",
            "fdff::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:a00:1::1",
            "::192.168.1.1",
        ];
        for address in private {
            assert!(is_private(address.parse().unwrap()), "{address} is private");
        }
        let public = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "223.255.255.255",
            "168.63.129.15",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "2001:db8::1",
            "2606:4700::1",
            "fbff::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9c::10.0.0.1",
            "2002:808:808::1",
            "2003::1",
        ];
        for address in public {
            assert!(!is_private(address.parse().unwrap()), "{address} is public");
        }
    }
}

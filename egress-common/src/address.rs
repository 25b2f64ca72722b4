//! Addresses in one form: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
//!
//! One form on both sides means that a connect from an IPv6 socket to a mapped address and one from an IPv4 socket are
//! the same destination to every rule, map and log line.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address and a port. 20 bytes without padding, so that it can be part of map keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
// Aligned so that the kernel programs can read it by words: at alignment 1 every comparison is 16 byte loads.
#[repr(C, align(4))]
pub struct Endpoint {
    address: [u8; 16],
    port: u16,
    /// Explicit padding: keys are compared byte for byte.
    reserved: u16,
}

const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
const NAT64: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];

/// Cloud metadata services, which are never internal: AWS/GCP/Azure/OpenStack, Azure's wire server, Alibaba.
const METADATA_V4: [[u8; 4]; 3] = [[169, 254, 169, 254], [168, 63, 129, 16], [100, 100, 100, 200]];
/// AWS's metadata service over IPv6, fd00:ec2::254.
const METADATA_V6: [u8; 16] = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];

impl Endpoint {
    /// An IPv4 endpoint; the address in network order, the port in host order.
    #[must_use]
    #[inline(always)]
    pub const fn v4(address: [u8; 4], port: u16) -> Self {
        let [a, b, c, d] = address;
        Self {
            address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
            port,
            reserved: 0,
        }
    }

    /// An IPv6 endpoint, a mapped IPv4 one included; the address in network order, the port in host order.
    #[must_use]
    #[inline(always)]
    pub const fn v6(address: [u8; 16], port: u16) -> Self {
        Self {
            address,
            port,
            reserved: 0,
        }
    }

    /// The 16 bytes in network order.
    #[must_use]
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        self.address
    }

    /// The port in host order.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The same address with another port, in host order.
    #[must_use]
    #[inline(always)]
    pub const fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Whether it is the same endpoint. By words: comparing the arrays becomes a call to `memcmp`, which kernel programs do
    /// not have.
    #[must_use]
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        u128::from_be_bytes(self.address) == u128::from_be_bytes(other.address) && self.port == other.port
    }

    /// The four bytes of an IPv4 address, be it from an IPv4 or an IPv6 socket.
    #[must_use]
    #[inline(always)]
    pub fn octets_v4(&self) -> Option<[u8; 4]> {
        let [head @ .., a, b, c, d] = self.address;
        if equal12(&head, &MAPPED) {
            Some([a, b, c, d])
        } else {
            None
        }
    }

    /// The unspecified address of the same family, with the same port.
    #[must_use]
    #[inline(always)]
    pub fn unspecified(&self) -> Self {
        match self.octets_v4() {
            Some(_) => Self::v4([0; 4], self.port),
            None => Self::v6([0; 16], self.port),
        }
    }

    /// 127.0.0.0/8, ::1, and the unspecified addresses, which connect(2) takes for the loopback ones.
    #[must_use]
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        match self.octets_v4() {
            Some(octets) => octets[0] == 127 || u32::from_be_bytes(octets) == 0,
            None => u128::from_be_bytes(self.address) <= 1,
        }
    }

    /// A cloud metadata service, by its IPv4, IPv6 or NAT64 (64:ff9b::/96, RFC 6052) address.
    #[must_use]
    #[inline(always)]
    pub fn is_metadata(&self) -> bool {
        let [head @ .., a, b, c, d] = self.address;
        if equal12(&head, &MAPPED) || equal12(&head, &NAT64) {
            let octets = u32::from_be_bytes([a, b, c, d]);
            return METADATA_V4
                .iter()
                .any(|service| u32::from_be_bytes(*service) == octets);
        }
        u128::from_be_bytes(self.address) == u128::from_be_bytes(METADATA_V6)
    }

    /// The IPv4 endpoint inside an address of NAT64's well-known prefix (64:ff9b::/96, RFC 6052): where it finally leads.
    #[must_use]
    #[inline(always)]
    pub fn inside_nat64(&self) -> Option<Self> {
        let [head @ .., a, b, c, d] = self.address;
        if equal12(&head, &NAT64) {
            Some(Self::v4([a, b, c, d], self.port))
        } else {
            None
        }
    }

    /// The address as the rest of the agent knows it: mapped ones as IPv4.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.address).to_canonical()
    }

    /// Address and port as the rest of the agent knows them.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) => Self::v4(ip.octets(), address.port()),
            IpAddr::V6(ip) => Self::v6(ip.octets(), address.port()),
        }
    }
}

impl From<(Ipv4Addr, u16)> for Endpoint {
    fn from((address, port): (Ipv4Addr, u16)) -> Self {
        Self::v4(address.octets(), port)
    }
}

/// Compares by three words: the slice comparison becomes a call to `memcmp`, which kernel programs do not have.
#[inline(always)]
fn equal12(left: &[u8; 12], right: &[u8; 12]) -> bool {
    let word = |bytes: &[u8; 12], at: usize| match at {
        0 => u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
    };
    word(left, 0) == word(right, 0) && word(left, 1) == word(right, 1) && word(left, 2) == word(right, 2)
}

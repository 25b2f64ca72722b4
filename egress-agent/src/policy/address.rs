//! Addresses and blocks of them: what `cidr` rules cover.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// The addresses under which clouds answer with credentials: AWS, GCP, Azure and others; AWS over IPv6; Azure's host
/// agent; Alibaba. A broad block never covers them: a rule must name the very address.
pub(super) const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// An entry `{cidr, except}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    net: IpNet,
    except: Vec<IpNet>,
}

impl Block {
    /// `net` without `except`.
    pub(super) const fn new(net: IpNet, except: Vec<IpNet>) -> Self {
        Self { net, except }
    }

    /// The block without its exceptions.
    pub(super) const fn net(&self) -> IpNet {
        self.net
    }

    /// What is left out.
    pub(super) fn except(&self) -> &[IpNet] {
        &self.except
    }

    /// Whether the block has every address of `net` but those in longer prefixes, and not as exceptions.
    pub(super) fn spans(&self, net: IpNet) -> bool {
        self.net.contains(&net) && !self.except.iter().any(|except| except.contains(&net))
    }

    /// Whether the block has the address, as it stands.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }

    /// Whether the block, as part of an allow rule, covers the address: a metadata address only by its very self.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        self.contains(address)
            && (!is_metadata(address) || self.net.prefix_len() == self.net.max_prefix_len())
    }
}

/// The address that packets to `address` finally reach: the IPv4 address inside an IPv4-mapped one (`::ffff:0:0/96`), or
/// inside one of the well-known NAT64 prefix (`64:ff9b::/96`, RFC 6052). Otherwise an IPv4 rule could be walked around.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => v6.to_canonical(),
    }
}

/// The block in the form in which [`canonical`] addresses are compared with it.
pub(super) fn canonical_net(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else {
        return net.trunc();
    };
    let (IpAddr::V4(v4), Some(length)) = (canonical(v6.addr().into()), v6.prefix_len().checked_sub(96))
    else {
        return net.trunc();
    };
    Ipv4Net::new(v4, length).map_or(net, IpNet::V4).trunc()
}

/// Whether the (canonical) address is a cloud's metadata service.
pub(super) fn is_metadata(address: IpAddr) -> bool {
    METADATA.contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn embedded_ipv4_addresses_are_judged_as_ipv4() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("64:ff9b::192.0.2.1", "192.0.2.1"),
            ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
            ("64:ff9b:1::192.0.2.1", "64:ff9b:1::c000:201"),
            ("2001:db8::1", "2001:db8::1"),
            ("::1", "::1"),
        ] {
            assert_eq!(canonical(ip(text)), ip(expected), "{text}");
        }
        for (text, expected) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("64:ff9b::/96", "0.0.0.0/0"),
            ("64:ff9b::/64", "64:ff9b::/64"),
            ("::/0", "::/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
        ] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(canonical_net(net).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn a_metadata_address_is_covered_by_its_very_self_only() {
        let block = |net: &str| Block::new(net.parse().unwrap(), Vec::new());
        for address in METADATA {
            assert!(block(&IpNet::from(address).to_string()).allows(address));
        }
        let metadata = ip("169.254.169.254");
        for broad in ["0.0.0.0/0", "169.254.0.0/16", "169.254.169.254/31"] {
            assert!(block(broad).contains(metadata));
            assert!(!block(broad).allows(metadata), "{broad}");
        }
        assert!(block("169.254.0.0/16").allows(ip("169.254.169.253")));
    }

    #[test]
    fn except_leaves_out() {
        let block = Block::new(
            "203.0.113.0/24".parse().unwrap(),
            vec!["203.0.113.128/25".parse().unwrap()],
        );
        assert!(block.contains(ip("203.0.113.1")));
        assert!(!block.contains(ip("203.0.113.129")));
        assert!(!block.contains(ip("203.0.114.1")));
    }
}

//! Where workloads find the explicit proxy: addresses that the kernel redirects as it redirects ports, so that a caller
//! is known by its cgroup, nothing listens on the machine's network, and nobody else is served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_common::dns;

use crate::kernel::MOST_PROXIES;

/// The explicit proxy's addresses; none if it is off.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExplicitProxy {
    addresses: Vec<SocketAddr>,
}

impl ExplicitProxy {
    /// At these addresses; an unspecified one (0.0.0.0, ::) stands for all of its family. `ports` are the redirected
    /// ones.
    ///
    /// # Errors
    /// What is wrong with one of them, and what is allowed.
    pub fn new(addresses: &[SocketAddr], ports: &[u16]) -> Result<Self, String> {
        if addresses.len() > MOST_PROXIES {
            return Err(format!("at most {MOST_PROXIES} addresses are allowed"));
        }
        for address in addresses {
            let port = address.port();
            if port == 0 || port == dns::PORT {
                return Err(format!(
                    "{address}: the ports 1 to 65535 are allowed, but for {}, which is the name service's",
                    dns::PORT
                ));
            }
            if address.ip().is_unspecified() && ports.contains(&port) {
                return Err(format!(
                    "{address} would be every server on port {port}, which is redirected; name the proxy's own address, \
                     or use another port, such as 3128"
                ));
            }
        }
        Ok(Self {
            addresses: addresses.iter().copied().map(canonical).collect(),
        })
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether a connect to `dialled` was one to the proxy.
    #[must_use]
    pub fn is_at(&self, dialled: SocketAddr) -> bool {
        let dialled = canonical(dialled);
        let any: IpAddr = match dialled {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.addresses
            .iter()
            .any(|own| own.port() == dialled.port() && (own.ip() == dialled.ip() || own.ip() == any))
    }
}

/// As the kernel's table has it: mapped addresses are IPv4 ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(addresses: &[&str]) -> Result<ExplicitProxy, String> {
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        ExplicitProxy::new(&addresses, &[80, 443])
    }

    #[test]
    fn an_unspecified_address_is_all_of_its_family_and_no_other() {
        let any = proxy(&["0.0.0.0:3128", "[2001:db8::1]:8080"]).unwrap();
        for (dialled, expected) in [
            ("192.0.2.1:3128", true),
            ("[::ffff:192.0.2.1]:3128", true),
            ("127.0.0.1:3128", true),
            ("192.0.2.1:3129", false),
            ("[2001:db8::1]:3128", false),
            ("[2001:db8::1]:8080", true),
            ("[2001:db8::2]:8080", false),
        ] {
            assert_eq!(any.is_at(dialled.parse().unwrap()), expected, "{dialled}");
        }
        assert!(!ExplicitProxy::default().is_at("127.0.0.1:3128".parse().unwrap()));
    }

    #[test]
    fn what_would_swallow_other_traffic_is_refused() {
        for wrong in ["192.0.2.1:53", "192.0.2.1:0", "0.0.0.0:443", "[::]:80"] {
            assert!(proxy(&[wrong]).is_err(), "{wrong}");
        }
        assert!(proxy(&["192.0.2.1:80"]).is_ok(), "an address of its own");
        assert!(proxy(&["192.0.2.1:3128"; 65]).unwrap_err().contains("64"));
    }
}

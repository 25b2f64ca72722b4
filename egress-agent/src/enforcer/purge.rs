//! Connections that are open and would not be allowed now: those from before the enforcement, and those that went past the
//! agent by a rule that has gone. Found by NETLINK_SOCK_DIAG and closed; packets of the latter are dropped by the kernel
//! programs meanwhile.

use std::{collections::HashSet, net::IpAddr};

use egress_common::member::Transport;
use ipnet::IpNet;

use crate::{
    kernel::{Fence, OpenSocket, SockDiag},
    netns::Netns,
};

/// Closes what `is_refused` in a network namespace, and says what that was.
///
/// # Errors
/// The kernel cannot list or close sockets.
pub(super) fn purge(
    netns: &Netns,
    is_refused: impl Fn(&OpenSocket) -> bool,
) -> std::io::Result<Vec<OpenSocket>> {
    let diag = netns.within(SockDiag::open)??;
    let sockets = diag.sockets()?;
    // An accepted connection has its listener's port: inbound is not our business.
    let served: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.listens)
        .map(|socket| socket.local.port())
        .collect();
    let mut closed = Vec::new();
    for socket in sockets {
        let is_inbound = socket.transport == Transport::Tcp && served.contains(&socket.local.port());
        if socket.listens || is_inbound || !is_refused(&socket) {
            continue;
        }
        if diag.destroy(&socket)? {
            closed.push(socket);
        }
    }
    Ok(closed)
}

/// Whether a fence lets an open connection live that it did not see begin: as it would let it begin past the proxy.
pub(super) fn lets_live(fence: &Fence, peer: IpAddr, port: u16, transport: Transport) -> bool {
    let has = |ranges: &[std::ops::RangeInclusive<u16>]| ranges.iter().any(|range| range.contains(&port));
    let covering = fence
        .openings
        .iter()
        .filter(|(net, _)| net.contains(&peer))
        .max_by_key(|(net, _)| net.prefix_len());
    let Some((_, opening)) = covering else {
        return false;
    };
    match transport {
        Transport::Tcp => has(&opening.tcp) && !has(&fence.named),
        Transport::Udp => has(&opening.udp),
    }
}

/// Whether nothing is enforced on connections to `peer`, whoever has them.
pub(super) fn is_left_alone(peer: IpAddr, internal: &[IpNet]) -> bool {
    let endpoint = egress_common::address::Endpoint::from(std::net::SocketAddr::new(peer, 0));
    endpoint.is_loopback() || (!endpoint.is_metadata() && internal.iter().any(|net| net.contains(&peer)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::Opening;

    #[test]
    fn the_longest_prefix_decides_and_a_port_with_names_lets_nothing_live() {
        let ports = |port: u16| -> Arc<[_]> { Arc::new([port..=port]) };
        let opening = |tcp: u16, udp: u16| Opening {
            tcp: ports(tcp),
            udp: ports(udp),
        };
        let fence = Fence {
            enforce: true,
            redirected: ports(443),
            named: Arc::new([443..=443, 8443..=8443]),
            doubts_nat64: false,
            openings: vec![
                ("203.0.113.0/24".parse().unwrap(), opening(5432, 123)),
                ("203.0.113.64/26".parse().unwrap(), opening(8443, 123)),
            ],
        };
        let lives = |peer: &str, port, transport| lets_live(&fence, peer.parse().unwrap(), port, transport);
        assert!(lives("203.0.113.1", 5432, Transport::Tcp));
        assert!(!lives("203.0.113.65", 5432, Transport::Tcp));
        assert!(!lives("203.0.113.65", 8443, Transport::Tcp), "judged by name now");
        assert!(lives("203.0.113.65", 123, Transport::Udp));
        assert!(!lives("198.51.100.1", 5432, Transport::Tcp));
    }
}

//! Connections that are open and would not be allowed now: those from before the enforcement, and those that went past the
//! agent by a rule that has gone. Found by NETLINK_SOCK_DIAG and closed; packets of the latter are dropped by the kernel
//! programs meanwhile.

use std::{collections::HashSet, net::IpAddr};

use egress_common::member::Transport;
use ipnet::IpNet;

use super::{Enforcer, census::Census, strangers::Strangers};
use crate::{
    kernel::{Fence, OpenSocket, SockDiag},
    netns::Netns,
};

impl Enforcer {
    /// Closes connections that are not allowed and were not seen to begin, or no longer are.
    pub(super) fn purge(&self, namespaces: impl Iterator<Item = Netns>) {
        self.purge_and_note(namespaces, |_cgroup, _namespace| {});
    }

    /// The same at the beginning of the enforcement. Of whom nobody knows yet is noted, for [`Self::meet_strangers`].
    pub(super) fn purge_what_was_before(&mut self, census: &Census) {
        let mut strangers = Strangers::default();
        self.purge_and_note(census.open_namespaces(), |cgroup, namespace| {
            strangers.note(cgroup, namespace);
        });
        self.strangers = strangers;
    }

    /// Closes what those had opened before the enforcement began who have become known since. What others have opened,
    /// who came later, was judged.
    pub(super) fn meet_strangers(&mut self) {
        let is_enforced = |cgroup| Some(self.roster.member(cgroup)?.fence.enforce);
        let namespaces = self.strangers.namespaces_of_enforced(is_enforced);
        if !namespaces.is_empty() {
            match self.sites.census() {
                Ok(census) => self.purge(
                    census
                        .open_namespaces()
                        .filter(|netns| namespaces.contains(&netns.cookie())),
                ),
                // They stay strangers: tried again with the next look.
                Err(error) => {
                    return tracing::error!(%error, "cannot look at connections from before the enforcement");
                }
            }
        }
        self.forget_strangers();
    }

    /// Those who are known were purged, or are not enforced: new policies for them have a purge of their own.
    pub(super) fn forget_strangers(&mut self) {
        let Self {
            strangers, roster, ..
        } = self;
        strangers.forget(|cgroup| roster.knows(cgroup));
    }

    fn purge_and_note(&self, namespaces: impl Iterator<Item = Netns>, mut unknown: impl FnMut(u64, u64)) {
        for netns in namespaces {
            let is_outbound = |socket: &OpenSocket| self.direct.has(socket.cookie);
            let closed = purge(&netns, is_outbound, |socket| {
                let peer = socket.peer.ip();
                if is_left_alone(peer, &self.internal) {
                    return false;
                }
                let Some(member) = self.roster.member(socket.cgroup) else {
                    unknown(socket.cgroup, netns.cookie());
                    return false;
                };
                member.fence.enforce && !lets_live(&member.fence, peer, socket.peer.port(), socket.transport)
            });
            match closed {
                Ok(closed) => {
                    let set = self.services.policy.load();
                    let ledger = self.ledger(&set);
                    for socket in closed.iter().filter(|socket| !self.direct.has(socket.cookie)) {
                        self.services.log.record(ledger.purged(socket));
                    }
                }
                Err(error) => tracing::error!(
                    %error,
                    cookie = netns.cookie(),
                    "connections that are not allowed cannot be closed: those from before the enforcement go on"
                ),
            }
        }
    }
}

/// Closes what `is_refused` in a network namespace, and says what that was. What `is_outbound` was seen to begin here.
///
/// # Errors
/// The kernel cannot list or close sockets.
fn purge(
    netns: &Netns,
    is_outbound: impl Fn(&OpenSocket) -> bool,
    mut is_refused: impl FnMut(&OpenSocket) -> bool,
) -> std::io::Result<Vec<OpenSocket>> {
    let diag = netns.within(SockDiag::open)??;
    let sockets = diag.sockets()?;
    // An accepted connection has its listener's port: inbound is not our business. But whoever has an outbound one may
    // listen on its port as well.
    let served: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.listens)
        .map(|socket| socket.local.port())
        .collect();
    let mut closed = Vec::new();
    for socket in sockets {
        let is_inbound = socket.transport == Transport::Tcp
            && served.contains(&socket.local.port())
            && !is_outbound(&socket);
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
fn lets_live(fence: &Fence, peer: IpAddr, port: u16, transport: Transport) -> bool {
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
fn is_left_alone(peer: IpAddr, internal: &[IpNet]) -> bool {
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

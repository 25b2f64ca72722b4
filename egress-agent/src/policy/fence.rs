//! A workload's policies as the kernel programs need them: what may go where it wants to without being asked for a name,
//! and what goes to the proxy.
//!
//! The kernel looks up the longest prefix alone, so each prefix is given what all blocks around it allow, cluster
//! denials and ceilings taken off. Where a name could make a difference the kernel does not decide: see [`Fence::named`].

use std::collections::{BTreeSet, HashMap};

use egress_common::member::Transport;
use ipnet::{IpNet, Ipv6Net};

use super::{
    Posture,
    address::{Block, METADATA, is_metadata},
    ports::PortSet,
    rule::Rule,
    set::RuleIndex,
    view::PolicyView,
};
use crate::kernel::{Fence, Opening};

/// NAT64's well-known prefix (RFC 6052).
const NAT64: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

impl PolicyView {
    /// What the kernel enforces on the workload. `web` are the ports on which every connection goes to the proxy.
    #[must_use]
    pub fn fence(&self, web: &PortSet) -> Fence {
        let egress: Vec<&Rule> = self
            .scopes()
            .flat_map(|(scope, groups)| scope.egress.of_groups(groups))
            .collect();
        let redirected = match self.posture() {
            Posture::Observe => web.clone(),
            Posture::Enforce | Posture::Audit => {
                host_ports(&egress).fold(web.clone(), |all, ports| all.union(ports))
            }
        };
        if self.posture() != Posture::Enforce {
            return Fence::pass(redirected.ranges().into());
        }
        let (cluster, groups) = self.cluster();
        let deny: Vec<&Rule> = cluster.deny.of_groups(groups).collect();
        let ceilings: Vec<Vec<&Rule>> = cluster
            .ceilings(groups)
            .map(|rules: &RuleIndex| rules.of_groups(groups).collect())
            .collect();
        let others = || deny.iter().chain(ceilings.iter().flatten()).copied();
        let named = host_ports(&others().collect::<Vec<_>>())
            .chain(request_ports(egress.iter().copied()))
            .chain(request_ports(others()))
            .fold(redirected.clone(), |all, ports| all.union(ports));
        let doubts_nat64 = deny.iter().flat_map(|rule| &rule.blocks).any(|block| {
            let net = block.net();
            net.contains(&IpNet::V6(NAT64)) || IpNet::V6(NAT64).contains(&net)
        });
        let openings = Compilation {
            egress: Blocks::of(&egress),
            deny: Blocks::of(&deny),
            ceilings: ceilings.iter().map(|rules| Blocks::of(rules)).collect(),
        }
        .openings();
        Fence {
            enforce: true,
            redirected: redirected.ranges().into(),
            named: named.ranges().into(),
            doubts_nat64,
            openings,
        }
    }
}

/// The ports of rules that have names.
fn host_ports<'a>(rules: &[&'a Rule]) -> impl Iterator<Item = &'a PortSet> {
    rules
        .iter()
        .filter(|rule| !rule.hosts.is_empty())
        .map(|rule| &rule.host_ports)
}

/// The ports of rules whose blocks depend on what is requested there.
fn request_ports<'a>(rules: impl Iterator<Item = &'a Rule>) -> impl Iterator<Item = &'a PortSet> {
    rules
        .filter(|rule| !rule.requests.is_empty() && !rule.blocks.is_empty())
        .map(|rule| &rule.block_ports)
}

/// Everything that has a say on addresses.
struct Compilation<'a> {
    egress: Blocks<'a>,
    deny: Blocks<'a>,
    ceilings: Vec<Blocks<'a>>,
}

/// Blocks with their rules, found by their prefix.
struct Blocks<'a> {
    by_net: HashMap<IpNet, Vec<(&'a Rule, &'a Block)>>,
}

/// TCP and UDP ports.
type Both = [PortSet; 2];

impl<'a> Blocks<'a> {
    fn of(rules: &[&'a Rule]) -> Self {
        let mut by_net: HashMap<_, Vec<_>> = HashMap::new();
        for rule in rules {
            for block in &rule.blocks {
                by_net.entry(block.net()).or_default().push((*rule, block));
            }
        }
        Self { by_net }
    }

    /// Every prefix at which something begins or ends.
    fn edges(&self) -> impl Iterator<Item = IpNet> {
        let blocks = self.by_net.values().flatten();
        blocks.flat_map(|(_, block)| [block.net()].into_iter().chain(block.except().iter().copied()))
    }

    /// The rules with a block that has what lies directly in `net`, and in no longer prefix.
    fn at(&self, net: IpNet) -> impl Iterator<Item = (&'a Rule, &'a Block)> {
        let around = (0..=net.prefix_len())
            .rev()
            .filter_map(move |length| IpNet::new(net.addr(), length).ok())
            .filter_map(|outer| self.by_net.get(&outer.trunc()));
        around
            .flatten()
            .copied()
            .filter(move |(_, block)| block.spans(net))
    }

    /// The ports that these rules, as allowances, open there.
    fn opened(&self, net: IpNet) -> Both {
        let is_metadata = net.prefix_len() == net.max_prefix_len() && is_metadata(net.addr());
        let allows = |block: &Block| !is_metadata || block.net() == net;
        self.at(net)
            .filter(|(_, block)| allows(block))
            .fold(Both::default(), |opened, (rule, _)| with(&opened, rule))
    }

    /// The ports that these rules, as denials, close there. What depends on requests is left to the proxy.
    fn closed(&self, net: IpNet) -> Both {
        self.at(net)
            .filter(|(rule, _)| rule.requests.is_empty())
            .fold(Both::default(), |closed, (rule, _)| with(&closed, rule))
    }
}

fn with([tcp, udp]: &Both, rule: &Rule) -> Both {
    [
        tcp.union(rule.ports_of_blocks(Transport::Tcp)),
        udp.union(rule.ports_of_blocks(Transport::Udp)),
    ]
}

impl Compilation<'_> {
    /// What is open, by prefix; a prefix that says what the one around it says is left out.
    fn openings(&self) -> Vec<(IpNet, Opening)> {
        let metadata = METADATA.map(IpNet::from);
        let nets: BTreeSet<IpNet> = [&self.egress, &self.deny]
            .into_iter()
            .chain(&self.ceilings)
            .flat_map(Blocks::edges)
            .chain(metadata)
            .collect();
        let mut openings = Vec::new();
        // The prefixes around the current one, innermost last, with what they open. Sorted, an outer one comes first.
        let mut around: Vec<(IpNet, Both)> = Vec::new();
        for net in nets {
            while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
                around.pop();
            }
            let open = self.open(net);
            let before = around.last().map(|(_, open)| open.clone()).unwrap_or_default();
            if open != before {
                let [tcp, udp] = &open;
                let opening = Opening {
                    tcp: tcp.ranges().into(),
                    udp: udp.ranges().into(),
                };
                openings.push((net, opening));
            }
            around.push((net, open));
        }
        openings
    }

    fn open(&self, net: IpNet) -> Both {
        let [closed_tcp, closed_udp] = self.deny.closed(net);
        let [tcp, udp] = self.egress.opened(net);
        let left = [tcp.without(&closed_tcp), udp.without(&closed_udp)];
        self.ceilings.iter().fold(left, |[tcp, udp], ceiling| {
            let [below_tcp, below_udp] = ceiling.opened(net);
            [tcp.intersection(&below_tcp), udp.intersection(&below_udp)]
        })
    }
}

#[cfg(test)]
mod tests;
